"""Distances between sets of features: equal to other people's programs and to closed forms; intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from ppvilg.evaluation.metrics.distribution import (
    Moments,
    check_features,
    compare,
    frechet_distance,
    frechet_leave_out,
    jackknife_interval,
    kernel_distances,
    kernel_leave_out,
    manifold_metrics,
    split,
)

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(24, 24))


def sample(count: int, seed: int, shift: float = 0.0, dimensions: int = 24) -> np.ndarray:
    """Correlated features, skewed a little, as float64."""
    noise = np.random.default_rng(seed).normal(size=(count, dimensions))
    return noise @ MIXING[:dimensions, :dimensions] + 0.1 * noise**2 + shift


FIRST, SECOND = sample(400, 1), sample(500, 2, shift=0.3)


def test_fid_equals_torch_fidelity(import_peer):
    fidelity = import_peer("torch_fidelity.metric_fid")
    torch = import_peer("torch")
    statistics = [fidelity.fid_features_to_statistics(torch.from_numpy(each)) for each in (FIRST, SECOND)]
    expected = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments.of(FIRST), Moments.of(SECOND)) == pytest.approx(expected, rel=1e-6)


def test_fid_equals_pytorch_fid(import_peer):
    peer = import_peer("pytorch_fid.fid_score")
    parts = [part for each in (FIRST, SECOND) for part in (each.mean(axis=0), np.cov(each, rowvar=False))]
    try:
        expected = peer.calculate_frechet_distance(*parts)
    except TypeError as error:
        pytest.skip(f"pytorch-fid does not run with this SciPy: {error}")
    assert frechet_distance(Moments.of(FIRST), Moments.of(SECOND)) == pytest.approx(expected, rel=1e-6)


def test_kid_equals_torch_fidelity(import_peer):
    fidelity = import_peer("torch_fidelity.metric_kid")
    torch = import_peer("torch")
    given = [torch.from_numpy(each) for each in (FIRST, SECOND)]
    expected = fidelity.kid_features_to_metric(*given, kid_subsets=20, kid_subset_size=150, rng_seed=7, verbose=False)
    distances = kernel_distances(FIRST, SECOND, subsets=20, subset_size=150, seed=7)
    assert distances.mean() == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert distances.std() == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.parametrize("nearest_k", [1, 5])
def test_precision_recall_density_coverage_equal_their_authors(nearest_k, monkeypatch, import_peer):
    peer = import_peer("prdc")
    monkeypatch.setattr("ppvilg.evaluation.metrics.distribution.ROWS", 64)  # several pieces, the last one smaller
    reference, generated = sample(400, 3, dimensions=6), sample(300, 4, shift=0.5, dimensions=6)
    expected = peer.compute_prdc(reference, generated, nearest_k)
    found = manifold_metrics(reference, generated, nearest_k)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, rel=1e-6)
    assert 0.05 < found["precision"][0] < 0.999 and 0.05 < found["coverage"][0] < 0.999


def test_fid_of_known_gaussians():
    """Commuting covariances, one of them singular: |m|^2 + sum (sqrt a - sqrt b)^2."""
    rotation = np.linalg.qr(MIXING)[0]
    first, second = np.linspace(0, 4, 24), np.linspace(9, 1, 24)
    first[:10] = 0
    parts = ((0, first), (2, second))
    pair = [Moments(9, mean * np.ones(24), rotation * values @ rotation.T) for mean, values in parts]
    expected = 24 * 4 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*pair[::-1]) == pytest.approx(expected, rel=1e-9)


def test_the_same_pictures_are_at_no_distance():
    few = FIRST[:10]  # fewer pictures than dimensions
    assert frechet_distance(Moments.of(few), Moments.of(few)) == pytest.approx(0, abs=1e-6)
    assert manifold_metrics(FIRST, FIRST.copy(), 3)["precision"][0] == 1


def test_leaving_groups_out_is_computing_again(monkeypatch):
    monkeypatch.setattr("ppvilg.evaluation.metrics.distribution.ROWS", 64)
    generated, reference = sample(90, 5, dimensions=6), sample(120, 6, dimensions=6)
    groups = split(len(generated), 4)
    rests = [np.delete(generated, group, axis=0) for group in groups]
    again = [frechet_distance(Moments.of(rest), Moments.of(reference)) for rest in rests]
    assert frechet_leave_out(generated, Moments.of(reference), groups) == pytest.approx(again, rel=1e-9)
    within = np.array([[((x @ y) / 6 + 1) ** 3 for y in reference] for x in reference])
    within = (within.sum() - np.trace(within)) / (120 * 119)
    for rest, value in zip(rests, kernel_leave_out(generated, reference, groups)):
        kernel = (rest @ rest.T / 6 + 1) ** 3
        own = (kernel.sum() - np.trace(kernel)) / (len(rest) * (len(rest) - 1))
        assert value == pytest.approx(own + within - 2 * ((rest @ reference.T / 6 + 1) ** 3).mean(), rel=1e-9)
    left = manifold_metrics(reference, generated, 3, groups)
    for i, rest in enumerate(rests):
        for name, (value, _) in manifold_metrics(reference, rest, 3).items():
            assert left[name][1][i] == pytest.approx(value, rel=1e-12), name


def test_intervals_cover():
    """95 % intervals hold the mean over studies in about 95 % of 200 studies."""
    reference = sample(120, 1000, dimensions=4)
    settings = {"kid_subsets": 1, "kid_subset_size": 120, "nearest_k": 3}
    studies = [compare(sample(120, seed, 0.4, 4), reference, **settings) for seed in range(200)]
    for name in ("fid", "kid", "density"):
        truth = np.mean([study[name]["value"] for study in studies])
        covered = np.mean([study[name]["interval"][0] <= truth <= study[name]["interval"][1] for study in studies])
        assert 0.89 <= covered <= 0.99, (name, covered)


def test_interval_of_a_mean_is_students():
    values = np.random.default_rng(3).normal(size=40)
    left = [np.delete(values, i).mean() for i in range(40)]
    low, high = jackknife_interval(values.mean(), left)
    half = 2.0226909 * values.std(ddof=1) / np.sqrt(40)  # t of 39 degrees of freedom
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], rel=1e-6)


def test_groups_hold_everything_once():
    groups = split(103, 20, seed=2)
    assert sorted(np.concatenate(groups)) == list(range(103)) and {len(group) for group in groups} == {5, 6}
    assert len(split(3, 20)) == 3


def test_what_cannot_be_compared():
    wrong = FIRST.copy()
    wrong[7, 3] = np.nan
    with pytest.raises(ValueError, match="1 pictures are not finite, the first is number 7"):
        check_features(wrong)
    with pytest.raises(ValueError, match="at least 2 pictures"):
        Moments.of(FIRST[:1])
    with pytest.raises(ValueError, match="kid_subset_size=1000 must be from 2 to the 400 pictures"):
        compare(FIRST, SECOND)
    with pytest.raises(ValueError, match="nearest_k=400 must be from 1 to 379"):
        compare(FIRST, SECOND, ["prdc"], nearest_k=400)
    with pytest.raises(ValueError, match="use some of fid, kid, prdc"):
        compare(FIRST, SECOND, ["is"])
    with pytest.raises(ValueError, match="mean and covariance alone gives fid"):
        compare(FIRST, Moments.of(SECOND))
    with pytest.raises(ValueError, match="24 and of 6 dimensions"):
        frechet_distance(Moments.of(FIRST), Moments.of(FIRST[:, :6]))
    assert set(compare(FIRST, Moments.of(SECOND), ["fid"], groups=0)) == {"fid"}
