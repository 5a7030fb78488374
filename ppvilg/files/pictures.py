"""How a picture is read, everywhere: training, `image=` of a call, the command line, the service.

The picture itself decides: its header, not its name, says what it is; it is turned upright by its EXIF orientation,
transparency lies on white, 16 bit are scaled down; of an animation the first picture counts. Metadata that cannot be
read are no metadata, not a broken picture.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from .reading import LFS_POINTER

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64 * 2**20  # below Pillow's own warning threshold, so Pillow's global limit need not be touched
MAX_FILE_BYTES = 2**29  # MAX_PIXELS in 16-bit RGB, not compressed, and some more
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
# Where Pillow finds an orientation: what was turned once must not be turned again.
_SAY_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_SIDEWAYS = (5, 6, 7, 8)
# Pillow leaves the transparent colour of a PNG in the bit depth of the file, and gives pixels of 8 bit (PNG, 11.3.2.1).
_TRANSPARENT_IN_8_BIT = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(value >> 8 for value in colour),
}


class PictureError(ValueError):
    """A picture that cannot be read, with the reason and, where one is known, its name."""


def read_picture(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright RGB picture in a file or in bytes (PNG, JPEG, WebP), whole in memory.

    Raises:
        FileNotFoundError: no such file.
        PictureError: not a picture of these kinds, damaged, or more than `max_pixels` pixels.
    """
    return _read(_decode, source, max_pixels, "cannot be decoded")


def read_alpha(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """How opaque the upright picture is: 8-bit grey, white where nothing is transparent; errors as `read_picture`."""
    return _read(_decode_alpha, source, max_pixels, "cannot be decoded")


def picture_size(source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture from its header, without decoding; errors as `read_picture`."""
    return _read(_upright_size, source, max_pixels, "header cannot be read")


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture upright, in RGB: transparency on white, 16 bit scaled to 8.

    PictureError for pixels whose range nobody wrote down (floating point), and for modes that Pillow cannot convert.
    """
    image = _turn_upright(image)
    if image.mode == "F":
        raise PictureError("a picture of floating point numbers has no known range: convert it to 8 bit")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _grey_of_16_bit(image)
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise PictureError(f"a picture of mode {image.mode} cannot be converted to RGB ({error})") from error


def _turn_upright(image: Image.Image) -> Image.Image:
    image.load()  # what stands behind the pixels may turn the picture
    orientation = _orientation(image)
    if orientation not in _UPRIGHT:
        return image
    image = image.transpose(_UPRIGHT[orientation])
    image.info = {key: value for key, value in image.info.items() if key not in _SAY_ORIENTATION}
    return image


def _grey_of_16_bit(image: Image.Image) -> Image.Image:
    """The high bytes, as of 16-bit RGB; convert() would clip everything above 255 to white."""
    deep = np.asarray(image).astype(np.int64)
    grey = (deep.clip(0, 2**16 - 1) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[deep == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _read(way: Callable, source: str | os.PathLike | bytes, max_pixels: int, failure: str):
    """way(data, max_pixels); of a PNG that fails once more without its metadata."""
    data, name = _bytes_of(source), _name_of(source)
    try:
        return way(data, max_pixels)
    except MemoryError:
        raise
    except PictureError as error:
        raise PictureError(f"{name}{error}") from error
    except Exception as error:  # Pillow's decoders answer damage with many exception types, all of them mean: bad file
        first = error
    try:
        return way(_bare_png(data), max_pixels)
    except MemoryError:
        raise
    except Exception:
        raise PictureError(f"{name}{failure} ({type(first).__name__}: {first})") from first


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    return to_rgb(_load(data, max_pixels))


def _decode_alpha(data: bytes, max_pixels: int) -> Image.Image:
    return _turn_upright(_load(data, max_pixels)).convert("RGBA").getchannel("A")


def _load(data: bytes, max_pixels: int) -> Image.Image:
    image = _open_header(data, max_pixels)
    depth = image.tile[0].args if image.tile else None  # of a PNG: the layout of its pixels in the file
    image.load()
    if isinstance(depth, str) and depth in _TRANSPARENT_IN_8_BIT and "transparency" in image.info:
        image.info["transparency"] = _TRANSPARENT_IN_8_BIT[depth](image.info["transparency"])
    return image


def _upright_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    image = _open_header(data, max_pixels)
    if image.format == "PNG" and "exif" not in image.info:
        late = [data[start + 8 : end - 4] for kind, start, end in _png_chunks(data) if kind == b"eXIf"]
        if late:
            image.info["exif"] = b"Exif\0\0" + late[0]
    return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def _open_header(data: bytes, max_pixels: int) -> Image.Image:
    if data.startswith(LFS_POINTER):
        raise PictureError("is a Git LFS pointer, not the picture itself: run 'git lfs pull'")
    if not data:
        raise PictureError("is empty: no byte of a picture is left")
    try:
        image = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"decompression bomb: {error}") from error
    except Image.UnidentifiedImageError:
        if data.startswith((_PNG_SIGNATURE, b"\xff\xd8\xff")) or data[8:12] == b"WEBP":
            raise ValueError("its header is damaged") from None
        kind = _other_kind(data)
        raise PictureError(f"is not a picture of a supported type ({', '.join(PICTURE_FORMATS)}){kind}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise PictureError(f"{width}x{height} pixels are more than the limit of {max_pixels} (bomb?)")
    return image


def _other_kind(data: bytes) -> str:
    """`: it is a GIF` and the like, where the first bytes say so."""
    signatures = {
        b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"8BPS": "Photoshop file", b"%PDF": "PDF",
        b"<svg": "SVG", b"<?xml": "SVG or XML", b"<!DOC": "HTML page", b"<html": "HTML page", b"{": "JSON text",
        b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP": "JPEG 2000",
    }  # fmt: skip
    if data[4:8] == b"ftyp":
        return ": it is AVIF, HEIC or a video"
    return next((f": it is a {kind}" for start, kind in signatures.items() if data.startswith(start)), "")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        # PngImageFile's own getexif decodes the whole picture for a late eXIf chunk; the base class's does not.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF blocks raise whatever their bytes lead to
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the whole chunks of a PNG, with length and checksum, up to its end or a torn one."""
    start = len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end


def _bare_png(data: bytes) -> bytes:
    """A PNG without what its pixels do not need: a damaged or overlong text or profile is no reason to lose it.

    ValueError for what is no PNG.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError("not a PNG")
    kept = [_PNG_SIGNATURE]
    for kind, start, end in _png_chunks(data):
        critical, whole = kind[:1].isupper(), int.from_bytes(data[end - 4 : end], "big")
        if critical or (kind in (b"tRNS", b"eXIf") and zlib.crc32(data[start + 4 : end - 4]) == whole):
            kept.append(data[start:end])
    return b"".join(kept)


def _bytes_of(source: str | os.PathLike | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(f"{_name_of(source)}is a folder or a device, a picture is needed")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(f"{_name_of(source)}has more than {MAX_FILE_BYTES} bytes: it is no picture")
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such picture: {os.fspath(source)}") from None
    except OSError as error:
        raise PictureError(f"{_name_of(source)}cannot be read ({error.strerror or error})") from error


def _name_of(source: object) -> str:
    return "picture " if isinstance(source, bytes) else f"{os.fspath(source)} "
