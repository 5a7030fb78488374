"""Scene -> picture and boxes: glyphs of Noto Color Emoji on a plain background, and two styles made with filters."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .objects import BACKGROUNDS, FONT_PATH, object_by_name, require_assets
from .scenes import STYLES, Scene

STRIKE_SIZE = 109  # the only size the font's bitmaps come in


def draw_glyph(name: str, size: int) -> Image.Image:
    """The object as RGBA, cropped to its drawn pixels and scaled so that its longer side is `size` pixels."""
    return draw_emoji(object_by_name(name).emoji, size)


@cache
def draw_emoji(emoji: str, size: int) -> Image.Image:
    """Any glyph of the font, as `draw_glyph`."""
    require_assets()
    font = ImageFont.truetype(str(FONT_PATH), STRIKE_SIZE)
    canvas = Image.new("RGBA", (176, 176), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((16, 16), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"{FONT_PATH} has no glyph for {emoji}")
    glyph = canvas.crop(box)
    scale = size / max(glyph.size)
    glyph = glyph.resize(tuple(max(1, round(side * scale)) for side in glyph.size), Image.LANCZOS)
    return glyph.crop(glyph.getchannel("A").getbbox())


def render(scene: Scene) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """RGB picture and one box (x0, y0, x1, y1), in pixels, around the drawn pixels of each object."""
    rgb = next(background.rgb for background in BACKGROUNDS if background.name == scene.background)
    image = Image.new("RGB", (scene.width, scene.height), rgb)
    boxes = []
    for placement in scene.objects:
        glyph = draw_glyph(placement.name, placement.size)
        x = placement.x + (placement.size - glyph.width) // 2
        y = placement.y + (placement.size - glyph.height) // 2
        image.paste(glyph, (x, y), glyph)
        boxes.append((x, y, x + glyph.width, y + glyph.height))
    if scene.style is not None:
        image = apply_style_filter(image, scene.style, object_size=scene.objects[0].size)
    return image, boxes


def apply_style_filter(image: Image.Image, style: str, object_size: int) -> Image.Image:
    """The picture in one of the two styles; pixel art takes finer cells for objects of 32 pixels than of 48."""
    if style == "像素风格":
        return pixel_art(image, cell=4 if object_size >= 48 else 2)
    if style == "水彩":
        return watercolour(image)
    raise ValueError(f"style {style!r} is not one of {', '.join(STYLES)}")


def pixel_art(image: Image.Image, cell: int, colours: int = 12) -> Image.Image:
    """像素风格: square cells of `cell` pixels, of one colour each, few colours."""
    small = image.resize((image.width // cell, image.height // cell), Image.BOX)
    small = small.quantize(colours, method=Image.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return small.resize(image.size, Image.NEAREST)


def watercolour(image: Image.Image) -> Image.Image:
    """水彩: flat washes with darker rims, thinned with water, on slightly rough paper."""
    wash = image.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.5))
    pixels = np.asarray(wash, dtype=np.float32)
    soft = np.asarray(wash.filter(ImageFilter.GaussianBlur(2.5)), dtype=np.float32)
    rim = np.abs(pixels - soft).mean(axis=2, keepdims=True)  # pigment gathers where a wash ends
    pixels = 255 - (255 - pixels) * 0.75 - 1.2 * rim
    return Image.fromarray(np.clip(pixels + _paper(image.width, image.height), 0, 255).astype(np.uint8))


@cache
def _paper(width: int, height: int) -> np.ndarray:
    """The same sheet for every picture: smooth grain of a few grey levels, (height, width, 1)."""
    grain = np.random.default_rng(20).normal(size=(height // 4, width // 4)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize((width, height), Image.BICUBIC))
    return 3.0 * grain[:, :, None]
