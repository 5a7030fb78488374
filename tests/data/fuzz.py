"""Odd inputs for the readers of data, one a call: each makes one from a random.Random, reads it and judges the outcome.

A generator is a function (rng, folder); `folder` is empty. It raises AssertionError, or lets through what the reader
raised, when something else comes out than data or an error that says what is the matter.
"""

from __future__ import annotations

import io
import json
import math
import random
import re
import struct
import tarfile
import zlib
from pathlib import Path

from PIL import Image

from ppvilg.data import (
    BadSample,
    BatchOrder,
    ImageTransform,
    RecordSource,
    SampleLoader,
    TooManyBadSamples,
    open_source,
)
from ppvilg.files import PictureError, picture_size, read_picture

MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA")}
FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
TEXTS = ("", "猫", "a cat", "é", "e\u0301", "\u202e\0", "𠀀" * 50, "../x", "/etc/passwd", "a\\b", "." * 300, "\ud800",
         "a" * 5000)  # fmt: skip
VALUES = (None, True, 0, -1, 1.5, math.nan, math.inf, 10**30, [], {}, [[]], {"a": [1]}, [1, 2, 3, 4], *TEXTS)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The bytes with up to three changes of the kinds that disks, networks and editors make."""
    changed = bytearray(data)
    for _ in range(rng.randint(0, 3)):
        place = rng.randint(0, max(0, len(changed) - 1))
        length = rng.choice((1, 1, 4, 16, 512))
        kind = rng.choice(("flip", "value", "zeros", "cut", "remove", "repeat", "insert"))
        if kind == "flip" and changed:
            changed[place] ^= 1 << rng.randint(0, 7)
        elif kind == "value" and changed:
            changed[place] = rng.choice((0, 0x7F, 0x80, 0xFF))
        elif kind == "zeros":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == "cut":
            del changed[place:]
        elif kind == "remove":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = bytes(rng.randint(0, 255) for _ in range(min(length, 16)))
    return bytes(changed)


def picture(rng: random.Random, largest: int = 24) -> bytes:
    """An encoded picture of any mode, with EXIF that may be garbage."""
    form = rng.choice(tuple(MODES))
    mode, size = rng.choice(MODES[form]), (rng.randint(1, largest), rng.randint(1, largest))
    pixels = random.Random(rng.randint(0, 99)).randbytes(size[0] * size[1] * 4)
    image = Image.frombytes("RGBA", size, pixels)
    image = Image.frombytes("I;16", size, pixels[: size[0] * size[1] * 2]) if mode == "I;16" else image.convert(mode)
    options = {}
    if rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 3, 6, 8, 9, 77))
        options["exif"] = rng.choice((exif.tobytes(), b"Exif\0\0garbage", b"", mutated(rng, exif.tobytes())))
    if form == "PNG" and mode in ("L", "P", "RGB") and rng.random() < 0.3:
        options["transparency"] = (1, 2, 3) if mode == "RGB" else 3
    if rng.random() < 0.1 and form != "JPEG":
        options |= {"save_all": True, "append_images": [image.copy()], "duration": 50}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pictures(rng: random.Random, folder: Path) -> None:
    """A picture, its PNG chunks perhaps in other places: read upright in RGB, or refused by a PictureError."""
    data = picture(rng)
    if data.startswith(b"\x89PNG") and rng.random() < 0.3:
        data = _with_chunk(rng, data)
    data = mutated(rng, data)
    try:
        found = read_picture(data, max_pixels=2**20)
    except PictureError as error:
        assert str(error).strip(), "no reason"
        found = None
    try:
        size = picture_size(data, max_pixels=2**20)
    except PictureError:
        size = None
    if found is not None:
        assert found.mode == "RGB" and size == found.size, f"{size} by its header, {found.size} when decoded"


def _with_chunk(rng: random.Random, data: bytes) -> bytes:
    """A PNG with one more chunk somewhere, whose checksum holds."""
    kind = rng.choice((b"eXIf", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"abCd", b"PLTE", b"IDAT"))
    content = rng.randbytes(rng.choice((0, 1, 6, 26, 300)))
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    place = rng.choice((33, len(data) - 12))
    return data[:place] + chunk + data[place:]


def listings(rng: random.Random, folder: Path) -> None:
    """A folder with a JSONL: every line and every picture is a sample, or is named."""
    patterns = ("{}.png", "in/{}.jpg", "{}.webp", "é{}.PNG", "{}.gif")
    names = [rng.choice(patterns).format(number) for number in range(rng.randint(1, 4))]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture(rng) if rng.random() < 0.8 else mutated(rng, picture(rng)))
    lines = [_entry(rng, {"file_name": rng.choice(names), "caption": "猫"}) for _ in range(rng.randint(0, 6))]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    text = mutated(rng, text) if rng.random() < 0.4 else text
    (folder / "a.jsonl").write_bytes(rng.choice((b"", b"\xef\xbb\xbf")) + text + rng.choice((b"", b"\n", b"\r\n")))
    source = _opened(folder, folder)
    if source is None:
        return
    held = [number for number, line in enumerate((folder / "a.jsonl").read_bytes().split(b"\n"), 1) if line.strip()]
    named = {int(found[1]) for problem in source.bad if (found := re.search(r"a\.jsonl:(\d+)$", problem.source))}
    in_pictures = sum("a.jsonl" not in problem.source for problem in source.bad)  # named by the picture of their line
    header = held and _is_header(folder / "a.jsonl")
    assert len(source) + len(named) + in_pictures + header >= len(held), "a line was lost"
    _read_all(source)


def _is_header(path: Path) -> bool:
    try:
        entry = json.loads(path.read_bytes().split(b"\n")[0].decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and "tool" in entry


def _entry(rng: random.Random, entry: dict) -> str:
    """A line of JSON with up to two fields that are as odd as can be."""
    entry = dict(entry)
    fields = ("file_name", "key", "caption", "captions", "objects", "tags", "width", "height", "tool", "shard", "text")
    for _ in range(rng.choice((0, 0, 1, 2))):
        field = rng.choice(fields)
        box = [rng.choice(VALUES) for _ in range(4)]
        odd = {"objects": [{"label": rng.choice(VALUES), "box": box, "score": rng.choice(VALUES)}],
               "captions": {rng.choice(("zh", "en", "fr")): rng.choice(VALUES)},
               "tags": [[rng.choice(VALUES), rng.choice(VALUES)]]}  # fmt: skip
        entry[field] = odd[field] if field in odd and rng.random() < 0.7 else rng.choice(VALUES)
    line = json.dumps(entry, ensure_ascii=rng.random() < 0.5)
    return rng.choice((line, line, line, line, line + "\r", "[" * 3000, "null", ""))


def _tar(rng: random.Random, path: Path, count: int) -> list[str]:
    """A shard with samples that may lack or repeat something; returns the keys of all."""
    keys = []
    with tarfile.open(path, "w", format=rng.choice(FORMATS)) as tar:
        for number in range(count):
            key = rng.choice((f"{number:03d}", f"{number:03d}", "000", f"文件夹/{number}", "长" * 30))
            members = [(rng.choice(("png", "jpg", "webp", "gif")), picture(rng))] * rng.choice((0, 1, 1, 1, 1))
            members += [("txt", rng.choice(TEXTS).encode("utf-8", "surrogatepass"))] * rng.choice((0, 1, 1, 1))
            if rng.random() < 0.3:
                members.append(("json", _entry(rng, {"caption": "猫", "width": 8}).encode("utf-8", "surrogatepass")))
            for extension, content in members:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime = len(content), rng.choice((0, 1.5))
                info.type = rng.choice((tarfile.REGTYPE,) * 20 + (tarfile.SYMTYPE, tarfile.DIRTYPE))
                tar.addfile(info, io.BytesIO(content))
                keys += [key] if info.type != tarfile.DIRTYPE else []
    return keys


def shards(rng: random.Random, folder: Path) -> None:
    """A shard as disks and downloads leave it: every sample is read or named, or the shard is."""
    path = folder / "0.tar"
    keys = _tar(rng, path, rng.randint(0, 5))
    changed = rng.random() < 0.7
    if changed:
        path.write_bytes(mutated(rng, path.read_bytes()))
    source = _opened(folder if rng.random() < 0.5 else path, path)
    if source is None:
        return
    named = {problem.key for problem in source.bad} | set(source.keys)
    if not any(problem.source == str(path) for problem in source.bad):
        lost = set(keys) - named
        assert not lost or changed, f"{lost} are lost"
    _read_all(source)
    _train(source)


def sidecars(rng: random.Random, folder: Path) -> None:
    """Shards with equal keys and sidecars: every line is joined, or named."""
    for name in ("0", "1")[: rng.randint(1, 2)]:
        _tar(rng, folder / f"{name}.tar", rng.randint(1, 3))
    path = folder / rng.choice(("annotations.jsonl", "0.annotations.jsonl"))
    lines = [json.dumps({"tool": "t", "version": "1"})]
    for _ in range(rng.randint(0, 4)):
        lines.append(_entry(rng, {"key": rng.choice(("000", "001", "009")), "captions": {"en": "x"}}))
        if rng.random() < 0.3:
            lines[-1] = _entry(rng, {"key": "000", "shard": rng.choice(("0", "1.tar", "9"))})
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(mutated(rng, text) if rng.random() < 0.4 else text)
    source = _opened(folder, path)
    if source is None:
        return
    unmatched, joined = source.annotations_without_sample, len(source) - len(source.samples_without_annotation)
    held = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")) - 1
    assert joined + len(unmatched) + len(source.bad) >= held - len(source), "a line was lost"
    _read_all(source)


def _opened(path: Path, named: Path) -> RecordSource | None:
    try:
        return open_source(path)
    except (ValueError, OSError) as error:
        assert str(named.parent) in str(error), f"no name in {error}"
        return None


def _read_all(source: RecordSource) -> None:
    """Every sample is a record with its picture, or a BadSample with a name."""
    for i in range(len(source)):
        try:
            record = source.read(i)
            assert record.image.mode == "RGB" and record.captions and record.key == source.keys[i]
        except BadSample as problem:
            assert problem.key and problem.source and problem.reason
    assert source.summary() and list(source.captions()) is not None


def _train(source: RecordSource) -> None:
    """Batches come whole, or it is said that too many samples are bad."""
    transform = ImageTransform([(16, 16), (16, 24)])
    loader = SampleLoader(source, transform, BatchOrder(source.buckets(transform), 2, 0), 0, bad_sample_share=0.5)
    try:
        for _, (_, batch) in zip(range(2), loader.iterate_from(0)):
            assert batch.pixel_values.shape[0] == len(batch.records) == 2
    except TooManyBadSamples as error:
        assert str(source.index.base) in str(error)


GENERATORS = {"pictures": pictures, "listings": listings, "shards": shards, "sidecars": sidecars}
