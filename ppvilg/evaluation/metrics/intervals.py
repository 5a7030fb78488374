"""How sure a measured mean is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron and Tibshirani 1993, chapter 13).

    One value per independent unit (prompt). Where all values are equal the interval is a point: it then says nothing
    about how rare the exception is. ValueError for no values, or ones that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"the interval of a mean needs a list of finite numbers, got shape {values.shape}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, and resamples={resamples} be at least 1")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def share(values: Sequence[float], resamples: int = 2000) -> dict:
    """Mean, 95 % interval and number of values, ready for JSON; `mean` and `interval` are None without values."""
    if not len(values):
        return {"mean": None, "interval": None, "count": 0}
    interval = bootstrap_interval(values, resamples=resamples)
    return {"mean": float(np.mean(values)), "interval": list(interval), "count": len(values)}
