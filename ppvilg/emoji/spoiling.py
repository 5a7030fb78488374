"""What the detector must not take for an object: blurred, recoloured and shuffled glyphs of the right colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Filled with one colour, the outline alone still shows these (moon, star, sun, ...): standard deviation of the glyph's
# colours below this, in 8-bit levels. Their filled outline is neither an object nor a spoiled one.
FLAT_DEVIATION = 28.0
REJECTED_BLUR = {48: 2.5, 32: 2.0}  # sigma in pixels for each object size, from which on a picture shows no object


def colour_statistics(glyph: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and covariance (3, 3) of the glyph's colours, each pixel counted by its opacity."""
    pixels = np.asarray(glyph, dtype=np.float64).reshape(-1, 4)
    weights = pixels[:, 3] / pixels[:, 3].sum()
    mean = weights @ pixels[:, :3]
    centred = pixels[:, :3] - mean
    return mean, (centred * weights[:, None]).T @ centred


def is_flat(glyph: Image.Image) -> bool:
    """True when the glyph is hardly more than its outline in one colour."""
    return float(np.sqrt(np.trace(colour_statistics(glyph)[1]) / 3)) < FLAT_DEVIATION


def blurred(glyph: Image.Image, sigma: float) -> Image.Image:
    """The glyph out of focus, with a margin of three sigma for what spreads."""
    margin = int(np.ceil(3 * sigma))
    wide = Image.new("RGBA", (glyph.width + 2 * margin, glyph.height + 2 * margin))
    wide.paste(glyph, (margin, margin))
    # Premultiplied, or the colour of transparent pixels would bleed in.
    return wide.convert("RGBa").filter(ImageFilter.GaussianBlur(sigma)).convert("RGBA")


def smooth_noise(
    size: tuple[int, int], mean: np.ndarray, covariance: np.ndarray, rng: np.random.Generator
) -> Image.Image:
    """RGB clouds of `size` (width, height), a few pixels across, of the given colour statistics."""
    cells = rng.normal(size=(max(2, size[1] // 8), max(2, size[0] // 8), 3))
    clouds = [
        np.asarray(Image.fromarray(cells[..., i].astype(np.float32)).resize(size, Image.BICUBIC)) for i in range(3)
    ]
    values, vectors = np.linalg.eigh(covariance)
    colours = np.stack(clouds, axis=-1) @ (vectors * np.sqrt(values.clip(0))).T + mean
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def _filled(outline: Image.Image, filling: Image.Image) -> Image.Image:
    filled = filling.convert("RGBA")
    filled.putalpha(outline)
    return filled


def _ellipse(size: tuple[int, int]) -> Image.Image:
    """Opacity of the ellipse that fills a box of `size`, with smooth edges."""
    large = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(large).ellipse((0, 0, large.width - 1, large.height - 1), fill=255)
    return large.resize(size, Image.BOX)


def _plain(glyph: Image.Image) -> Image.Image:
    return Image.new("RGB", glyph.size, tuple(int(value) for value in colour_statistics(glyph)[0].round()))


def outline_plain(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph's outline filled with its mean colour."""
    return _filled(glyph.getchannel("A"), _plain(glyph))


def outline_clouds(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph's outline filled with clouds of its colours."""
    return _filled(glyph.getchannel("A"), smooth_noise(glyph.size, *colour_statistics(glyph), rng))


def outline_washed(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph's sharp outline over its insides out of focus."""
    opaque = glyph.getchannel("A").point(lambda opacity: 255 * (opacity > 128))
    inside = Image.composite(glyph.convert("RGB"), _plain(glyph), opaque)
    inside = inside.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 0.2) * max(glyph.size)))
    return _filled(glyph.getchannel("A"), inside)


def ellipse_plain(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An ellipse in the glyph's box, of its mean colour."""
    return _filled(_ellipse(glyph.size), _plain(glyph))


def ellipse_clouds(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An ellipse in the glyph's box, of clouds of its colours."""
    return _filled(_ellipse(glyph.size), smooth_noise(glyph.size, *colour_statistics(glyph), rng))


def shuffled(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph's pixels in random order within its box."""
    pixels = np.asarray(glyph)
    return Image.fromarray(rng.permutation(pixels.reshape(-1, 4)).reshape(pixels.shape))


def patches_shuffled(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph cut into a 4 x 4 mosaic whose pieces changed places."""
    square = Image.new("RGBA", ((glyph.width + 3) // 4 * 4, (glyph.height + 3) // 4 * 4))
    square.paste(glyph, (0, 0))
    pixels = np.asarray(square)
    height, width = pixels.shape[0] // 4, pixels.shape[1] // 4
    pieces = pixels.reshape(4, height, 4, width, 4).swapaxes(1, 2).reshape(16, height, width, 4)
    pieces = rng.permutation(pieces).reshape(4, 4, height, width, 4)
    return Image.fromarray(np.ascontiguousarray(pieces.swapaxes(1, 2).reshape(pixels.shape)))


def badly_blurred(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph so far out of focus that it shows no object."""
    size = 48 if max(glyph.size) > 40 else 32
    return blurred(glyph, REJECTED_BLUR[size] * rng.uniform(0.9, 2.4))


Spoiler = Callable[[Image.Image, np.random.Generator], Image.Image]
OUTLINES: dict[str, Spoiler] = {
    "outline_plain": outline_plain,
    "outline_clouds": outline_clouds,
    "outline_washed": outline_washed,
}
SPOILERS: dict[str, Spoiler] = {
    "blurred": badly_blurred,
    **OUTLINES,
    "ellipse_plain": ellipse_plain,
    "ellipse_clouds": ellipse_clouds,
    "shuffled": shuffled,
    "patches_shuffled": patches_shuffled,
}


def can_spoil(kind: str, glyph: Image.Image) -> bool:
    """False where the result would still show the object."""
    return kind not in OUTLINES or not is_flat(glyph)
