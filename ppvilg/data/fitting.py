"""Shapes that fit a data set: sizes of one area whose ratios lose least of its pictures when they are cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SCAN = 2**18  # samples looked at together
_STEPS = 200  # per unit of log(width / height): half a percent
_WIDEST = 4.0  # width over height, or height over width
_ENOUGH = 0.005  # of the pictures' area: fewer shapes are better than so little more of it


@dataclass(frozen=True)
class FittedShape:
    """A shape (width, height), the share of the pictures that it is nearest to, and of these what is cropped away."""

    shape: tuple[int, int]
    share: float
    cropped: float


def candidate_shapes(area: int, multiple: int) -> list[tuple[int, int]]:
    """Every (width, height) in multiples of `multiple` that no larger one of at most `area` pixels contains.

    Ascending by width / height, which is 4 at most.
    """
    sides = [multiple * n for n in range(1, int(math.sqrt(area * _WIDEST)) // multiple + 1)]
    tallest = {width: area // width // multiple * multiple for width in sides}
    found = [(width, height) for width, height in tallest.items()
             if height and tallest.get(width + multiple, 0) < height and 1 / _WIDEST <= width / height <= _WIDEST]
    if not found:
        raise ValueError(f"{area} pixels are too few for sides that are multiples of {multiple}")
    return sorted(found, key=lambda shape: shape[0] / shape[1])


def fit_shapes(sizes, area: int, multiple: int, most: int) -> list[FittedShape]:
    """At most `most` of the candidates for pictures of these sizes (n, 2): those that lose least of them all together.

    sizes: anything that gives rows by slices. Fewer are taken where more would save less than 0.5 % of the area. Found
    by dynamic programming over ratios, so no other choice of as many loses less.
    """
    ratios, counts = _ratios(sizes)
    shapes = candidate_shapes(area, multiple)
    loss = 1.0 - np.exp(-np.abs(np.log([w / h for w, h in shapes])[:, None] - ratios[None]))  # (shapes, ratios)
    chosen = _choose(loss * counts, min(most, len(shapes)), _ENOUGH * counts.sum())
    nearest = loss[chosen].argmin(axis=0)
    found = []
    for place, number in enumerate(chosen):
        mine = nearest == place
        if mine.any():
            cropped = np.average(loss[number, mine], weights=counts[mine])
            found.append(FittedShape(shapes[number], float(counts[mine].sum() / counts.sum()), float(cropped)))
    return sorted(found, key=lambda each: -each.share)


def _ratios(sizes) -> tuple[np.ndarray, np.ndarray]:
    """(log(width / height) (k,) ascending, rounded; how many pictures have each (k,))."""
    tally: dict[int, int] = {}
    for start in range(0, len(sizes), _SCAN):
        logs = np.log(np.asarray(sizes[start : min(start + _SCAN, len(sizes))], np.float64))
        for step, count in zip(*np.unique(np.rint((logs[:, 0] - logs[:, 1]) * _STEPS), return_counts=True)):
            tally[int(step)] = tally.get(int(step), 0) + int(count)
    steps = sorted(tally)
    return np.array(steps) / _STEPS, np.array([tally[step] for step in steps])


def _choose(loss: np.ndarray, most: int, enough: float) -> list[int]:
    """Rows of loss (shapes, ratios), both ascending by ratio, at most `most`, whose minima have the least sum.

    Of fewer rows, those that come within `enough` of it.
    """
    shapes = len(loss)
    saved = np.full((shapes, shapes), np.inf)  # what a later shape adds to an earlier one, which is its neighbour
    for i in range(shapes - 1):
        saved[i, i + 1 :] = np.minimum(0.0, loss[i + 1 :] - loss[i]).sum(1)
    best, origins = [loss.sum(1)], []  # (shapes,) each: least sum of so many shapes, the last of them being this one
    for _ in range(1, most):
        sums = best[-1][:, None] + saved  # (shapes, shapes)
        origins.append(sums.argmin(0))
        best.append(sums.min(0))
    totals = np.array([each.min() for each in best])
    count = int(np.argmax(totals <= totals.min() + enough))
    chosen = [int(best[count].argmin())]
    for origin in reversed(origins[:count]):
        chosen.append(int(origin[chosen[-1]]))
    return chosen[::-1]
