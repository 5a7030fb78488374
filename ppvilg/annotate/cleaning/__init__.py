"""Clean-up: stages that leave samples out, each by its own reason, and near duplicates over all shards."""

from __future__ import annotations

from dataclasses import dataclass

from ..stage import Stage
from .duplicates import HashStage, mark_duplicates
from .language import LanguageStage
from .safety import SafetyStage
from .size import SizeStage
from .text import TextStage

__all__ = ["Cleaning", "HashStage", "LanguageStage", "SafetyStage", "SizeStage", "TextStage", "mark_duplicates"]


@dataclass(frozen=True)
class Cleaning:
    """What a run leaves out; None (or False): nothing for this reason.

    min_side: pixels of the shorter side. max_aspect: longer by shorter side. language: "zh" or "en", of a caption.
    max_text: share of the picture that text covers. max_nsfw: score of the not-safe filter. hashes: note the
    perceptual hash of each picture, for `mark_duplicates`.
    """

    min_side: int | None = None
    max_aspect: float | None = None
    language: str | None = None
    max_text: float | None = None
    max_nsfw: float | None = None
    hashes: bool = False

    def stages(self) -> list[Stage]:
        """The stages asked for, the cheapest first; ModuleNotFoundError names what must be installed for one."""
        found: list[Stage] = []
        if self.min_side is not None or self.max_aspect is not None:
            found.append(SizeStage(self.min_side, self.max_aspect))
        if self.language is not None:
            found.append(LanguageStage(self.language))
        if self.hashes:
            found.append(HashStage())
        if self.max_nsfw is not None:
            found.append(SafetyStage(self.max_nsfw))
        if self.max_text is not None:
            found.append(TextStage(self.max_text))
        return found
