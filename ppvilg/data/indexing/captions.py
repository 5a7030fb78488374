"""A folder of pictures without a JSONL -> index: captions are in text files beside them, or in their names."""

from __future__ import annotations

import os
import re

from .entries import Found, add, utf8
from .folders import is_picture
from .writer import IndexWriter

TEXT_EXTENSIONS = (".txt", ".caption")
_COPY = re.compile(r"\s*(\(\d+\)|（\d+）|[_\-. ]\d+)$")  # "猫 (2)", "猫_03": numbers that tell copies apart
_WORDS = re.compile(r"[^\W\d_]{2,}[\W_]+[^\W\d_]{2,}|[\u3400-\u9fff]")
# What cameras, screens and messengers call pictures.
_NO_CAPTION = re.compile(
    r"(微信|QQ)?(图片|照片|截图|屏幕截图|屏幕快照|未命名|无标题)|(img|dsc[nf]?|pxl|photo|image|screen ?shot)\b.*",
    re.IGNORECASE,
)


def caption_files(files: dict[str, str]) -> dict[str, str]:
    """{name of a picture: path of the text file beside it}, of those that have one."""
    texts = {os.path.splitext(name)[0]: path for name, path in files.items() if name.lower().endswith(TEXT_EXTENSIONS)}
    stems = ((name, os.path.splitext(name)[0]) for name in files if is_picture(name, others=True))
    return {name: texts[stem] for name, stem in stems if stem in texts}


def caption_in_name(name: str) -> str:
    """The caption that a file's name is: without folders, extension and number of a copy; "" where it is none."""
    stem = os.path.splitext(os.path.basename(name))[0]
    while _COPY.search(stem):
        stem = _COPY.sub("", stem)
    words = " ".join(stem.replace("_", " ").split())
    return words if _WORDS.search(words) and not _NO_CAPTION.fullmatch(words) else ""


def fill_from_pictures(writer: IndexWriter, files: dict[str, str], unreadable: list[OSError]) -> None:
    """Index every picture of a folder; where one has a text file beside it, all need one."""
    for error in unreadable:
        writer.reject("", str(error.filename), f"folder cannot be read ({error.strerror})")
    texts = caption_files(files)
    for name in sorted(name for name in files if is_picture(name, others=True)):
        key, path = os.path.splitext(name)[0], files[name]
        try:
            caption = _read(texts[name]) if name in texts else "" if texts else caption_in_name(name)
        except (OSError, ValueError) as error:
            writer.reject(key, texts[name], str(error))
            continue
        if not caption:
            writer.reject(key, path, _missing(name, texts))
            continue
        location = (-1, 0, os.path.getsize(path), 0)
        add(writer, Found(key, path, location, name, lambda path=path: _bytes(path), caption))


def _missing(name: str, texts: dict[str, str]) -> str:
    if name in texts:
        return f"its caption is missing: {os.path.basename(texts[name])} is empty"
    stem = os.path.splitext(os.path.basename(name))[0]
    if texts:
        return f"its caption is missing: other pictures have a text file, write {stem}.txt too"
    return f"its caption is missing: name the file after what it shows (一只猫.png), or write {stem}.txt beside it"


def _read(path: str) -> str:
    return utf8(_bytes(path)).strip()


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
