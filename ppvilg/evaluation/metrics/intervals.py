"""How sure a measured share, mean or difference is; one value per independent unit: a prompt, a pair, a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def share(values: Sequence[float]) -> dict:
    """{"mean", "interval", "count"} of one number in [0, 1] per unit; `mean` and `interval` are None without values."""
    return _entry(values, share_interval)


def average(values: Sequence[float]) -> dict:
    """{"mean", "interval", "count"} of one number per unit, whatever its range; `interval` is None for one value."""
    return _entry(values, mean_interval)


def _entry(values: Sequence[float], interval: object) -> dict:
    if not len(values):
        return {"mean": None, "interval": None, "count": 0}
    bounds = interval(values)
    return {"mean": float(np.mean(values)), "interval": None if bounds is None else list(bounds), "count": len(values)}


def share_interval(
    values: Sequence[float], strata: Sequence[int] | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of `values` in [0, 1], one per independent unit: yes or no, or the mean of its answers.

    Yes and no (0 and 1): Wilson's (1927) score interval. Else Wilson's at the effective sample size p (1 - p) / SE^2,
    with Student's t for the normal quantile, as surveys do (Korn and Graubard 1998; Dean and Pagano 2015). SE comes
    from the differences between units alone, so that a unit counts once however many answers it has; where SE is 0 the
    effective size is the number of units. strata: class of each value, whose share is fixed by design; then differences
    between classes do not count (used when every class has two values or more). ValueError: values that are no shares.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"the interval of a share needs numbers from 0 to 1, got {values[:5].tolist()}")
    count, mean = len(values), float(values.mean())
    if strata is None and np.isin(values, (0, 1)).all():
        low, high = stats.binomtest(int(values.sum()), count).proportion_ci(confidence, method="wilson")
        return float(low), float(high)
    if count == 1:
        return 0.0, 1.0
    variance, freedom = _variance_of_mean(values, strata)
    spread = mean * (1 - mean)
    size = spread / variance if variance > 1e-12 and spread > 0 else float(count)
    square = stats.t.ppf((1 + confidence) / 2, freedom) ** 2
    centre = (mean + square / (2 * size)) / (1 + square / size)
    half = np.sqrt(square * (spread / size + square / (4 * size**2))) / (1 + square / size)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _variance_of_mean(values: np.ndarray, strata: Sequence[int] | None) -> tuple[float, int]:
    """(squared standard error of the mean, degrees of freedom)."""
    count = len(values)
    if strata is not None:
        _, numbers, sizes = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
        if sizes.min() > 1:
            centred = values - (np.bincount(numbers, values) / sizes)[numbers]
            within = np.bincount(numbers, centred**2) / (sizes - 1)  # variance of each class
            return float((sizes * within).sum() / count**2), count - len(sizes)
    return float(values.var(ddof=1) / count), count - 1


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the mean of numbers without known bounds by Student's t; None for one value, which tells no spread.

    ValueError for no values, or ones that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"the interval of a mean needs a list of finite numbers, got shape {values.shape}")
    if len(values) < 2:
        return None
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def difference_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean difference of two shares of the same units: one difference in [-1, 1] per unit.

    Half a unit of each possible outcome is added to what was seen (Agresti and Min 2005), so that few units that
    differ, or none, do not pass for certainty. ValueError for other numbers.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not (np.abs(values) <= 1).all():
        raise ValueError(f"the interval of a difference needs several numbers in [-1, 1], got {values[:5].tolist()}")
    count = len(values) + 2  # of the four outcomes two make no difference, one 1 and one -1
    mean = values.sum() / count
    variance = (np.square(values).sum() + 1) / count - mean**2
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.sqrt(variance / count)
    return float(max(-1.0, mean - half)), float(min(1.0, mean + half))
