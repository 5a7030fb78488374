"""Adapters that a service offers by name, and how requests choose them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppvilg.files import adapter_entry, adapter_file, file_sha256
from ppvilg.knowledge import NewWord

from ..errors import ServiceError

LARGEST_SCALE = 10.0
MOST_AT_ONCE = 8
_NAME = re.compile(r"[^\s<>:,=/\\][^<>:,=/\\\n]{0,63}")
_TAG = re.compile(r"<lora:([^<>:]*)((?::[^<>:]*)*)>")  # as A1111's users write it


@dataclass(frozen=True)
class OfferedAdapter:
    """An adapter that requests may choose."""

    name: str
    file: Path
    sha256: str
    words: tuple[NewWord, ...] = field(default=())  # that the model learns with it

    def describe(self) -> dict:
        """As JSON, without where it is on the disk."""
        return {"name": self.name, "sha256": self.sha256, "words": [word.word for word in self.words]}


def parse_offer(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH, or of a path, whose name is then that of its file. ValueError: no name."""
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).stem, text
    if not _NAME.fullmatch(name) or not path:
        raise ValueError(f"--lora {text!r}: write NAME=PATH, the name without < > : , = and slashes")
    return name, path


def read_offers(offers: Mapping[str, str]) -> dict[str, OfferedAdapter]:
    """The adapters of these names and paths. FileNotFoundError and ValueError name what is missing or damaged."""
    found = {}
    for name, path in offers.items():
        file = adapter_file(path)
        try:
            words = tuple(NewWord(**word) for word in adapter_entry(file).get("words", []))
        except (TypeError, ValueError) as error:
            raise ValueError(f"adapter {name!r}: {error}") from None
        found[name] = OfferedAdapter(name, file, file_sha256(file), words)
    return found


def chosen(value: object, offered: Mapping[str, OfferedAdapter], num_experts: int) -> dict[str, float | list[float]]:
    """The setting `lora` of a request: scales by name, one number or one per expert. ServiceError: what is wrong."""
    if not isinstance(value, Mapping) or len(value) > MOST_AT_ONCE:
        raise ServiceError("invalid", f"lora must be an object of up to {MOST_AT_ONCE} names and their scales", "lora")
    for name in value:
        if name not in offered:
            there = "、".join(offered) or "none"
            raise ServiceError("invalid", f"unknown lora {str(name)[:40]!r}; there are {there}", "lora")
    settings = {name: _scale(name, scale, num_experts) for name, scale in sorted(value.items())}
    teachers: dict[str, str] = {}
    for name in (name for name, scale in settings.items() if scale and scale != [0.0] * num_experts):
        for word in offered[name].words:
            other = teachers.setdefault(word.key, name)
            if other != name:
                raise ServiceError("invalid", f"{other!r} and {name!r} both teach {word.word!r}: choose one", "lora")
    return settings


def words_of_choice(settings: Mapping, offered: Mapping[str, OfferedAdapter]) -> tuple[NewWord, ...]:
    """New words that the model knows in a job of these settings."""
    heard = [name for name, scale in settings.items() if (any(scale) if isinstance(scale, list) else scale)]
    return tuple(word for name in heard if name in offered for word in offered[name].words)


def _scale(name: str, scale: object, num_experts: int) -> float | list[float]:
    several = list(scale) if isinstance(scale, (list, tuple)) else [scale]
    real = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in several)
    if not real or not all(math.isfinite(each) and abs(each) <= LARGEST_SCALE for each in several):
        message = f"the scale of lora {name!r} must be from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}, got {scale!r:.40}"
        raise ServiceError("invalid", message, "lora")
    if not isinstance(scale, (list, tuple)):
        return float(scale)
    if len(several) != num_experts:
        message = f"lora {name!r} has {len(several)} scales, the model {num_experts} experts"
        raise ServiceError("invalid", message, "lora")
    return [float(each) for each in several]


# ---- <lora:name:scale>, in prompts of A1111's users ----


def take_tags(prompt: str) -> tuple[str, dict]:
    """(prompt without its tags, scales by name). ServiceError invalid: a tag's scale is no number."""
    found = {}
    for tag in _TAG.finditer(prompt):
        name, given = tag[1].strip(), tag[2].removeprefix(":")
        try:
            scales = [float(each) for each in given.split(",")] if given else [1.0]
        except ValueError:
            message = f"{tag[0][:60]!r}: write <lora:name:scale>, the scale one number or one per expert, 0,0,0.5,1"
            raise ServiceError("invalid", message, "prompt") from None
        found[name] = scales[0] if len(scales) == 1 else scales
    return re.sub(r" {2,}", " ", _TAG.sub("", prompt)).strip() if found else prompt, found


def tags_of(settings: Mapping) -> str:
    """The tags that choose the same."""
    numbers = {name: scale if isinstance(scale, list) else [scale] for name, scale in settings.items()}
    return "".join(f"<lora:{name}:{','.join(f'{each:g}' for each in scales)}>" for name, scales in numbers.items())
