"""Grids of pictures, and PNG files that remember how they were made."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence

from PIL import Image, PngImagePlugin

from ppvilg.files import write_whole


def make_grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One white sheet with the pictures in rows of `columns`; cells are as large as the largest picture."""
    if not images or columns < 1:
        raise ValueError(f"a grid needs pictures and columns, got {len(images)} pictures and {columns} columns")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = (max(image.size[axis] for image in images) + gap for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for i, image in enumerate(images):
        left = gap + i % columns * width + (width - gap - image.width) // 2
        top = gap + i // columns * height + (height - gap - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet


def save_png(
    image: Image.Image, path: str | os.PathLike, metadata: Mapping[str, object], replace: bool = False
) -> None:
    """Writes a PNG, whole or not at all, with `metadata` as UTF-8 text chunks (None left out).

    FileExistsError if the file is there, unless `replace`.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        if value is not None:
            info.add_itxt(key, str(value))
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=info)
    write_whole(path, content.getvalue(), replace)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text chunks of a PNG."""
    with Image.open(path) as image:
        image.load()
        return {key: str(value) for key, value in image.text.items()}
