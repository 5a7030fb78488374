"""Which of the ten background colours a picture has, measured on the pixels outside its objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from ppvilg.emoji.objects import BACKGROUNDS
from ppvilg.emoji.render import apply_style_filter
from ppvilg.emoji.scenes import STYLES

MAXIMUM_DISTANCE = 36.0  # 8-bit RGB levels; farther from every reference a pixel has no colour name
SMALLEST_SHARE = 0.6  # of the pixels outside the objects that must agree
FRAME = 4  # pixels; what stands in for the outside when boxes leave nothing


@cache
def reference_colours() -> tuple[tuple[str, ...], np.ndarray]:
    """Names (M,) and RGB values (M, 3): every background as it is and as each style renders it."""
    names, colours = [], []
    for background in BACKGROUNDS:
        plain = Image.new("RGB", (64, 64), background.rgb)
        for picture in (plain, *(apply_style_filter(plain, style, 48) for style in STYLES)):
            names.append(background.name)
            colours.append(np.median(np.asarray(picture).reshape(-1, 3), axis=0))
    return tuple(names), np.array(colours)


def background_colour(pixels: np.ndarray, boxes: Sequence[tuple[float, float, float, float]]) -> str | None:
    """Name of the colour most pixels (H, W, 3) outside `boxes` have; None when they do not agree on a known one."""
    outside = np.ones(pixels.shape[:2], dtype=bool)
    for x0, y0, x1, y1 in boxes:
        outside[max(int(y0) - 2, 0) : int(y1) + 3, max(int(x0) - 2, 0) : int(x1) + 3] = False
    if not boxes or not outside.any():
        outside[:] = True
        outside[FRAME:-FRAME, FRAME:-FRAME] = False
    names, colours = reference_colours()
    values = pixels[outside].astype(np.float64)  # (P, 3)
    distances = np.linalg.norm(values[:, None] - colours, axis=-1)  # (P, M)
    nearest = distances.argmin(axis=1)
    known = distances.min(axis=1) <= MAXIMUM_DISTANCE
    votes = dict.fromkeys(names, 0)
    for index, number in zip(*np.unique(nearest[known], return_counts=True)):
        votes[names[index]] += int(number)
    name = max(votes, key=votes.get)
    return name if votes[name] >= SMALLEST_SHARE * len(values) else None
