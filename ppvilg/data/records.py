"""Records: a picture with its captions, objects and tags, read by offset from tar shards or from a folder with a JSONL.

A shard follows the webdataset convention (what img2dataset writes): the members of a sample share their name up to the
first dot of the basename, `000012.jpg` + `000012.txt` + `000012.json`. Boxes, tags and further captions come from a
sidecar JSONL keyed by sample key; its first line is a header that names the tool and version that wrote it.
Nothing is dropped silently: what cannot be used is in `RecordSource.bad`, with file and reason.
"""

from __future__ import annotations

import glob
import hashlib
import io
import itertools
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import ExifTags, Image, ImageOps

CAPTION_KINDS = ("zh", "en", "generated")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 64 * 2**20  # below Pillow's own warning threshold, so Pillow's global limit need not be touched
MAX_TEXT_BYTES = 2**20  # a caption or .json larger than this is damage, not text

_TAR_BLOCK = 512
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_ENTRY_FIELDS = {"key", "file_name", "width", "height", "captions", "caption", "text", "objects", "tags"}
# Fields of img2dataset's .json that are used up by the index, or say nothing about the sample.
_DETAIL_FIELDS = {"key", "caption", "width", "height", "status", "error_message", "exif"}


class BadSample(ValueError):
    """A sample or piece of a shard that cannot be used: `key` ("" when unknown), `source` ("file:member"), `reason`."""

    def __init__(self, key: str, source: str, reason: str):
        super().__init__(key, source, reason)
        self.key = key
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(
            part for part in (self.source, f"sample {self.key!r}" if self.key else "", self.reason) if part
        )


@dataclass(frozen=True)
class ObjectBox:
    """One detected object: `box` is (x0, y0, x1, y1) in pixels of the upright picture, x1 and y1 exclusive."""

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True)
class Record:
    """One sample; `image` is RGB or None (text only), `captions` holds any of "zh", "en", "generated"."""

    key: str
    image: Image.Image | None = None
    captions: dict[str, str] = field(default_factory=dict)
    objects: list[ObjectBox] = field(default_factory=list)
    tags: list[tuple[str, str]] | None = None
    source: str = ""
    extra: dict = field(default_factory=dict)


def validate_objects(objects: Sequence[ObjectBox], width: int, height: int, key: str = "", source: str = "") -> None:
    """Raise BadSample when a box is not finite, has no area or leaves the width x height picture."""
    for item in objects:
        x0, y0, x1, y1 = item.box
        fault = None
        if not all(map(math.isfinite, item.box)):
            fault = "is not finite"
        elif x0 < 0 or y0 < 0:
            fault = "has a negative corner"
        elif x1 <= x0 or y1 <= y0:
            fault = "has no area (x1 <= x0 or y1 <= y0)"
        elif x1 > width or y1 > height:
            fault = f"leaves the {width}x{height} picture"
        if fault:
            raise BadSample(key, source, f"box {list(item.box)} of {item.label!r} {fault}")


def decode_image(data: bytes, key: str = "", source: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an upright RGB picture (EXIF orientation applied, transparency on white); BadSample when that fails."""
    try:
        image = _open_header(data, key, source, max_pixels)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except (BadSample, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders answer damage with many exception types, all of them mean: bad file
        raise BadSample(key, source, f"image cannot be decoded ({type(error).__name__}: {error})") from error


def image_size(data: bytes, key: str = "", source: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture from its header, without decoding; BadSample when there is no header."""
    try:
        image = _open_header(data, key, source, max_pixels)
        # The base class's getexif: PngImageFile's own would decode the whole picture in search of a late eXIf chunk.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample(key, source, f"image header cannot be read ({type(error).__name__}: {error})") from error


def _open_header(data: bytes, key: str, source: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSample(key, source, f"decompression bomb: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(key, source, f"{width}x{height} pixels are more than the limit of {max_pixels} (bomb?)")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bit grey: convert() would clip everything above 255 to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")


class RecordSource:
    """Random access to the usable samples of a data set; made by `open_source`. Safe to read from several threads.

    `keys` (list of str), `sizes` (int32 (n, 2): width, height), `bad` (list of BadSample found while indexing),
    `annotations_without_sample` and `samples_without_annotation` (lists of keys; empty when there is no sidecar).
    """

    def __init__(self, index: _Index):
        self.keys: list[str] = index.keys
        self.sizes = np.array(index.sizes, dtype=np.int32).reshape(-1, 2)
        self.bad: list[BadSample] = index.bad
        self.annotations_without_sample: list[str] = list(index.annotations)
        self.samples_without_annotation: list[str] = index.unannotated
        self._files = index.files
        self._file_lengths = index.file_lengths
        self._extensions = index.extensions
        self._file_of = np.array(index.file_of, dtype=np.int32)
        self._offsets = np.array(index.offsets, dtype=np.int64)
        self._lengths = np.array(index.lengths, dtype=np.int64)
        self._text = bytes(index.text)  # one JSON text per sample, end to end
        self._text_ends = np.array([0, *index.text_ends], dtype=np.int64)
        self._annotation_hash = index.annotation_hash
        self._max_pixels = index.max_pixels
        self._folder = index.folder
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def read_text(self, i: int) -> Record:
        """Sample i without its picture (image=None); touches no file. Raises BadSample for a wrong box."""
        if not 0 <= i < len(self.keys):
            raise IndexError(f"sample {i} of {len(self.keys)}")
        text = json.loads(self._text[self._text_ends[i] : self._text_ends[i + 1]])
        key, source = self.keys[i], self._source_of(i)
        objects = [ObjectBox(label, tuple(box), score) for label, box, score in text.get("objects", ())]
        if objects:
            validate_objects(objects, *self.sizes[i].tolist(), key=key, source=source)
        tags = [tuple(tag) for tag in text["tags"]] if "tags" in text else None
        return Record(key, None, text["captions"], objects, tags, source, text.get("extra", {}))

    def read(self, i: int) -> Record:
        """Sample i with its decoded picture; BadSample when the picture is damaged or not of its declared size."""
        record = self.read_text(i)
        length = int(self._lengths[i])
        with open(self._files[self._file_of[i]], "rb") as file:
            file.seek(int(self._offsets[i]))
            data = file.read(length)
        if len(data) < length:
            raise BadSample(
                record.key, record.source, f"{len(data)} of {length} bytes are left: cut off since indexing"
            )
        image = decode_image(data, record.key, record.source, self._max_pixels)
        declared = tuple(self.sizes[i].tolist())
        if image.size != declared:
            reason = "declared {}x{} but the upright picture is {}x{}: correct the annotation"
            raise BadSample(record.key, record.source, reason.format(*declared, *image.size))
        return replace(record, image=image)

    def fingerprint(self) -> str:
        """sha256 of what the data is: file names and sizes, index, texts and sidecar; independent of where it lies."""
        if self._fingerprint is None:
            digest = hashlib.sha256(b"ppvilg records 1\0")
            names = [] if self._folder else list(map(os.path.basename, self._files))
            listing = [names, self._file_lengths, self.keys, self._extensions]
            for part in (
                json.dumps(listing, ensure_ascii=True).encode(),
                *(
                    array.tobytes()
                    for array in (self.sizes, self._file_of, self._offsets, self._lengths, self._text_ends)
                ),
                self._text,
                self._annotation_hash.encode(),
            ):
                digest.update(len(part).to_bytes(8, "little"))  # lengths keep neighbouring parts from running together
                digest.update(part)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def summary(self, names: int = 10) -> str:
        """Counts, and the first names of everything that cannot be used; for the log."""
        lines = [f"{len(self)} usable samples in {len(set(self._file_of.tolist()))} files, {len(self.bad)} problems"]
        lines += [f"  {problem}" for problem in self.bad[:names]]
        for title, keys in (
            ("annotations without a sample", self.annotations_without_sample),
            ("samples without an annotation", self.samples_without_annotation),
        ):
            if keys:
                lines.append(f"  {len(keys)} {title}: {', '.join(keys[:names])}{', ...' if len(keys) > names else ''}")
        return "\n".join(lines)

    def _source_of(self, i: int) -> str:
        path = self._files[self._file_of[i]]
        return path if self._folder else f"{path}:{self.keys[i]}.{self._extensions[i]}"


def open_source(
    path: str | os.PathLike, annotations: str | os.PathLike | None = None, max_pixels: int = MAX_PIXELS
) -> RecordSource:
    """Index one .tar, a folder of .tar shards, a pattern `x-{000..009}.tar`, or a folder with one .jsonl and pictures.

    `annotations` is the sidecar JSONL; when None, `annotations.jsonl` beside the shards is used if it exists. For a
    folder of pictures it is the JSONL itself. ValueError when there is nothing usable, naming what was found.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        shards = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
        if not shards:
            return _open_folder(path, annotations, max_pixels)
    else:
        shards = expand_braces(path)
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise FileNotFoundError(f"no such shard: {', '.join(missing[:10])} ({len(missing)} of {len(shards)} missing)")
    if annotations is None:
        beside = os.path.join(os.path.dirname(shards[0]), "annotations.jsonl")
        annotations = beside if os.path.isfile(beside) else None
    index = _Index(max_pixels)
    if annotations is not None:
        index.load_annotations(os.fspath(annotations))
    for shard in shards:
        _index_shard(index, shard)
    return _finish(index, path)


def expand_braces(pattern: str) -> list[str]:
    """`x-{000..009}.tar` or `{a,b}.tar` -> list of paths, zero padding kept; a plain path gives itself."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        first, last = int(ends[1]), int(ends[2])
        if last < first:
            raise ValueError(f"{pattern!r}: range {match[0]} runs backwards")
        choices = [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise ValueError(f"{pattern!r}: {match[0]} is neither a range like {{000..009}} nor a list like {{a,b}}")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(expand_braces(head + choice + tail) for choice in choices))


def _finish(index: _Index, path: str) -> RecordSource:
    if not index.keys:
        problems = "; ".join(map(str, index.bad[:10])) or "no samples inside"
        raise ValueError(f"{path}: no usable sample ({problems})")
    return RecordSource(index)


class _Index:
    """What grows while files are walked; RecordSource freezes it into arrays."""

    def __init__(self, max_pixels: int, folder: bool = False):
        self.max_pixels = max_pixels
        self.folder = folder
        self.files: list[str] = []
        self.file_lengths: list[int] = []
        self.keys: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.file_of: list[int] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.extensions: list[str] = []
        self.text = bytearray()
        self.text_ends: list[int] = []
        self.bad: list[BadSample] = []
        self.annotations: dict[str, bytes] = {}  # what is left at the end has no sample
        self.unannotated: list[str] = []
        self.annotation_hash = ""
        self._seen: set[str] = set()
        self._has_annotations = False

    def reject(self, key: str, source: str, reason: str) -> None:
        self.bad.append(BadSample(key, source, reason))

    def load_annotations(self, path: str) -> None:
        """Keep the sidecar's lines by key; a broken or repeated line is named. ValueError without a header line."""
        digest = hashlib.sha256()
        self._has_annotations = True
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if not line.strip():
                    continue
                entry = _json_object(line)
                if number == 1:
                    if entry is None or "tool" not in entry or "key" in entry:
                        raise ValueError(f'{path}: the first line must be a header, {{"tool": ..., "version": ...}}')
                    continue
                key = entry.get("key") if entry else None
                if not isinstance(key, str) or not key:
                    self.reject("", f"{path}:{number}", 'not a JSON object with a "key"')
                elif key in self.annotations:
                    self.reject(key, f"{path}:{number}", "key is annotated twice; the first entry is used")
                else:
                    self.annotations[key] = line.strip()
        self.annotation_hash = digest.hexdigest()

    def add(
        self, key: str, source: str, location: tuple[int, int, int, str], captions: dict, details: dict, read_image
    ) -> None:
        """Take a sample in, or name why not; location is (file number, offset, length, extension)."""
        annotation = self.annotations.pop(key, None)
        try:
            if key in self._seen:
                raise BadSample(key, source, "duplicate key; the first sample with it is used")
            self._seen.add(key)
            entry = _parse_entry(json.loads(annotation)) if annotation else {"captions": {}, "extra": {}}
            size = entry.pop("size", None) or _declared_size(details)
            if size is None:
                size = image_size(read_image(), key, source, self.max_pixels)
            if size[0] * size[1] > self.max_pixels:
                reason = f"{size[0]}x{size[1]} pixels are more than the limit of {self.max_pixels}"
                raise BadSample(key, source, reason)
            entry["captions"] = captions | entry["captions"]
            if not entry["captions"]:
                raise BadSample(key, source, "caption is missing or empty")
        except BadSample as problem:
            self.bad.append(problem)
            return
        except (ValueError, OverflowError) as error:
            self.reject(key, source, f"annotation: {error}")
            return
        if annotation is None and self._has_annotations:
            self.unannotated.append(key)
        entry["extra"] = {name: value for name, value in details.items() if name not in _DETAIL_FIELDS} | entry["extra"]
        self._append(key, size, location, entry)

    def _append(self, key: str, size: tuple[int, int], location: tuple[int, int, int, str], entry: dict) -> None:
        file_number, offset, length, extension = location
        self.keys.append(key)
        self.sizes.append(size)
        self.file_of.append(file_number)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.extensions.append(extension)
        entry = {name: value for name, value in entry.items() if value not in ({}, [], None)}
        self.text += json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        self.text_ends.append(len(self.text))


def _json_object(line: bytes) -> dict | None:
    try:
        entry = json.loads(line)
    except ValueError:  # also UnicodeDecodeError
        return None
    return entry if isinstance(entry, dict) else None


def _clean_captions(captions: dict) -> dict[str, str]:
    """Captions stripped, empty ones left out; ValueError on an unknown kind or a value that is not text."""
    unknown = set(captions) - set(CAPTION_KINDS)
    if unknown:
        raise ValueError(f"unknown caption kind {sorted(unknown)}; known: {', '.join(CAPTION_KINDS)}")
    wrong = {kind: text for kind, text in captions.items() if not isinstance(text, str | None)}
    if wrong:
        raise ValueError(f"captions must be text, not {wrong}")
    return {kind: text.strip() for kind, text in captions.items() if text and text.strip()}


def _caption_by_language(text: str) -> dict[str, str]:
    """A caption of unstated language: "zh" when it holds a Chinese character, else "en"; {} when empty."""
    text = text.strip()
    return {"zh" if _CJK.search(text) else "en": text} if text else {}


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_tag(tag) -> bool:
    return isinstance(tag, list) and len(tag) == 2 and all(isinstance(part, str) for part in tag)


def _parse_entry(entry: dict) -> dict:
    """One annotation -> {"captions", "objects", "tags", "size", "extra"}; ValueError says what is malformed."""
    captions = entry.get("captions") or {}
    if not isinstance(captions, dict):
        raise ValueError(f'"captions" must be an object, not {captions!r}')
    listed = entry.get("objects") or []
    if not isinstance(listed, list):
        raise ValueError(f'"objects" must be a list, not {listed!r}')
    objects = []
    for item in listed:
        box = item.get("box") if isinstance(item, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise ValueError(f'an object needs "label" and "box": [x0, y0, x1, y1], not {item!r}')
        label, score = item.get("label"), item.get("score", 1.0)
        if not isinstance(label, str) or not label or not _is_number(score):
            raise ValueError(f'an object needs a "label" text and a number as "score", not {item!r}')
        objects.append((label, [float(value) for value in box], float(score)))
    tags = entry.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(map(_is_tag, tags))):
        raise ValueError(f'"tags" must be [[word, part of speech], ...], not {tags!r}')
    size = _declared_size(entry)
    if size is None and (entry.get("width") is not None or entry.get("height") is not None):
        raise ValueError(f"width {entry.get('width')!r} and height {entry.get('height')!r} must be positive integers")
    extra = {name: value for name, value in entry.items() if name not in _ENTRY_FIELDS}
    return {"captions": _clean_captions(captions), "objects": objects, "tags": tags, "size": size, "extra": extra}


def _declared_size(details: dict) -> tuple[int, int] | None:
    """(width, height) when both are given and can be trusted, else None: the image header decides."""
    size = details.get("width"), details.get("height")
    if not all(type(value) is int and 0 < value < 2**31 for value in size):
        return None
    if "Orientation" in str(details.get("exif", "")):  # img2dataset measures before EXIF rotation
        return None
    return size


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int  # of the data
    length: int
    problem: str = ""


class _Damage(Exception):
    """The walk through a tar cannot go on: (offset, reason, name of the member that was hit or "")."""


def _walk_tar(file, file_length: int) -> Iterator[_Member]:
    """Yield the files of an open tar; raise _Damage at a cut or broken header (the tarfile module would just end)."""
    offset, overrides = 0, {}
    while True:
        file.seek(offset)
        header_offset, block = offset, file.read(_TAR_BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if block == bytes(_TAR_BLOCK):  # the end-of-archive mark
                return
            if not block:
                raise _Damage(offset, "cut off: the end-of-archive mark is missing", "") from error
            what = "cut off inside a header" if len(block) < _TAR_BLOCK else f"corrupt header ({error})"
            raise _Damage(offset, what, "") from error
        name = overrides.get("path", info.name)
        try:
            length = int(overrides.get("size", info.size))
        except ValueError as error:
            raise _Damage(offset, f"corrupt header (size {overrides['size']!r})", name) from error
        data_offset = offset + _TAR_BLOCK
        if length < 0 or data_offset + length > file_length:
            raise _Damage(header_offset, f"cut off inside member {name!r}", name)
        offset = data_offset + -(-length // _TAR_BLOCK) * _TAR_BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            overrides = overrides | _read_overrides(file, header_offset, info.type, length)
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            yield _Member(name, data_offset, length)
        elif not info.isdir():
            yield _Member(name, data_offset, 0, f"not a plain file (tar type {info.type!r})")
        overrides = {}


def _read_overrides(file, header_offset: int, kind: bytes, length: int) -> dict[str, str]:
    """The "path" and "size" that a pax or GNU long-name header gives the next member."""
    if length > MAX_TEXT_BYTES:
        raise _Damage(header_offset, f"corrupt header (extension of {length} bytes)", "")
    data = file.read(length)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    overrides, position = {}, 0
    while position < length and data[position]:
        match = re.compile(rb"(\d{1,7}) ([^=]+)=").match(data, position)  # "<length of record> <name>=<value>\n"
        if match is None or int(match[1]) <= match.end() - position:
            raise _Damage(header_offset, "corrupt header (pax record)", "")
        end = position + int(match[1])
        if match[2] in (b"path", b"size"):
            overrides[match[2].decode()] = data[match.end() : end - 1].decode("utf-8", "surrogateescape")
        position = end
    return overrides


def _index_shard(index: _Index, path: str) -> None:
    """Take the samples of one shard into the index; one pass over its headers, then its small text members."""
    file_length = os.path.getsize(path)
    if file_length == 0:
        index.reject("", path, "shard has zero length")
        return
    index.files.append(path)
    index.file_lengths.append(file_length)
    groups: dict[str, dict[str, _Member]] = {}
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            index.reject("", path, "shard is compressed and cannot be read by offset: gunzip it")
            return
        try:
            for member in _walk_tar(file, file_length):
                _group_member(index, groups, path, member)
        except _Damage as damage:
            offset, reason, name = damage.args
            key = _split_name(name)[0]
            groups.pop(key, None)  # the sample that was hit is not whole
            reason = f"{reason} at byte {offset} of {file_length}; the {len(groups)} samples before it are kept"
            index.reject(key, path, reason)
        for key, members in groups.items():
            _add_group(index, file, path, key, members)


def _split_name(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` -> ("a/0001", "seg.png"): key and extension, cut at the first dot of the basename."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def _group_member(index: _Index, groups: dict[str, dict[str, _Member]], path: str, member: _Member) -> None:
    key, extension = _split_name(member.name)
    problem = member.problem
    if not key:
        problem = problem or "member name has no key before its first dot"
    elif extension in groups.get(key, ()):
        problem = problem or "duplicate key; the first member with it is used"
    if problem:
        index.reject(key, f"{path}:{member.name}", problem)
    else:
        groups.setdefault(key, {})[extension] = member


def _add_group(index: _Index, file, path: str, key: str, members: dict[str, _Member]) -> None:
    def content(member: _Member) -> bytes:
        file.seek(member.offset)
        return file.read(member.length)

    def text(extension: str) -> str:
        member = members.get(extension)
        if member is None:
            return ""
        if member.length > MAX_TEXT_BYTES:
            raise ValueError(f".{extension} has {member.length} bytes, more than {MAX_TEXT_BYTES}")
        return content(member).decode("utf-8-sig")

    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        index.annotations.pop(key, None)
        reason = f"has {len(images)} images ({', '.join(images)})" if images else "image is missing"
        index.reject(key, f"{path}:{key}", f"{reason}; members: {', '.join(sorted(members))}")
        return
    image = members[images[0]]
    try:
        details = json.loads(text("json") or "{}")
        if not isinstance(details, dict):
            raise ValueError(".json is not an object")
        caption = text("txt").strip() or details.get("caption") or ""
        if not isinstance(caption, str):
            raise ValueError(f'.json: "caption" is not text: {caption!r}')
    except ValueError as error:
        index.annotations.pop(key, None)
        index.reject(key, f"{path}:{key}", f"caption or .json cannot be read ({error})")
        return
    location = (len(index.files) - 1, image.offset, image.length, images[0])
    captions = _caption_by_language(caption)
    index.add(key, f"{path}:{image.name}", location, captions, details, lambda: content(image))


def _open_folder(folder: str, annotations: str | os.PathLike | None, max_pixels: int) -> RecordSource:
    """A folder of pictures and one JSONL: {"file_name" or "key", "captions" or "caption", "objects", ...} per line."""
    if annotations is None:
        found = sorted(glob.glob(os.path.join(glob.escape(folder), "*.jsonl")))
        if len(found) != 1:
            names = ", ".join(map(os.path.basename, found)) or "none"
            raise ValueError(
                f"{folder}: needs .tar shards or exactly one .jsonl beside the pictures; .jsonl here: {names}"
            )
        annotations = found[0]
    listing = os.fspath(annotations)
    pictures = {}
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.lower().endswith(tuple("." + extension for extension in IMAGE_EXTENSIONS)):
                relative = os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
                pictures[relative] = os.path.join(parent, name)
    by_key: dict[str, list[str]] = {}
    for relative in pictures:
        by_key.setdefault(os.path.splitext(relative)[0], []).append(relative)
    index = _Index(max_pixels, folder=True)
    listed = set()
    digest = hashlib.sha256()
    with open(listing, "rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            entry = _json_object(line) if line.strip() else {}
            if entry is None:
                index.reject("", f"{listing}:{number}", "not a JSON object")
            elif entry and not (number == 1 and "tool" in entry and "key" not in entry and "file_name" not in entry):
                listed |= _add_listed(index, f"{listing}:{number}", entry, pictures, by_key)
    index.annotation_hash = digest.hexdigest()
    for relative in pictures.keys() - listed:
        index.reject(os.path.splitext(relative)[0], pictures[relative], f"caption is missing: not in {listing}")
    index.bad.sort(key=str)
    return _finish(index, folder)


def _add_listed(index: _Index, source: str, entry: dict, pictures: dict[str, str], by_key: dict) -> set[str]:
    """Take one line of a folder's JSONL into the index; returns the pictures it speaks of."""
    name, key = entry.get("file_name"), entry.get("key")
    if isinstance(name, str):
        found = [name] if name in pictures else []
        key = key if isinstance(key, str) and key else os.path.splitext(name)[0]
    elif isinstance(key, str):
        found = by_key.get(key, [])
    else:
        index.reject("", source, 'needs "file_name" or "key"')
        return set()
    if len(found) != 1:
        reason = (
            f"several pictures: {', '.join(found)}; use file_name" if found else f"image is missing: {name or key!r}"
        )
        index.reject(key, source, reason)
        return set(found)
    path = pictures[found[0]]
    length = os.path.getsize(path)
    caption = entry.get("caption") or entry.get("text") or ""
    if not isinstance(caption, str):
        index.reject(key, source, f'"caption" is not text: {caption!r}')
        return set(found)

    def content() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    index.files.append(path)
    index.file_lengths.append(length)
    index.annotations[key] = json.dumps(entry).encode()
    location = (len(index.files) - 1, 0, length, found[0])
    index.add(key, source, location, _caption_by_language(caption), {}, content)
    return set(found)
