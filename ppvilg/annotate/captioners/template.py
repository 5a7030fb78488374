"""Captions from boxes alone, 图中有两只猫和一张沙发: no weights, and nothing said of which the detector is not sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from ppvilg.knowledge.names import is_chinese, open_names

from ..detectors import Detection

_NUMBERS = ("", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")


class TemplateCaptioner:
    """Counts objects of each kind, in the order of their largest box; labels that have no Chinese name are left out.

    min_score: objects below it are not spoken of. names: tables of names, files or those that come with ppvilg.
    """

    def __init__(self, min_score: float, names: Sequence[str]):
        self.min_score, self.names = min_score, open_names(names)
        self.identity = {"kind": "template", "threshold": min_score, "names": self.names.identity}

    def caption(self, pictures: Sequence[Image.Image], detections: Sequence[Sequence[Detection]]) -> list[str]:
        """A caption for each picture, "" where nothing was found for sure."""
        return [self._say(found) for found in detections]

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, detections: Sequence[Detection]) -> str:
        sure = [each for each in detections if each.score >= self.min_score and is_chinese(self._name(each.label))]
        counts = Counter(each.label for each in sorted(sure, key=_area, reverse=True))
        parts = [self._part(label, count) for label, count in counts.items()]
        if not parts:
            return ""
        *first, last = parts
        return "图中有" + ("、".join(first) + "和" if first else "") + last

    def _name(self, label: str) -> str:
        return self.names.name_of(label) or label

    def _part(self, label: str, count: int) -> str:
        name = self._name(label)
        return f"许多{name}" if count >= len(_NUMBERS) else f"{_NUMBERS[count]}{self.names.measure_of(label)}{name}"


def _area(detection: Detection) -> float:
    left, top, right, bottom = detection.box
    return (right - left) * (bottom - top)
