"""One way to read a picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ppvilg.files import PictureError, picture_size, read_alpha, read_picture, to_rgb


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
    assert np.array_equal(np.asarray(to_rgb(found)), np.asarray(expected)), "turned twice"


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_transparency_is_turned_with_its_picture(orientation, form):
    image = marked().convert("RGBA")
    image.paste((0, 255, 0, 0), (8, 0, 12, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, form, exif=exif, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    expected = (np.asarray(read_picture(data)) == 255).all(axis=2)  # white where it was transparent
    assert expected.sum() == 8
    assert np.array_equal(np.asarray(read_alpha(data)), np.where(expected, 0, 255))


def test_transparency_of_pictures_that_have_none():
    assert read_alpha(encode(marked(), "JPEG")).getextrema() == (255, 255)
    with pytest.raises(PictureError, match="cannot be decoded"):
        read_alpha(encode(marked())[:-30])


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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, row: bytes, width: int, *extra: bytes) -> bytes:
    """One row of pixels in a layout that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


SIDEWAYS = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)


@pytest.mark.parametrize("place", [33, -12])
def test_an_exif_chunk_of_a_png_turns_it_wherever_it_stands(place):
    """ExifTool writes it behind the pixels."""
    data = encode(marked())
    data = data[:place] + chunk(b"eXIf", SIDEWAYS) + data[place:]
    assert read_picture(data).size == picture_size(data) == (8, 12)


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))),  # longer than Pillow reads
        chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**21))),
        chunk(b"iCCP", b"k\0\0not compressed"),
        chunk(b"tEXt", b"k\0text")[:-1] + b"?",  # a wrong checksum
        chunk(b"eXIf", SIDEWAYS)[:-1] + b"?",
        chunk(b"acTL", b"?"),
    ],
    ids=["long text", "long profile", "broken profile", "text", "exif", "animation"],
)
def test_damaged_metadata_leave_the_picture(metadata):
    data = encode(marked())
    data = data[:33] + metadata + data[33:]
    assert np.array_equal(np.asarray(read_picture(data)), np.asarray(marked()))
    assert picture_size(data) == (12, 8)


def test_metadata_that_fail_take_no_orientation_with_them():
    late = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21))) + chunk(b"eXIf", SIDEWAYS)
    data = encode(marked())
    data = data[:-12] + late + data[-12:]
    assert read_picture(data).size == picture_size(data) == (8, 12)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "MPO"])
def test_of_several_pictures_the_first(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    others = [Image.new("RGB", (12, 8), "blue")]
    options = {} if form == "MPO" else {"duration": 100}
    data = encode(marked(), form, save_all=True, append_images=others, exif=exif, **options)
    found = read_picture(data)
    assert found.size == picture_size(data) == (8, 12) and found.getpixel((7, 0))[0] > 150 > found.getpixel((0, 11))[2]


@pytest.mark.parametrize(
    "layout, row, transparent, expected",
    [
        ((1, 0), bytes([0b01000000]), struct.pack(">H", 0), [(255, 255, 255), (255, 255, 255)]),
        ((2, 0), bytes([0b01100000]), struct.pack(">H", 1), [(255, 255, 255), (170, 170, 170)]),
        ((4, 0), bytes([0x34]), struct.pack(">H", 3), [(255, 255, 255), (68, 68, 68)]),
        ((8, 0), bytes([3, 4]), struct.pack(">H", 3), [(255, 255, 255), (4, 4, 4)]),
        ((16, 0), struct.pack(">2H", 300, 20000), struct.pack(">H", 300), [(255, 255, 255), (78, 78, 78)]),
        ((8, 2), bytes([1, 2, 3, 4, 5, 6]), struct.pack(">3H", 1, 2, 3), [(255, 255, 255), (4, 5, 6)]),
        ((16, 2), struct.pack(">6H", 300, 4, 5, 60000, 2, 3), struct.pack(">3H", 300, 4, 5),
         [(255, 255, 255), (234, 0, 0)]),
        ((16, 4), struct.pack(">4H", 30000, 65535, 20000, 0), None, [(117, 117, 117), (255, 255, 255)]),
        ((16, 6), struct.pack(">8H", 30000, 1, 2, 65535, 9, 9, 9, 0), None, [(117, 0, 0), (255, 255, 255)]),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_every_depth_of_a_png_with_its_transparency(layout, row, transparent, expected):
    """Values by hand from the PNG specification (5.1.6, 11.3.2.1, 13.12: high bytes)."""
    extra = [] if transparent is None else [chunk(b"tRNS", transparent)]
    found = read_picture(png(*layout, row, 2, *extra))
    assert [found.getpixel((0, 0)), found.getpixel((1, 0))] == expected


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
    with pytest.raises(PictureError, match="mode La"):
        to_rgb(Image.new("La", (2, 2)))
    with pytest.raises(PictureError, match="floating point"):
        to_rgb(Image.new("F", (2, 2)))


def test_what_is_no_picture(tmp_path):
    whole = encode(Image.effect_noise((64, 64), 50))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for data, message in [
        (b"", "is empty"),
        (b"GIF89a" + bytes(20), "not a picture of a supported type .*: it is a GIF"),
        (b"\0\0\0\x1cftypavif", "it is AVIF"),
        (b"no picture at all", r"not a picture of a supported type \(JPEG, PNG, WEBP\)$"),
        (whole[:20], "its header is damaged|Truncated"),
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
    with pytest.raises(PictureError, match="is a folder or a device"):
        read_picture(tmp_path)
    with pytest.raises(PictureError, match="a device"):
        picture_size("/dev/zero")
