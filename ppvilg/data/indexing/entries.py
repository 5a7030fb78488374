"""One sample of an index: what its texts say, checked; the size that its picture has, whatever they declare."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..records import CAPTION_KINDS, BadSample, image_size
from .writer import IndexWriter

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_ENTRY_FIELDS = {"key", "shard", "file_name", "width", "height", "captions", "caption", "text", "objects", "tags",
                 "rejected"}  # fmt: skip
# Fields of img2dataset's .json that are used up by the index, or say nothing about the sample.
_DETAIL_FIELDS = {"key", "caption", "width", "height", "status", "error_message", "exif"}


@dataclass(frozen=True)
class Found:
    """A sample as it lies in the data: location is (file number, offset, length, CRC-32 of its header)."""

    key: str
    source: str
    location: tuple[int, int, int, int]
    extension: str
    header: Callable[[], bytes]  # reads as much of the picture as holds its size
    caption: str = ""
    details: dict = field(default_factory=dict)  # of a shard's own .json
    annotation: bytes | None = None  # a line of JSON
    picture: str = ""  # where the picture is, if `source` is where it is spoken of


def add(writer: IndexWriter, found: Found) -> bool:
    """Take a sample in, or name why not; whether it was taken, or left out on purpose."""
    try:
        entry = _parse(found.annotation) if found.annotation else {"captions": {}, "extra": {}}
        rejected = entry.pop("rejected", None)
        if rejected:
            stage, reason = rejected
            name = writer.reject if stage == "read" else writer.leave_out
            name(found.key, found.source, f"annotations: {stage}: {reason}")
            return True
        captions = caption_by_language(found.caption) | entry["captions"]
        if not captions and writer.needs_captions:
            raise BadSample(found.key, found.source, "caption is missing or empty")
        size = image_size(found.header(), found.key, found.picture or found.source, writer.max_pixels)
        declared = entry.pop("size", None)
        if declared not in (None, size) and entry["objects"]:
            reason = "its boxes were drawn on a picture of {}x{}, this one is {}x{}: correct the annotation"
            raise BadSample(found.key, found.source, reason.format(*declared, *size))
    except BadSample as problem:
        writer.reject(problem.key, problem.source, problem.reason)
        return False
    except OSError as error:
        writer.reject(found.key, found.source, f"cannot be read ({error.strerror or error})")
        return False
    except (ValueError, OverflowError, RecursionError) as error:
        writer.reject(found.key, found.source, f"annotation: {error}")
        return False
    for hint in (declared, _size_in_details(found.details, size)):
        if hint not in (None, size):
            writer.wrong_hint(found.source, hint, size)
            break
    entry["captions"] = captions
    entry["extra"] = {k: v for k, v in found.details.items() if k not in _DETAIL_FIELDS} | entry["extra"]
    writer.append(found.key, size, found.location, found.extension, entry, annotated=found.annotation is not None)
    return True


def json_object(line: bytes) -> dict:
    """The object in a line of JSON; ValueError says what it is instead."""
    text = utf8(line)
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"not a JSON object but {type(entry).__name__}")
    return entry


def utf8(data: bytes) -> str:
    """A text without its byte order mark; ValueError when it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}), perhaps GBK or UTF-16: save it as UTF-8") from None


def caption_by_language(text: str) -> dict[str, str]:
    """A caption of unstated language: "zh" when it holds a Chinese character, else "en"; {} when empty."""
    text = text.strip()
    return {"zh" if _CJK.search(text) else "en": text} if text else {}


def _clean_captions(captions: dict) -> dict[str, str]:
    """Captions stripped, empty ones left out; ValueError on an unknown kind or a value that is not text."""
    unknown = set(captions) - set(CAPTION_KINDS)
    if unknown:
        raise ValueError(f"unknown caption kind {sorted(unknown)}; known: {', '.join(CAPTION_KINDS)}")
    wrong = {kind: text for kind, text in captions.items() if not isinstance(text, str | None)}
    if wrong:
        raise ValueError(f"captions must be text, not {wrong}")
    return {kind: text.strip() for kind, text in captions.items() if text and text.strip()}


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_tag(tag) -> bool:
    return isinstance(tag, list) and len(tag) == 2 and all(isinstance(part, str) for part in tag)


def _parse(line: bytes) -> dict:
    """One annotation -> {"captions", "objects", "tags", "size", "extra", "rejected"}; ValueError: what is malformed."""
    entry = json_object(line)
    captions = entry.get("captions") or {}
    if not isinstance(captions, dict):
        raise ValueError(f'"captions" must be an object, not {captions!r}')
    listed = entry.get("objects") or []
    if not isinstance(listed, list):
        raise ValueError(f'"objects" must be a list, not {listed!r}')
    tags = entry.get("tags")
    if tags is not None and not (isinstance(tags, list) and all(map(_is_tag, tags))):
        raise ValueError(f'"tags" must be [[word, part of speech], ...], not {tags!r}')
    extra = {name: value for name, value in entry.items() if name not in _ENTRY_FIELDS}
    return {"captions": _clean_captions(captions), "objects": list(map(_parse_object, listed)), "tags": tags,
            "size": _declared_size(entry), "extra": extra,
            "rejected": _parse_rejected(entry.get("rejected"))}  # fmt: skip


def _parse_rejected(value) -> tuple[str, str] | None:
    """(stage, reason) of a sample that whoever annotated it wants left out."""
    if not value:
        return None
    parts = (value.get("stage"), value.get("reason")) if isinstance(value, dict) else ()
    if not (parts and all(isinstance(part, str) for part in parts)):
        raise ValueError(f'"rejected" must be {{"stage": ..., "reason": ...}}, not {value!r}')
    return parts


def _parse_object(item) -> tuple[str, list[float], float]:
    """(label, box, score)."""
    box = item.get("box") if isinstance(item, dict) else None
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(f'an object needs "label" and "box": [x0, y0, x1, y1], not {item!r}')
    label, score = item.get("label"), item.get("score", 1.0)
    if not isinstance(label, str) or not label or not _is_number(score) or not math.isfinite(score):
        raise ValueError(f'an object needs a "label" text and a number as "score", not {item!r}')
    return label, [float(value) for value in box], float(score)


def _declared_size(entry: dict) -> tuple[int, int] | None:
    """(width, height) when both are given; (0, 0) when they are no sizes."""
    size = entry.get("width"), entry.get("height")
    if size == (None, None):
        return None
    return size if all(type(value) is int and 0 < value < 2**31 for value in size) else (0, 0)


def _size_in_details(details: dict, real: tuple[int, int]) -> tuple[int, int] | None:
    """The size that a shard's own .json declares; img2dataset measures before EXIF rotation, which is no mistake."""
    size = _declared_size(details)
    turned = size is not None and size[::-1] == real and "Orientation" in str(details.get("exif", ""))
    return None if turned else size
