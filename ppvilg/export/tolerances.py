"""How far an exported part, or a trajectory of them, may be from the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class ProofError(ValueError):
    """An exported part, or a trajectory, is not what the dygraph model is."""


# A graph may differ from a dygraph layer with the same (stored, widened) weights by so much of the output's standard
# deviation, at its largest; pictures from those of the model as it was, by so much on average, in [0, 1]; latents,
# when experts are exported alone, by so much of their standard deviation, at its largest. Where a back end computes in
# bfloat16 or float16 (8 or 11 bits of mantissa) the largest of thousands of rounding errors says little about a fault:
# parts are held to a root mean square, and pictures and latents may be further off, also from what narrower weights
# allow.
PART_TOLERANCE = 1e-4
PICTURE_TOLERANCE = {"float32": 1 / 255, "float16": 1 / 255, "int8": 8 / 255}
LATENT_TOLERANCE = {"float32": 1e-2, "float16": 1e-1, "int8": 0.5}
NARROW_TOLERANCE = {"part_rms": 1e-1, "pictures": 2 / 255, "latents": 0.3}


def picture_tolerance(weights: str, precision: str) -> float:
    """Mean error of a picture, in [0, 1], with weights stored like this, computed in this precision."""
    return PICTURE_TOLERANCE[weights] + (0.0 if precision == "float32" else NARROW_TOLERANCE["pictures"])


def latent_tolerance(weights: str, precision: str) -> float:
    """Largest error of latents after a trajectory, in their standard deviations."""
    return LATENT_TOLERANCE[weights] + (0.0 if precision == "float32" else NARROW_TOLERANCE["latents"])


def measure_part(found: list[list[np.ndarray]], expected: list[list[np.ndarray]], precision: str) -> dict[str, float]:
    """Errors of a part's outputs on all cases; ProofError, without the part's name, if they are too large."""
    measured = {"max_error": largest_error(found, expected)}
    error, tolerance = measured["max_error"], PART_TOLERANCE
    if precision != "float32":
        error = measured["rms_error"] = largest_error(found, expected, root_mean_square)
        tolerance = NARROW_TOLERANCE["part_rms"]
    if not error <= tolerance:
        raise ProofError(f"is off by {error:.3g} of its output's standard deviation (allowed: {tolerance:g})")
    return measured | {"cases": len(expected)}


def largest_error(found: list[list[np.ndarray]], expected: list[list[np.ndarray]], norm: Callable = np.max) -> float:
    """The largest `relative_error` of all outputs of all cases."""
    return max(relative_error(*pair, norm) for case in zip(found, expected) for pair in zip(*case))


def root_mean_square(values: np.ndarray) -> float:
    """A norm for `largest_error`."""
    return float(np.sqrt(np.mean(np.square(values))))


def relative_error(found: np.ndarray, expected: np.ndarray, norm: Callable = np.max) -> float:
    """norm |found - expected| / std(expected); infinite for other shapes or values that are not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(norm(np.abs(found - expected)) / max(float(expected.std()), 1e-12))


def picture_errors(found: np.ndarray, expected: np.ndarray) -> list[float]:
    """Mean |difference| of each picture; infinite for other shapes or values that are not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return [float("inf")]
    return [float(value) for value in np.abs(found - expected).mean(axis=(1, 2, 3))]
