"""PATH[:SCALE], as command lines, recipes and settings name an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .limits import ConfigError


def parse_adapter(text: str) -> tuple[Path, float | list[float]]:
    """(path, scale) of PATH or PATH:SCALE, one number or one per expert. ConfigError: SCALE is no number."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        scales = [float(each) for each in scale.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}: {scale!r} is no scale, such as 0.8 or 0,0,0.5,1") from None
    if not all(map(math.isfinite, scales)):
        raise ConfigError(f"{text!r}: a scale must be finite")
    return Path(path), scales[0] if len(scales) == 1 else scales


def parse_adapters(value: Any) -> list[tuple[Path, float | list[float]]]:
    """Those of a recipe's `lora`: None, one text, or a list of texts. ConfigError: it is something else."""
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"lora={value} must be PATH, PATH:SCALE or a list of them")
    return [parse_adapter(text) for text in texts]
