"""Text in pictures: watermarks, subtitles, posters, screenshots, which a model would learn to scribble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..stage import Rejection, Sample
from .libraries import library_identity, open_library

MIN_SCORE = 0.8  # text that is read with less is texture, as a rule
_LONGEST_ASPECT = 50  # rapidocr fails on pictures that are narrower


class TextStage:
    """Leaves out pictures of which text covers more than the share `max_share`, 0 to 1.

    PP-OCR by way of rapidocr; what is read with a score under 0.8 does not count. ValueError: no such share;
    ModuleNotFoundError.
    """

    name = "text"

    def __init__(self, max_share: float = 0.0):
        if not 0 <= max_share <= 1:
            raise ValueError(f"the share of a picture that text may cover is from 0 to 1, got {max_share}")
        library = open_library("rapidocr", "rapidocr", "finding text in pictures")
        self.max_share = max_share
        self._engine = library.RapidOCR(params={"Global.text_score": MIN_SCORE, "Global.log_level": "error"})
        models = Path(library.__file__).with_name("models").glob("*.onnx")
        self.identity = {"max_share": max_share, "min_score": MIN_SCORE, **library_identity("rapidocr", models)}

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """It holds nothing open."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """{"text": {"share", "lines"}} where there is some, or why a picture is left out."""
        return [self._look_at(sample.picture) for sample in batch]

    def _look_at(self, picture: Image.Image) -> dict | Rejection:
        if max(picture.size) > _LONGEST_ASPECT * min(picture.size):
            return {}
        found = self._engine(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]), text_score=MIN_SCORE)  # BGR
        lines = list(found.txts or ())
        if not lines:
            return {}
        share = round(sum(map(_area, found.boxes)) / (picture.width * picture.height), 4)
        if share > self.max_share:
            return Rejection(f"text covers {share:.2%} of it, more than {self.max_share:.2%} ({lines[0]!r})")
        return {"text": {"share": share, "lines": lines}}


def _area(corners: np.ndarray) -> float:
    """Of a quadrilateral (4, 2) in pixels, by the shoelace formula."""
    x, y = np.asarray(corners, np.float64).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
