"""Scene -> picture and boxes: objects of open emoji sets on colours or scenery, two styles made with filters."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..render import pixel_art, watercolour
from ..scenes import Scene
from .glyphs import draw_glyph
from .objects import background_by_name
from .styles import style_by_name


def render(scene: Scene) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """RGB picture and one box (x0, y0, x1, y1), in pixels, around the drawn pixels of each object."""
    style = style_by_name(scene.style)
    image = draw_background(scene.background, scene.width, scene.height, style.glyph_set == "line").copy()
    boxes = []
    for placement in scene.objects:
        glyph = draw_glyph(placement.name, style.glyph_set, placement.size)
        x = placement.x + (placement.size - glyph.width) // 2
        y = placement.y + (placement.size - glyph.height) // 2
        image.paste(glyph, (x, y), glyph)
        boxes.append((x, y, x + glyph.width, y + glyph.height))
    if style.picture_filter == "pixel_art":
        image = pixel_art(image, cell=4 if scene.objects[0].size >= 64 else 2, colours=20)
    elif style.picture_filter == "watercolour":
        image = watercolour(image)
    return image, boxes


@cache
def draw_background(name: str, width: int, height: int, lines: bool) -> Image.Image:
    """A plain colour or scenery, RGB. lines: scenery as dark contours on white, for line drawings."""
    background = background_by_name(name)
    if background.rgb is not None:
        return Image.new("RGB", (width, height), background.rgb)
    image = _SCENERY[name](width, height)
    return _contours(image) if lines else image


def _contours(image: Image.Image) -> Image.Image:
    """White paper, a grey line where areas meet."""
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: 255 if value > 24 else 0)
    ImageDraw.Draw(edges).rectangle((0, 0, image.width - 1, image.height - 1), outline=0)  # the filter's own border
    return Image.composite(
        Image.new("RGB", image.size, (130, 130, 130)), Image.new("RGB", image.size, (252, 252, 252)), edges
    )


def _gradient(width: int, height: int, top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    column = (1 - share) * np.float32(top) + share * np.float32(bottom)
    return Image.fromarray(np.repeat(column[:, None].round().astype(np.uint8), width, axis=1))


def _horizon(image: Image.Image, top: float, colour: tuple[int, int, int], bend: float = 0.03) -> None:
    """Ground from the share `top` of the height downwards, its edge a shallow hill."""
    width, height = image.size
    edge = height * (top - bend * np.sin(np.linspace(0, np.pi, width)))
    ImageDraw.Draw(image).polygon([*enumerate(edge.tolist()), (width, height), (0, height)], fill=colour)


def _cloud(draw: ImageDraw.ImageDraw, x: float, y: float, size: float) -> None:
    for dx, dy, radius in ((-0.5, 0.1, 0.3), (0, 0, 0.45), (0.5, 0.12, 0.32)):
        cx, cy, r = x + dx * size, y + dy * size, radius * size
        draw.ellipse((cx - r, cy - r * 0.7, cx + r, cy + r * 0.7), fill=(255, 255, 255))


def _sky(width: int, height: int) -> Image.Image:
    image = _gradient(width, height, (96, 176, 244), (196, 228, 252))
    draw = ImageDraw.Draw(image)
    for x, y, size in ((0.2, 0.14, 26), (0.82, 0.24, 22), (0.12, 0.9, 20), (0.78, 0.86, 24)):
        _cloud(draw, x * width, y * height, size)
    return image


def _grass(width: int, height: int) -> Image.Image:
    image = _gradient(width, height, (150, 208, 250), (214, 238, 252))
    _horizon(image, 0.58, (124, 196, 96))
    draw = ImageDraw.Draw(image)
    for x in range(6, width, 16):  # tufts
        y = height * 0.66 + (x * 37 % 5) * height * 0.07
        draw.line((x, y, x - 2, y - 5), fill=(84, 160, 68), width=1)
        draw.line((x, y, x + 2, y - 5), fill=(84, 160, 68), width=1)
    return image


def _stars(width: int, height: int) -> Image.Image:
    image = _gradient(width, height, (16, 20, 56), (48, 52, 112))
    draw = ImageDraw.Draw(image)
    for i in range(width * height // 500):
        x, y = i * 73 % width, i * 151 % height
        draw.rectangle((x, y, x + i % 2, y + i % 2), fill=(250, 244, 200))
    return image


def _beach(width: int, height: int) -> Image.Image:
    image = _gradient(width, height, (140, 208, 250), (206, 236, 252))
    _horizon(image, 0.42, (64, 156, 208), bend=0)
    _horizon(image, 0.60, (244, 220, 160))
    return image


def _snow(width: int, height: int) -> Image.Image:
    image = _gradient(width, height, (152, 176, 208), (196, 212, 232))
    _horizon(image, 0.60, (246, 250, 255))
    draw = ImageDraw.Draw(image)
    for i in range(width * height // 700):
        x, y = i * 89 % width, i * 57 % int(height * 0.56)
        draw.ellipse((x, y, x + 2, y + 2), fill=(255, 255, 255))
    return image


_SCENERY = {"蓝天": _sky, "草地": _grass, "星空": _stars, "沙滩": _beach, "雪地": _snow}
