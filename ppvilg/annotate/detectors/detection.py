"""What a detector gives, and what every detector is to the stage that runs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from PIL import Image

from ..stage import Rejection


class Detection(NamedTuple):
    """One object: the detector's own label, its score, and (left, top, right, bottom) in pixels of the picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Detector(Protocol):
    """`identity`: kind, hash of the model, preprocessing, threshold, hash of the label map; what decides the boxes."""

    identity: dict

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection] | Rejection]:
        """The objects of each upright RGB picture, or why there is no answer about it."""

    def close(self) -> None:
        """Let go of what it holds."""


def fit(detections: Iterable[Detection], size: tuple[int, int], min_score: float) -> list[Detection]:
    """Those with a score of at least `min_score`, best first, cut to a picture of (width, height).

    Boxes of which nothing lies inside are left out. ValueError: a number that is none, a score outside [0, 1].
    """
    width, height = size
    kept = []
    for label, score, box in detections:
        if not (isinstance(label, str) and label):
            raise ValueError(f"label {label!r} is no text")
        if not all(map(math.isfinite, (score, *box))):
            raise ValueError(f"box {list(box)} or score {score} of {label!r} is not finite")
        if not 0 <= score <= 1.0001:
            raise ValueError(f"score {score} of {label!r} is not within [0, 1]")
        left, top, right, bottom = box
        inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        inside = tuple(round(float(value), 2) for value in inside)
        if score >= min_score and inside[0] < inside[2] and inside[1] < inside[3]:
            kept.append(Detection(label, round(min(float(score), 1.0), 4), inside))
    return sorted(kept, key=lambda each: -each.score)
