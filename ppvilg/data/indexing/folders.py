"""A folder of pictures with one JSONL -> index. A sample is a picture: its file name in the folder.

For small sets: while it is indexed, the names of all files are in memory.
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import defaultdict
from functools import cached_property

from ..records import IMAGE_EXTENSIONS, OTHER_PICTURE_EXTENSIONS
from .annotations import read_jsonl
from .entries import Found, add, json_object
from .tars import COMPRESSED
from .writer import IndexWriter


def find_files(folder: str, skip: str) -> tuple[dict[str, str], list[OSError]]:
    """({relative name: path} of the files under a folder, folders that cannot be read).

    Linked folders are followed, each once; folders of the name `skip` are not looked into.
    """
    files, unreadable, seen, later = {}, [], set(), [folder]
    while later:
        for parent, names, found in os.walk(later.pop(0), onerror=unreadable.append):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                names.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            names[:] = sorted(name for name in names if name != skip)
            # Real folders first: a link to one of them must not give its files another name.
            later += [path for name in names if os.path.islink(path := os.path.join(parent, name))]
            for path in (os.path.join(parent, name) for name in sorted(found)):
                if os.path.isfile(path):
                    files[os.path.relpath(path, folder).replace(os.sep, "/")] = path
    return files, unreadable


def is_picture(name: str, others: bool = False) -> bool:
    """Whether a file is named as a picture that can be used, or with `others` as any picture."""
    extension = os.path.splitext(name)[1].lower().removeprefix(".")
    return extension in IMAGE_EXTENSIONS or (others and extension in OTHER_PICTURE_EXTENSIONS)


def find_listing(folder: str) -> str | None:
    """The one JSONL beside the pictures of a folder, None where there is none; ValueError when there are several."""
    found = sorted(glob.glob(os.path.join(glob.escape(folder), "*.jsonl")))
    if len(found) == 1:
        return found[0]
    packed = sorted(name for name in os.listdir(folder) if name.lower().endswith(COMPRESSED))
    if packed and not found:
        raise ValueError(
            f"{folder}: holds compressed shards ({', '.join(packed[:3])}{', ...' if len(packed) > 3 else ''}), which "
            "cannot be read by offset: unpack them to .tar"
        )
    if not found:
        return None
    names = ", ".join(map(os.path.basename, found))
    raise ValueError(f"{folder}: needs .tar shards or at most one .jsonl beside the pictures; .jsonl here: {names}")


def fill_from_folder(writer: IndexWriter, folder: str, listing: str, files: dict[str, str],
                     unreadable: list[OSError]) -> None:
    """Index the pictures of a folder: {"file_name" or "key", "captions" or "caption", "objects", ...} per line."""
    for error in unreadable:
        writer.reject("", str(error.filename), f"folder cannot be read ({error.strerror})")
    names, used, spoken_of = Names(folder, files), set(), set()
    for number, _, line in read_jsonl(listing):
        source, entry = f"{listing}:{number}", {}
        try:
            entry = json_object(line)
            if number == 1 and "tool" in entry and "key" not in entry and "file_name" not in entry:
                continue
            name, key = names.find(entry)
            spoken_of.add(name)
            if name in used:
                raise ValueError(f"{name} is listed twice; the first line that can be used is used")
            if _add_listed(writer, source, entry, line, name, key, files[name]):
                used.add(name)
        except ValueError as error:
            key = entry.get("key") or entry.get("file_name")
            writer.reject(key if isinstance(key, str) else "", source, str(error))
    for name in sorted(filter(is_picture, files.keys() - spoken_of)):
        writer.unlisted(name)


def _add_listed(writer: IndexWriter, source: str, entry: dict, line: bytes, name: str, key: str, path: str) -> bool:
    """Take the picture of one line into the index."""
    caption = entry.get("caption") or entry.get("text") or ""
    if not isinstance(caption, str):
        raise ValueError(f'"caption" is not text: {caption!r}')

    def content() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    location = (-1, 0, os.path.getsize(path), 0)
    return add(writer, Found(key, source, location, name, content, caption, {}, line, path))


class Names:
    """Finds the file that a line speaks of, by its name as people and other systems write it.

    Of a name the file itself counts; else separators of Windows, `./`, absolute paths, another Unicode normal form, the
    case of the extension, and a path through a linked folder; last, whatever the case, a name that only one file has.
    """

    def __init__(self, folder: str, files: dict[str, str]):
        self.folder, self.files = folder, files
        self._by_plain, self._by_stem = defaultdict(list), defaultdict(list)
        for name in files:
            self._by_plain[_plain(name)].append(name)
            self._by_stem[_plain(os.path.splitext(name)[0])].append(name)

    def find(self, entry: dict) -> tuple[str, str]:
        """(name of the file, key of the sample) of a line; ValueError says why there is none."""
        name, key = entry.get("file_name"), entry.get("key")
        if not isinstance(name, str) and not isinstance(key, str):
            raise ValueError('needs "file_name" or "key"')
        if isinstance(name, str):
            found = self._of_name(name)
        else:
            stems = self._by_stem.get(_plain(key), [])
            found = [each for each in stems if is_picture(each)]
            found = found or [each for each in stems if is_picture(each, others=True)]
        if len(found) > 1:
            raise ValueError(f"several pictures: {', '.join(found)}; use file_name")
        if not found:
            raise ValueError(f"image is missing: {name or key!r}")
        return found[0], key if isinstance(key, str) and key else os.path.splitext(found[0])[0]

    def _of_name(self, name: str) -> list[str]:
        if name in self.files:
            return [name]
        plain = _plain(name)
        return self._by_plain.get(plain) or self._by_path(name) or sorted(self._by_folded.get(plain.casefold(), []))

    def _by_path(self, name: str) -> list[str]:
        """The file that a path leads to, when that is one of ours."""
        try:
            real = os.path.realpath(os.path.join(self.folder, name.replace("\\", "/")))
        except ValueError:  # a zero byte
            return []
        return [self._by_real[real]] if real in self._by_real else []

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        folded = defaultdict(list)
        for name in self.files:
            folded[_plain(name).casefold()].append(name)
        return folded

    @cached_property
    def _by_real(self) -> dict[str, str]:
        return {os.path.realpath(path): name for name, path in self.files.items()}


def _plain(name: str) -> str:
    """A name without what differs between systems."""
    name = unicodedata.normalize("NFC", os.path.normpath(name.replace("\\", "/")))
    stem, extension = os.path.splitext(name)
    return stem + extension.lower()
