"""How far apart two sets of pictures are, from their features: FID, KID, precision, recall, density, coverage.

Intervals answer how much a number would change had other pictures been generated, the reference and the number of
pictures being the same. They come from the delete-a-group jackknife (Shao and Tu 1995, section 2.3) and not from the
bootstrap: drawing pictures with replacement puts equal ones side by side, which shifts FID, KID and every radius.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, stats

ROWS = 1024  # of a matrix of distances that are in memory at once
METRICS = ("fid", "kid", "prdc")
RANGES = {  # of what is measured, to which intervals are cut
    "fid": (0.0, np.inf),
    "kid": (-np.inf, np.inf),  # unbiased, so that small ones may come out below 0
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, np.inf),
    "coverage": (0.0, 1.0),
}


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of the features of `count` pictures."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """From features (N, D), N >= 2, in float64; ValueError for fewer or for numbers that are not finite."""
        features = check_features(features)
        return cls(len(features), features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def check_features(features: np.ndarray, least: int = 2) -> np.ndarray:
    """Features (N, D) as float64; ValueError when they are of another shape, too few or not finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(f"features of shape {features.shape}: needs at least {least} pictures, one row each")
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise ValueError(f"features of {len(wrong)} pictures are not finite, the first is number {wrong[0]}")
    return features


# ---- FID ----


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017 (arXiv 1706.08500), equation 6."""
    return _distance(first.mean, _root(first.covariance), second)


def frechet_leave_out(features: np.ndarray, reference: Moments, groups: Sequence[np.ndarray]) -> list[float]:
    """The Frechet distance without each group of pictures."""
    features = check_features(features)
    centred = features - features.mean(axis=0)  # so that differences of sums lose no digits
    total, products = centred.sum(axis=0), centred.T @ centred
    reference_root = _root(reference.covariance)
    distances = []
    for group in groups:
        count, part = len(features) - len(group), centred[group]
        mean = (total - part.sum(axis=0)) / count
        covariance = (products - part.T @ part - count * np.outer(mean, mean)) / (count - 1)
        rest = Moments(count, mean + features.mean(axis=0), covariance)
        distances.append(_distance(reference.mean, reference_root, rest))
    return distances


def _root(covariance: np.ndarray) -> np.ndarray:
    """R (D, D) with R R^T = covariance; directions without any variance but rounding are left out."""
    values, vectors = linalg.eigh(covariance)
    smallest = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors * np.sqrt(np.where(values > smallest, values, 0.0))


def _distance(mean: np.ndarray, root: np.ndarray, second: Moments) -> float:
    if mean.shape != second.mean.shape:
        raise ValueError(f"features of {len(mean)} and of {len(second.mean)} dimensions cannot be compared")
    # S1 S2 and (R1^T R2)(R1^T R2)^T have the same eigenvalues, and no square root of a singular matrix is taken.
    shared = linalg.svdvals(root.T @ _root(second.covariance)).sum()
    difference = mean - second.mean
    return float(difference @ difference + (root**2).sum() + np.trace(second.covariance) - 2 * shared)


# ---- KID ----


def kernel_distances(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> np.ndarray:
    """Unbiased squared MMD (subsets,) of random subsets, kernel (x y / D + 1)^3: KID is their mean.

    Binkowski et al. 2018 (arXiv 1801.01401). Subsets as torch-fidelity draws them from the same seed. ValueError when
    subset_size is more than there are pictures.
    """
    first, second = check_features(first), check_features(second)
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise ValueError(
            f"kid_subset_size={subset_size} must be from 2 to the {min(len(first), len(second))} pictures there are"
        )
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x = first[rng.choice(len(first), subset_size, replace=False)]
        y = second[rng.choice(len(second), subset_size, replace=False)]
        within = _kernel(x, x), _kernel(y, y)
        sums = sum(kernel.sum() - np.trace(kernel) for kernel in within)
        distances.append(sums / (subset_size * (subset_size - 1)) - 2 * _kernel(x, y).mean())
    return np.array(distances)


def kernel_leave_out(features: np.ndarray, reference: np.ndarray, groups: Sequence[np.ndarray]) -> list[float]:
    """Unbiased squared MMD of all pictures, without each group of `features`."""
    features, reference = check_features(features), check_features(reference)
    count, others = len(features), len(reference)
    inner, to_others = np.zeros(count), np.zeros(count)  # sums over the other pictures, and over the reference
    own = []
    for group in groups:
        own.append(0.0)
        for rows in _chunks(len(group)):
            kernel = _kernel(features[group[rows]], features)  # (rows, N)
            kernel[np.arange(len(kernel)), group[rows]] = 0
            inner[group[rows]] = kernel.sum(axis=1)
            own[-1] += kernel[:, group].sum()
            to_others[group[rows]] = _kernel(features[group[rows]], reference).sum(axis=1)
    within = 0.0
    for rows in _chunks(others):
        within += _kernel(reference[rows], reference).sum()
    within -= sum(_kernel(row[None], row[None])[0, 0] for row in reference)
    distances = []
    for group, own_sum in zip(groups, own):
        rest = count - len(group)
        pairs = inner.sum() - 2 * inner[group].sum() + own_sum
        across = to_others.sum() - to_others[group].sum()
        parts = pairs / (rest * (rest - 1)), within / (others * (others - 1)), -2 * across / (rest * others)
        distances.append(float(sum(parts)))
    return distances


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3  # (N, M)


# ---- precision, recall, density, coverage ----


def manifold_metrics(
    reference: np.ndarray, generated: np.ndarray, nearest_k: int = 5, groups: Sequence[np.ndarray] = ()
) -> dict[str, tuple[float, list[float]]]:
    """precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    Each with its values without each group of generated pictures. ValueError when a set or what a group leaves of it
    holds no k-th neighbour.
    """
    reference, generated = check_features(reference), check_features(generated)
    smallest = min([len(reference), len(generated), *(len(generated) - len(group) for group in groups)])
    if not 1 <= nearest_k < smallest:
        raise ValueError(f"nearest_k={nearest_k} must be from 1 to {smallest - 1} with so many pictures")
    radii = neighbour_distances(reference, nearest_k)  # (R,)
    reach = [neighbour_distances(generated, nearest_k)]  # of (N,), then without each group
    for group in groups:
        kept = np.delete(np.arange(len(generated)), group)
        reach.append(np.full(len(generated), -1.0))  # nothing is nearer than -1
        reach[-1][kept] = neighbour_distances(generated[kept], nearest_k)
    inside = np.zeros(len(generated))  # in how many balls of the reference each generated picture lies
    covered, reached = np.zeros(1 + len(groups)), np.zeros(1 + len(groups))
    for rows in _chunks(len(reference)):
        distances = squared_distances(reference[rows], generated)  # (rows, N)
        near = distances < radii[rows, None]
        inside += near.sum(axis=0)
        by_group = np.stack([near.sum(axis=1), *(near[:, group].sum(axis=1) for group in groups)])  # (1 + G, rows)
        covered[0] += (by_group[0] > 0).sum()
        covered[1:] += (by_group[0] > by_group[1:]).sum(axis=1)
        reached += [(distances < radius).any(axis=1).sum() for radius in reach]
    kept = [inside, *(np.delete(inside, group) for group in groups)]
    values = {
        "precision": [float((part > 0).mean()) for part in kept],
        "recall": (reached / len(reference)).tolist(),
        "density": [float(part.mean() / nearest_k) for part in kept],
        "coverage": (covered / len(reference)).tolist(),
    }
    return {name: (value[0], value[1:]) for name, value in values.items()}


def neighbour_distances(features: np.ndarray, nearest_k: int) -> np.ndarray:
    """Squared distance (N,) of each picture to its k-th nearest other one."""
    distances = np.empty(len(features))
    for rows in _chunks(len(features)):
        part = squared_distances(features[rows], features)
        part[np.arange(len(part)), np.arange(rows.start, rows.stop)] = 0
        distances[rows] = np.partition(part, nearest_k, axis=1)[:, nearest_k]
    return distances


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) of rows (N, D) and (M, D)."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)
    return np.maximum(squares - 2 * first @ second.T, 0)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(count, start + ROWS))


# ---- intervals ----


def split(count: int, groups: int, seed: int = 0) -> list[np.ndarray]:
    """Numbers 0 to count - 1 in random groups whose sizes differ by one at most; fewer groups when count is less."""
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, min(groups, count))]


def jackknife_interval(value: float, leave_out: Sequence[float], confidence: float = 0.95) -> list[float]:
    """[low, high] about `value` from what it is without each group; Student's t with one degree fewer than groups."""
    if len(leave_out) < 2:
        raise ValueError(f"an interval needs at least 2 groups, got {len(leave_out)}")
    left = np.asarray(leave_out, dtype=np.float64)
    error = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + confidence) / 2, len(left) - 1) * error)
    return [float(value) - half, float(value) + half]


def compare(
    generated: np.ndarray,
    reference: np.ndarray | Moments,
    metrics: Sequence[str] = METRICS,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    nearest_k: int = 5,
    groups: int = 20,
) -> dict[str, dict]:
    """Numbers with 95 % intervals of generated features (N, D) against a reference: {"fid": {"value", ...}}.

    reference: features (R, D), or Moments, which only allow "fid". groups: of the jackknife; 0 gives no intervals.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics={list(metrics)}: use some of {', '.join(METRICS)}")
    generated = check_features(generated)
    moments = reference if isinstance(reference, Moments) else Moments.of(reference)
    if moments is reference and set(metrics) != {"fid"}:
        raise ValueError("a reference of mean and covariance alone gives fid; kid and prdc need its features")
    parts = split(len(generated), groups) if groups else []
    results = {}
    if "fid" in metrics:
        value = frechet_distance(Moments.of(generated), moments)
        results["fid"] = _entry("fid", value, frechet_leave_out(generated, moments, parts))
    if "kid" in metrics:
        distances = kernel_distances(generated, reference, kid_subsets, kid_subset_size)
        left = kernel_leave_out(generated, reference, parts) if parts else []
        results["kid"] = {**_entry("kid", float(distances.mean()), left), "subset_std": float(distances.std())}
    if "prdc" in metrics:
        for name, value in manifold_metrics(reference, generated, nearest_k, parts).items():
            results[name] = _entry(name, *value)
    return results


def _entry(name: str, value: float, leave_out: Sequence[float]) -> dict:
    if not len(leave_out):
        return {"value": value, "interval": None}
    low, high = np.clip(jackknife_interval(value, leave_out), *RANGES[name])
    return {"value": value, "interval": [float(low), float(high)]}
