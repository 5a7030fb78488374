"""Pictures of the sheet: boxes on the picture, weights on the latent grid over what training sees of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

SIDE = 368  # pixels of the longer side
_FEWEST = 96  # of the shorter side of very long pictures, which are cut
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6", "#000075")
_DOUBTFUL = "#888888"
# Sans fonts with Chinese characters, by what their files are called
_FONTS = ("NotoSansCJK-Regular", "NotoSansCJKsc-Regular", "NotoSansSC", "SourceHanSansSC-Regular", "SourceHanSansCN",
          "wqy-microhei", "wqy-zenhei", "msyh", "PingFang", "Hiragino Sans GB", "simhei", "DroidSansFallback",
          "NotoSerifCJK-Regular", "ukai", "uming")  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A box in pixels of the picture; `sure`: it is used in training."""

    number: int
    label: str
    corners: tuple[float, float, float, float]
    sure: bool


@lru_cache(maxsize=1)
def label_font() -> tuple[ImageFont.ImageFont, bool]:
    """(font, whether it has Chinese characters); Pillow's own where no such font is installed."""
    from matplotlib.font_manager import findSystemFonts

    files = findSystemFonts()
    for wanted in _FONTS:
        for file in sorted(files):
            if wanted.lower() in file.lower():
                font = ImageFont.truetype(file, 15)
                if bytes(font.getmask("猫")) != bytes(font.getmask("\uffff")):
                    return font, True
    logger.warning("no font with Chinese characters is installed (Debian: apt-get install fonts-noto-cjk): boxes have "
                   "numbers alone in the pictures, names are in the page")  # fmt: skip
    return ImageFont.load_default(15), False


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of SIDE pixels with numbered boxes: those in use in colours with names, doubtful ones thin and grey."""
    shown, scale_x, scale_y = _fitted(picture)
    pen = ImageDraw.Draw(shown)
    font, chinese = label_font()
    for box in reversed(boxes):  # the surest on top
        x0, y0, x1, y1 = (round(value) for value in (box.corners[0] * scale_x, box.corners[1] * scale_y,
                                                     box.corners[2] * scale_x, box.corners[3] * scale_y))  # fmt: skip
        corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        pen.rectangle(corners, outline=colour_of(box), width=3 if box.sure else 1)
    for box in reversed(boxes):
        text = f"{box.number} {box.label}" if chinese else str(box.number)
        _write(pen, text if box.sure else str(box.number), box.corners[0] * scale_x, box.corners[1] * scale_y,
               colour_of(box), font, shown.size)  # fmt: skip
    return shown


def colour_of(box: Box) -> str:
    """The colour of a box, here and on the page."""
    return _COLOURS[(box.number - 1) % len(_COLOURS)] if box.sure else _DOUBTFUL


def draw_weights(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """What training sees of a picture, under the weights (h, w) of its latent cells: 1 is dim, more is bright."""
    height, width = weights.shape
    cell = max(2, SIDE // max(height, width))
    pixels = np.asarray(picture.resize((width * cell, height * cell), Image.Resampling.LANCZOS), np.float32)
    heavy = np.kron(weights > 1, np.ones((cell, cell), bool))[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = np.where(heavy, pixels * 0.85 + np.array([255, 140, 0]) * 0.15, grey * 0.45 + pixels * 0.1 + 20)
    lines = np.zeros(heavy.shape[:2], bool)
    lines[::cell], lines[:, ::cell] = True, True
    pixels[lines] = pixels[lines] * 0.8 + 255 * 0.2 * heavy[lines]
    shown = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    font, _ = label_font()
    if heavy.any():
        _write(ImageDraw.Draw(shown), f"bright: weight {weights.max():.3g}", 0, 0, "#b05a00", font, shown.size)
    return shown


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in a row on white."""
    gap = 8
    size = sum(panel.width for panel in panels) + gap * (len(panels) - 1), max(panel.height for panel in panels)
    row, left = Image.new("RGB", size, "white"), 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + gap
    return row


def _fitted(picture: Image.Image) -> tuple[Image.Image, float, float]:
    """(copy, horizontal and vertical scale): very long pictures are squeezed, so that something is seen of them."""
    scale = SIDE / max(picture.size)
    width, height = (max(_FEWEST if max(picture.size) > 4 * min(picture.size) else 1, round(side * scale))
                     for side in picture.size)  # fmt: skip
    return picture.resize((width, height), Image.Resampling.LANCZOS), width / picture.width, height / picture.height


def _write(pen: ImageDraw.ImageDraw, text: str, x: float, y: float, colour: str, font, size: tuple[int, int]) -> None:
    """White text on a coloured ground at a corner, moved into the picture where it would leave it."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x, y = min(max(0, round(x)), max(0, size[0] - width)), min(max(0, round(y)), max(0, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + 3 - left, y + 3 - top), text, fill="white", font=font)
