"""What is in shards and folders: every sample goes into an index, or is named with the reason why not.

A shard follows the webdataset convention (what img2dataset writes): the members of a sample share their name up to the
first dot of the basename, `000012.jpg` + `000012.txt` + `000012.json`. Boxes, tags and further captions come from a
sidecar JSONL keyed by sample key; its first line is a header that names the tool and version that wrote it.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tqdm import tqdm

from .index import IndexWriter
from .records import CAPTION_KINDS, IMAGE_EXTENSIONS, MAX_TEXT_BYTES, BadSample, image_size

_TAR_BLOCK = 512
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_ENTRY_FIELDS = {"key", "file_name", "width", "height", "captions", "caption", "text", "objects", "tags"}
# Fields of img2dataset's .json that are used up by the index, or say nothing about the sample.
_DETAIL_FIELDS = {"key", "caption", "width", "height", "status", "error_message", "exif"}


def fill_from_shards(writer: IndexWriter, shards: list[str], annotations: str | None) -> None:
    """Index shards in their order. ValueError when the sidecar has no header line."""
    if annotations is not None:
        _load_annotations(writer, annotations)
    for shard in tqdm(shards, desc=f"indexing into {writer.folder.parent}", unit="shard", delay=5):
        _index_shard(writer, shard)


def _load_annotations(writer: IndexWriter, path: str) -> None:
    """Note where each key's line is in the sidecar; a broken or repeated line is named."""
    for number, start, line in writer.open_sidecar(path):
        if not line.strip():
            continue
        entry = _json_object(line)
        if number == 1:
            if entry is None or "tool" not in entry or "key" in entry:
                raise ValueError(f'{path}: the first line must be a header, {{"tool": ..., "version": ...}}')
            continue
        key = entry.get("key") if entry else None
        if not isinstance(key, str) or not key:
            writer.reject("", f"{path}:{number}", 'not a JSON object with a "key"')
        elif not writer.keep_annotation(key, start, len(line)):
            writer.reject(key, f"{path}:{number}", "key is annotated twice; the first entry is used")


def _add(writer: IndexWriter, key: str, source: str, location: tuple, extension: str, captions: dict, details: dict,
         annotation: bytes | None, read_image) -> None:
    """Take a sample in, or name why not; location is (file number, offset, length, CRC-32 of its header)."""
    try:
        if not writer.is_new(key):
            raise BadSample(key, source, "duplicate key; the first sample with it is used")
        entry = _parse_entry(json.loads(annotation)) if annotation else {"captions": {}, "extra": {}}
        size = entry.pop("size", None) or _declared_size(details)
        if size is None:
            size = image_size(read_image(), key, source, writer.max_pixels)
        if size[0] * size[1] > writer.max_pixels:
            reason = f"{size[0]}x{size[1]} pixels are more than the limit of {writer.max_pixels}"
            raise BadSample(key, source, reason)
        entry["captions"] = captions | entry["captions"]
        if not entry["captions"]:
            raise BadSample(key, source, "caption is missing or empty")
    except BadSample as problem:
        writer.reject(problem.key, problem.source, problem.reason)
        return
    except (ValueError, OverflowError) as error:
        writer.reject(key, source, f"annotation: {error}")
        return
    entry["extra"] = {name: value for name, value in details.items() if name not in _DETAIL_FIELDS} | entry["extra"]
    writer.append(key, size, location, extension, entry, annotated=annotation is not None)


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
    header: int = 0  # CRC-32 of the block before the data
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
            yield _Member(name, data_offset, length, zlib.crc32(block))
        elif not info.isdir():
            yield _Member(name, data_offset, 0, 0, f"not a plain file (tar type {info.type!r})")
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


def _index_shard(writer: IndexWriter, path: str) -> None:
    """Take the samples of one shard into the index; one pass over its headers, then its small text members."""
    file_length = os.path.getsize(path)
    if file_length == 0:
        writer.reject("", path, "shard has zero length")
        return
    writer.files.append(os.path.relpath(path, writer.base or "."))
    writer.file_lengths.append(file_length)
    groups: dict[str, dict[str, _Member]] = {}
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            writer.reject("", path, "shard is compressed and cannot be read by offset: gunzip it")
            return
        try:
            for member in _walk_tar(file, file_length):
                _group_member(writer, groups, path, member)
        except _Damage as damage:
            offset, reason, name = damage.args
            key = _split_name(name)[0]
            groups.pop(key, None)  # the sample that was hit is not whole
            reason = f"{reason} at byte {offset} of {file_length}; the {len(groups)} samples before it are kept"
            writer.reject(key, path, reason)
        for key, members in groups.items():
            _add_group(writer, file, path, key, members)


def _split_name(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` -> ("a/0001", "seg.png"): key and extension, cut at the first dot of the basename."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def _group_member(writer: IndexWriter, groups: dict[str, dict[str, _Member]], path: str, member: _Member) -> None:
    key, extension = _split_name(member.name)
    problem = member.problem
    if not key:
        problem = problem or "member name has no key before its first dot"
    elif extension in groups.get(key, ()):
        problem = problem or "duplicate key; the first member with it is used"
    if problem:
        writer.reject(key, f"{path}:{member.name}", problem)
    else:
        groups.setdefault(key, {})[extension] = member


def _add_group(writer: IndexWriter, file, path: str, key: str, members: dict[str, _Member]) -> None:
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
        writer.take_annotation(key)
        reason = f"has {len(images)} images ({', '.join(images)})" if images else "image is missing"
        writer.reject(key, f"{path}:{key}", f"{reason}; members: {', '.join(sorted(members))}")
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
        writer.take_annotation(key)
        writer.reject(key, f"{path}:{key}", f"caption or .json cannot be read ({error})")
        return
    location = (len(writer.files) - 1, image.offset, image.length, image.header)
    captions, annotation = _caption_by_language(caption), writer.take_annotation(key)
    _add(writer, key, f"{path}:{image.name}", location, images[0], captions, details, annotation,
         lambda: content(image))


def find_pictures(folder: str) -> dict[str, str]:
    """Pictures under a folder, {relative name: path}."""
    pictures = {}
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.lower().endswith(tuple("." + extension for extension in IMAGE_EXTENSIONS)):
                relative = os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
                pictures[relative] = os.path.join(parent, name)
    return pictures


def find_listing(folder: str) -> str:
    """The one JSONL beside the pictures of a folder; ValueError when there is none or several."""
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "*.jsonl")))
    if len(found) != 1:
        names = ", ".join(map(os.path.basename, found)) or "none"
        raise ValueError(f"{folder}: needs .tar shards or exactly one .jsonl beside the pictures; .jsonl here: {names}")
    return found[0]


def fill_from_folder(writer: IndexWriter, listing: str, pictures: dict[str, str]) -> None:
    """Index the pictures of a folder: {"file_name" or "key", "captions" or "caption", "objects", ...} per line.

    For small sets: while it is indexed, the names of all pictures are in memory.
    """
    by_key: dict[str, list[str]] = {}
    for relative in pictures:
        by_key.setdefault(os.path.splitext(relative)[0], []).append(relative)
    listed = set()
    for number, _, line in writer.open_sidecar(listing):
        entry = _json_object(line) if line.strip() else {}
        if entry is None:
            writer.reject("", f"{listing}:{number}", "not a JSON object")
        elif entry and not (number == 1 and "tool" in entry and "key" not in entry and "file_name" not in entry):
            listed |= _add_listed(writer, f"{listing}:{number}", entry, pictures, by_key)
    for relative in sorted(pictures.keys() - listed):
        reason = f"caption is missing: not in {listing}"
        writer.reject(os.path.splitext(relative)[0], pictures[relative], reason)


def _add_listed(writer: IndexWriter, source: str, entry: dict, pictures: dict[str, str], by_key: dict) -> set[str]:
    """Take one line of a folder's JSONL into the index; returns the pictures it speaks of."""
    name, key = entry.get("file_name"), entry.get("key")
    if isinstance(name, str):
        found = [name] if name in pictures else []
        key = key if isinstance(key, str) and key else os.path.splitext(name)[0]
    elif isinstance(key, str):
        found = by_key.get(key, [])
    else:
        writer.reject("", source, 'needs "file_name" or "key"')
        return set()
    if len(found) != 1:
        reason = (
            f"several pictures: {', '.join(found)}; use file_name" if found else f"image is missing: {name or key!r}"
        )
        writer.reject(key, source, reason)
        return set(found)
    path = pictures[found[0]]
    caption = entry.get("caption") or entry.get("text") or ""
    if not isinstance(caption, str):
        writer.reject(key, source, f'"caption" is not text: {caption!r}')
        return set(found)

    def content() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    location, captions = (-1, 0, os.path.getsize(path), 0), _caption_by_language(caption)
    _add(writer, key, source, location, found[0], captions, {}, json.dumps(entry).encode(), content)
    return set(found)
