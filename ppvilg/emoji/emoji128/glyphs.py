"""One object in one drawing style, as RGBA."""

from __future__ import annotations

import io
import json
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from .objects import thing_by_label
from .packages import FLUENT_3D, FLUENT_FLAT, NOTO, Package, open_package

SIZE = 256  # pixels of what the sets are read in
_VECTOR_SETS = {"noto": NOTO, "flat": FLUENT_FLAT}


def require_rasterizer() -> None:
    """ValueError with the pip command unless the library that draws SVG is installed."""
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ValueError("two sets of emoji are SVG, which resvg-py draws: pip install 'ppvilg[data]'") from error


@cache
def draw_glyph(label: str, glyph_set: str, size: int) -> Image.Image:
    """The object cropped to its drawn pixels and scaled so that its longer side is `size` pixels.

    glyph_set: "noto", "3d", "flat", or "line" (dark contours on white, of the flat set).
    """
    whole = _outline(_whole(label, "flat")) if glyph_set == "line" else _whole(label, glyph_set)
    glyph = whole.crop(whole.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox())
    scale = size / max(glyph.size)
    glyph = glyph.resize(tuple(max(1, round(side * scale)) for side in glyph.size), Image.Resampling.LANCZOS)
    if glyph_set == "line":  # resizing thins the lines
        glyph = Image.merge("RGBA", [*glyph.convert("L").point(_darken).convert("RGB").split(), glyph.getchannel("A")])
    return glyph


def _darken(grey: int) -> int:
    return max(0, min(255, round(255 - (255 - grey) * 1.6)))


def _names_of(emoji: str) -> list[str]:
    """File names that sets give an emoji: its code points, with or without the sign that asks for colour."""
    points = [f"{ord(character):04x}" for character in emoji]
    bare = "-".join(point for point in points if point != "fe0f")
    return ["-".join(points), bare, f"{bare}-fe0f"]


@cache
def _whole(label: str, glyph_set: str) -> Image.Image:
    emoji = thing_by_label(label).emoji
    if glyph_set == "3d":
        files = open_package(FLUENT_3D)
        for name in _names_of(emoji):
            if f"assets/{name}.webp" in files:
                picture = Image.open(io.BytesIO(files[f"assets/{name}.webp"])).convert("RGBA")
                return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        raise ValueError(f"{FLUENT_3D.name} has no picture of {label} ({emoji})")
    return _rasterize(_VECTOR_SETS[glyph_set], emoji, label)


@cache
def _icons(package: Package) -> tuple[dict, dict]:
    """(all icons, name by code points) of an Iconify set."""
    files = open_package(package)
    return json.loads(files["icons.json"]), json.loads(files["chars.json"])


def _rasterize(package: Package, emoji: str, label: str) -> Image.Image:
    import resvg_py

    icons, names = _icons(package)
    name = next((names[each] for each in _names_of(emoji) if each in names), None)
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    if name not in icons["icons"]:
        raise ValueError(f"{package.name} has no picture of {label} ({emoji})")
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="{SIZE}" height="{SIZE}">'
        f"{icon['body']}</svg>"
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def _outline(glyph: Image.Image) -> Image.Image:
    """Dark lines where colours meet and around the whole, on a white figure."""
    alpha = glyph.getchannel("A")
    padded = Image.new("RGBA", glyph.size, (255, 255, 255, 255))
    padded.alpha_composite(glyph)
    colours = np.asarray(padded.convert("RGB").filter(ImageFilter.MedianFilter(5)), dtype=np.int16)
    solid = np.asarray(alpha) > 127
    edges = np.zeros(solid.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(colours, axis=axis)).max(axis=2) > 24
        border = np.diff(solid.astype(np.int8), axis=axis) != 0
        first = (slice(0, -1), slice(None)) if axis == 0 else (slice(None), slice(0, -1))
        edges[first] |= step | border
    lines = Image.fromarray((edges * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    lines = lines.filter(ImageFilter.GaussianBlur(1))
    figure = Image.fromarray((solid * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    ink = Image.composite(Image.new("L", glyph.size, 28), Image.new("L", glyph.size, 252), lines)
    return Image.merge("RGBA", (ink, ink, ink, figure))
