"""How a picture is read, everywhere: training, `image=` of a call, the command line, the service.

The picture itself decides: its header, not its name, says what it is; it is turned upright by its EXIF orientation,
transparency lies on white, 16 bit are scaled down. EXIF that cannot be read is no orientation, not a broken picture.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from .reading import LFS_POINTER

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64 * 2**20  # below Pillow's own warning threshold, so Pillow's global limit need not be touched
# What Image.transpose undoes for each EXIF orientation (Exif 2.32, table 6).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class PictureError(ValueError):
    """A picture that cannot be read, with the reason and, where one is known, its name."""


def read_picture(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright RGB picture in a file or in bytes (PNG, JPEG, WebP), whole in memory.

    Raises:
        FileNotFoundError: no such file.
        PictureError: not a picture of these kinds, damaged, or more than `max_pixels` pixels.
    """
    try:
        image = _open_header(source, max_pixels)
        image.load()
        return to_rgb(image)
    except (PictureError, MemoryError, FileNotFoundError):
        raise
    except Exception as error:  # Pillow's decoders answer damage with many exception types, all of them mean: bad file
        raise PictureError(f"{_named(source)}cannot be decoded ({type(error).__name__}: {error})") from error


def picture_size(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture from its header, without decoding; errors as `read_picture`.

    An orientation that stands behind the pixels (a PNG's late eXIf chunk) is not seen: `read_picture` decides.
    """
    try:
        image = _open_header(source, max_pixels)
        return image.size[::-1] if _orientation(image, whole=False) in _SIDEWAYS else image.size
    except (PictureError, MemoryError, FileNotFoundError):
        raise
    except Exception as error:
        raise PictureError(f"{_named(source)}header cannot be read ({type(error).__name__}: {error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture upright, in RGB: transparency on white, 16 bit scaled to 8.

    PictureError for floating point pixels, whose range nobody wrote down.
    """
    orientation = _orientation(image, whole=True)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "F":
        raise PictureError("a picture of floating point numbers has no known range: convert it to 8 bit")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bit grey: convert() would clip everything above 255 to white
        grey = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


def _open_header(source: str | os.PathLike | bytes, max_pixels: int) -> Image.Image:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if data.startswith(LFS_POINTER):
        raise PictureError(f"{_named(source)}is a Git LFS pointer, not the picture itself: run 'git lfs pull'")
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"{_named(source)}decompression bomb: {error}") from error
    except Image.UnidentifiedImageError:
        kinds = ", ".join(PICTURE_FORMATS)
        raise PictureError(f"{_named(source)}is not a picture of a supported type ({kinds})") from None
    width, height = image.size
    if width * height > max_pixels:
        raise PictureError(f"{_named(source)}{width}x{height} pixels are more than the limit of {max_pixels} (bomb?)")
    return image


def _orientation(image: Image.Image, whole: bool) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        # PngImageFile's own getexif decodes the whole picture for a late eXIf chunk; the base class's does not.
        exif = image.getexif() if whole else Image.Image.getexif(image)
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF blocks raise whatever their bytes lead to
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _named(source: object) -> str:
    return "picture " if isinstance(source, bytes) else f"{os.fspath(source)} "
