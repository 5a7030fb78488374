"""Training pictures of the detector: scenes on colours the denoiser never sees, some objects spoiled, all disturbed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from ppvilg.data import ObjectBox

from .objects import BACKGROUNDS, load_objects
from .render import apply_style_filter, draw_glyph
from .scenes import LAYOUT_SHARES, STYLES, Placement, Scene, draw_scene
from .spoiling import REJECTED_BLUR, SPOILERS, can_spoil, smooth_noise

MINIMUM_COLOUR_DISTANCE = 10.0  # 8-bit RGB levels between a training background and every background of the data
SPOILED_CASES = {"objects": 0.74, "focus": 0.14, "mixed": 0.08, "clouds": 0.04}


@dataclass(frozen=True)
class Example:
    """A picture, what is to be found in it, and where something stands that is not to be found."""

    pixels: np.ndarray  # (H, W, 3) uint8
    objects: tuple[ObjectBox, ...]
    spoiled: tuple[ObjectBox, ...]


def training_background(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that is none of the ten backgrounds, half of the time one near to them.

    So no picture the detector is trained on is one that a denoiser was trained on or will be asked for, and which
    object stands on which background is left to chance.
    """
    palette = np.array([background.rgb for background in BACKGROUNDS], dtype=np.float64)
    while True:
        if rng.random() < 0.5:
            colour = rng.integers(0, 256, size=3).astype(np.float64)
        else:
            colour = (palette[rng.integers(len(palette))] + rng.normal(scale=16, size=3)).round().clip(0, 255)
        if np.linalg.norm(palette - colour, axis=1).min() >= MINIMUM_COLOUR_DISTANCE:
            return tuple(int(value) for value in colour)


def draw_example(
    rng: np.random.Generator, width: int, height: int, style_share: float, spoiled_share: float
) -> Example:
    """One training picture; `spoiled_share` of the pictures without a style hold spoiled objects."""
    layout = str(rng.choice(list(LAYOUT_SHARES), p=list(LAYOUT_SHARES.values())))
    style = str(rng.choice(STYLES)) if rng.random() < style_share else None
    scene = replace(draw_scene(rng, width, height, layout), style=style)
    image = Image.new("RGB", (width, height), training_background(rng))
    if style is None and rng.random() < spoiled_share:
        objects, spoiled = _paste_spoiled(rng, image, scene)
    else:
        objects, spoiled = [_paste(rng, image, placement) for placement in scene.objects], []
    if style is not None:
        image = apply_style_filter(image, style, scene.objects[0].size)
    return Example(disturb(rng, image), tuple(objects), tuple(spoiled))


def _paste(rng: np.random.Generator, image: Image.Image, placement: Placement, kind: str | None = None) -> ObjectBox:
    """Draw one object, up to two pixels off its place, as it is or spoiled; returns its box within the picture."""
    glyph = draw_glyph(placement.name, placement.size)
    x = placement.x + (placement.size - glyph.width) // 2 + int(rng.integers(-2, 3))
    y = placement.y + (placement.size - glyph.height) // 2 + int(rng.integers(-2, 3))
    box = (max(x, 0), max(y, 0), min(x + glyph.width, image.width), min(y + glyph.height, image.height))
    if kind is not None:
        spoiled = SPOILERS[kind](glyph, rng)
        x, y = x - (spoiled.width - glyph.width) // 2, y - (spoiled.height - glyph.height) // 2
        glyph = spoiled
    image.paste(glyph, (x, y), glyph)
    return ObjectBox(placement.name, tuple(map(float, box)))


def _paste_spoiled(rng: np.random.Generator, image: Image.Image, scene: Scene) -> tuple[list, list]:
    """A picture with something wrong: (boxes of objects that are as they should be, boxes of the others)."""
    case = str(rng.choice(list(SPOILED_CASES), p=list(SPOILED_CASES.values())))
    if case == "clouds":
        covariance = np.diag(rng.uniform(100, 3000, size=3))
        image.paste(smooth_noise(image.size, rng.uniform(0, 255, size=3), covariance, rng))
        return [], []
    objects, spoiled = [], []
    for placement in scene.objects:
        kind = None
        if case == "objects" and rng.random() < 0.75:
            possible = [name for name in SPOILERS if can_spoil(name, draw_glyph(placement.name, placement.size))]
            kind = str(rng.choice(possible))
        box = _paste(rng, image, placement, kind)
        (objects if case == "objects" and kind is None else spoiled).append(box)
        if case == "mixed":
            _mix_in_another(rng, image, placement)
    if case == "focus":
        size = max(placement.size for placement in scene.objects)
        image.paste(image.filter(ImageFilter.GaussianBlur(REJECTED_BLUR[size] * rng.uniform(0.9, 2.4))))
    return objects, spoiled


def _mix_in_another(rng: np.random.Generator, image: Image.Image, placement: Placement) -> None:
    """Another object at half opacity over the one just drawn: neither of the two."""
    others = [item.name for item in load_objects() if item.name != placement.name]
    glyph = draw_glyph(others[rng.integers(len(others))], placement.size)
    x = placement.x + (placement.size - glyph.width) // 2
    y = placement.y + (placement.size - glyph.height) // 2
    image.paste(glyph, (x, y), glyph.getchannel("A").point(lambda opacity: opacity // 2))


def disturb(rng: np.random.Generator, image: Image.Image) -> np.ndarray:
    """What an autoencoder does to a picture and a little more: (H, W, 3) uint8, still the same objects to a person."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    pixels = np.asarray(image, dtype=np.float32)
    if rng.random() < 0.4:
        pixels = warp(pixels, rng.normal(scale=0.6, size=(2, 3, 3)))
    pixels = pixels * rng.normal(1.0, 0.03, size=3) + rng.normal(0.0, 3.0, size=3)
    pixels += rng.normal(scale=rng.uniform(0.0, 6.0), size=pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)


def warp(pixels: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) moved by a smooth field given at 3 x 3 points, (2, 3, 3), in pixels."""
    height, width = pixels.shape[:2]
    field = [
        np.asarray(Image.fromarray(part.astype(np.float32)).resize((width, height), Image.BICUBIC)) for part in shifts
    ]
    rows = (np.arange(height)[:, None] + field[0]).clip(0, height - 1.001)
    columns = (np.arange(width)[None, :] + field[1]).clip(0, width - 1.001)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = pixels[top, left] * (1 - right) + pixels[top, left + 1] * right
    lower = pixels[top + 1, left] * (1 - right) + pixels[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
