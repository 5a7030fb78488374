"""Captions in another language than the model's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..stage import Rejection, Sample
from .libraries import library_identity, open_library

LANGUAGES = ("zh", "en")
# Of all that py3langid knows those that captions from the web are in
_KNOWN = "en fr de es it pt ru nl pl ar th vi tr id sv da cs hu el he hi uk ro fi zh ja ko".split()
_SHORTEST = 20  # characters of Latin text: of shorter ones a quarter is taken for another language
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
# Scripts tell these apart where statistics take 猫 for Arabic; the first that is found decides
_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "zh": re.compile("[\u3400-\u9fff]"),
}
_LEAST_SHARE = 0.2  # of characters of such a script among letters: "a bowl of 拉面" is English


class LanguageStage:
    """Leaves out samples none of whose captions is in `language`, "zh" or "en".

    Captions that others made are looked at, not generated ones; a sample without any passes. Latin text of under 20
    characters is too short to tell, and passes for English. ValueError: another language; ModuleNotFoundError.
    """

    name = "language"

    def __init__(self, language: str = "zh"):
        if language not in LANGUAGES:
            raise ValueError(f"language of captions must be one of {', '.join(LANGUAGES)}, got {language!r}")
        library = open_library("py3langid.langid", "py3langid", "the language of captions")
        self.language = language
        self._identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
        self._identifier.set_languages(_KNOWN)
        self.identity = {"language": language, **library_identity("py3langid")}

    def start(self) -> None:
        """Captions are looked at one by one."""

    def close(self) -> None:
        """It holds nothing open."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """No fields, or why a sample is left out."""
        return [self._look_at(sample) for sample in batch]

    def _look_at(self, sample: Sample) -> dict | Rejection:
        texts = [text for kind, text in sample.captions.items() if kind != "generated" and text.strip()]
        found = list(dict.fromkeys(map(self.language_of, texts)))
        if not texts or self.language in found:
            return {}
        return Rejection(f"its caption is in another language ({', '.join(found)})")

    def language_of(self, text: str) -> str:
        """ISO 639-1 code; of a Latin text that is too short to tell "en" if that is wanted, else a remark."""
        latin = len(_LATIN.findall(text))
        written = sum(len(script.findall(text)) for script in _SCRIPTS.values())
        if written and written >= _LEAST_SHARE * (written + latin):
            return next(language for language, script in _SCRIPTS.items() if script.search(text))
        if len(text) >= _SHORTEST or not latin:
            return self._identifier.classify(text)[0]
        return "en" if self.language == "en" else "too short to tell, but not Chinese"
