"""Cells of an ablation -> means over seeds with intervals, and paired differences to the family's first arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..metrics.intervals import difference_interval, mean_interval, share_interval


def mean_over_seeds(values: Sequence[float]) -> dict:
    """{"mean", "interval", "values"}."""
    interval = mean_interval(values)
    return {"mean": float(np.mean(values)), "interval": interval and list(interval), "values": list(map(float, values))}


def table_of(arms: Sequence[Any], cells: Sequence[dict], recipe: Any) -> list[dict]:
    """One entry per arm of a family: its curve over guidance scales, and its best points against the first arm's.

    Differences are taken seed by seed, for all arms of a seed see the same samples: of FID and alignment, each the mean
    over all guidance scales, so that no scale is picked after the fact. "right" is the share of prompts with everything
    right and its difference to the first arm's, in percent, with 95 % intervals over prompts: how far other
    prompts would have changed them, where the intervals over seeds tell of other trainings.
    """
    entries, right_of_first = [], None
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
        right = np.mean([cell["right"] for cell in own], axis=0)  # (prompts,)
        right_of_first = right if right_of_first is None else right_of_first
        entry["right"] = over_prompts(right, share_interval)
        entry["right_difference_to_first"] = over_prompts(right - right_of_first, difference_interval)
        entries.append(entry)
    return entries


def over_prompts(values: np.ndarray, interval: Callable) -> dict:
    """{"mean", "interval"} in percent of one number per prompt."""
    return {"mean": 100 * float(np.mean(values)), "interval": [100 * bound for bound in interval(values)]}


def losses_of(arms: Sequence[Any], measured: Sequence[dict]) -> list[dict]:
    """One entry per arm of a family: its loss per block and their mean, and the same as a ratio to the first arm's.

    Ratios are taken seed by seed, minus one, in percent: -3.0 says that the loss is 3 % lower.
    """
    entries, first = [], None
    for arm in arms:
        own = [line for line in measured if (line["knowledge"], line["experts"]) == (arm.knowledge, arm.experts)]
        table = np.array([[*line["blocks"], np.mean(line["blocks"])] for line in own])  # (seeds, blocks + 1)
        first = table if first is None else first
        change = 100 * (table / first - 1)
        entry = {"knowledge": arm.knowledge, "experts": arm.experts}
        entry["loss"] = [mean_over_seeds(column) for column in table.T]
        entry["percent_change_to_first"] = [mean_over_seeds(column) for column in change.T]
        entries.append(entry)
    return entries
