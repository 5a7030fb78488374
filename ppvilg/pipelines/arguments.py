"""Arguments of a call, checked."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import PIL.Image


def _one_each(name: str, value: str | Sequence[str] | None, count: int) -> list[str | None]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} prompts")
    if not all(entry is None or isinstance(entry, str) for entry in values):
        raise ValueError(f"{name} must be a text or a list of texts, got {value!r}")
    return values


def _picture_size(image) -> tuple[int, int]:
    """(height, width) of the first of the pictures in any of the accepted forms."""
    first = image[0] if isinstance(image, (list, tuple)) else image
    if isinstance(first, PIL.Image.Image):
        return first.height, first.width
    height, width = first.shape[-2:] if isinstance(first, paddle.Tensor) else first.shape[-3:-1]
    return int(height), int(width)
