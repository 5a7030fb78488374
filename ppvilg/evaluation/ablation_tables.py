"""Cells of an ablation -> means over seeds with intervals, and paired differences to the family's first arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def student_interval(values: Sequence[float], confidence: float = 0.95) -> list[float] | None:
    """Interval of the mean of independent runs by Student's t; None for one run, which tells no spread."""
    from scipy.stats import t as student

    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return None
    half = student.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - half), float(values.mean() + half)]


def mean_over_seeds(values: Sequence[float]) -> dict:
    """{"mean", "interval", "values"}."""
    return {"mean": float(np.mean(values)), "interval": student_interval(values), "values": list(map(float, values))}


def table_of(arms: Sequence[Any], cells: Sequence[dict], recipe: Any) -> list[dict]:
    """One entry per arm of a family: its curve over guidance scales, and its best points against the first arm's.

    Differences are taken seed by seed, for all arms of a seed see the same samples: of FID and alignment, each the mean
    over all guidance scales, so that no scale is picked after the fact.
    """
    entries = []
    for arm in arms:
        own = [cell for cell in cells if (cell["knowledge"], cell["experts"]) == (arm.knowledge, arm.experts)]
        curve = []
        for scale in recipe.guidance_scales:
            at_scale = [cell for cell in own if cell["guidance_scale"] == scale]
            values = {name: mean_over_seeds([c[name] for c in at_scale]) for name in ("fid", "all", "criteria")}
            curve.append({"guidance_scale": scale, **values})
        by_seed = {
            name: [np.mean([c[name] for c in own if c["seed"] == seed]) for seed in recipe.seeds]
            for name in ("fid", "all", "criteria")
        }
        entry = {"knowledge": arm.knowledge, "experts": arm.experts, "curve": curve}
        entry["mean_over_scales"] = {name: mean_over_seeds(values) for name, values in by_seed.items()}
        first = entries[0]["mean_over_scales"] if entries else entry["mean_over_scales"]
        entry["difference_to_first"] = {
            name: mean_over_seeds(np.subtract(values, first[name]["values"])) for name, values in by_seed.items()
        }
        entries.append(entry)
    return entries
