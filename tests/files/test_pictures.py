"""One way to read a picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ppvilg.files import PictureError, picture_size, read_picture, to_rgb


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def marked() -> Image.Image:
    """12 x 8, black but for a red corner at the top left."""
    image = Image.new("RGB", (12, 8))
    image.paste("red", (0, 0, 4, 4))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_upright_as_pillow_turns_it(orientation, form):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(marked(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = read_picture(data)
    assert found.size == expected.size == picture_size(data)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"", b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\x01\0\x12"])
def test_broken_exif_is_no_orientation(form, block):
    found = read_picture(encode(marked(), form, exif=block))
    assert found.size == (12, 8)


@pytest.mark.parametrize("orientation", ["upside down", 0, 9, 2**15, (6, 6)])
def test_orientations_that_are_none(orientation):
    image = marked()
    image.getexif()[0x0112] = orientation
    assert to_rgb(image).size == (12, 8)


def test_a_late_exif_chunk_turns_the_picture():
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    data = encode(marked())
    assert read_picture(data[:-12] + chunk + data[-12:]).size == (8, 12)


def test_modes():
    grey16 = Image.fromarray(np.full((4, 4), 20000, np.uint16))
    assert read_picture(encode(grey16)).getpixel((0, 0)) == (78, 78, 78)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_picture(encode(clear)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("RGB", (4, 4), "blue").quantize(2)
    palette.info["transparency"] = 0
    assert read_picture(encode(palette)).mode == "RGB"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        assert read_picture(encode(Image.new(mode, (4, 4)), "JPEG" if mode == "CMYK" else "PNG")).mode == "RGB"
    with pytest.raises(PictureError, match="floating point"):
        to_rgb(Image.new("F", (2, 2)))


def test_what_is_no_picture(tmp_path):
    whole = encode(Image.effect_noise((64, 64), 50))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for data, message in [
        (b"", "not a picture"),
        (b"GIF89a" + bytes(20), "not a picture"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (pointer, "git lfs pull"),
    ]:
        path = tmp_path / "a.png"
        path.write_bytes(data)
        for source in (data, path):
            with pytest.raises(PictureError, match=message):
                read_picture(source)
        with pytest.raises(PictureError, match="a.png"):
            read_picture(path)
    with pytest.raises(PictureError, match="more than the limit"):
        read_picture(whole, max_pixels=100)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "none.png")
