"""Takes samples one by one into the files of an index; memory does not grow with their number."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

COLUMNS = {
    "sizes": (np.dtype("<i4"), 2),  # width, height
    "file_of": (np.dtype("<i4"), 1),  # number of the shard; -1: a file of its own, named in the text
    "offsets": (np.dtype("<i8"), 1),  # of the picture in its file
    "lengths": (np.dtype("<i8"), 1),
    "headers": (np.dtype("<u4"), 1),  # CRC-32 of the tar header before the picture; 0: none
    "text_ends": (np.dtype("<i8"), 1),
}
LISTS = ("problems", "unannotated", "unmatched", "unlisted", "left_out")
_BLOCK = 2**20


class IndexWriter:
    """The files of an index in the making. `base` is the folder that names of files are relative to."""

    needs_captions = True  # a sample without any is of no use

    def __init__(self, folder: Path, base: str, max_pixels: int):
        self.folder, self.base, self.max_pixels = folder, base, max_pixels
        self._open = []
        self.start_again()

    def start_again(self) -> None:
        """Forget everything that was taken in."""
        self.close()
        self.files: list[str] = []
        self.file_lengths: list[int] = []
        self.counts = {"samples": 0, "files_used": 0, "wrong_hints": 0, **dict.fromkeys(LISTS, 0)}
        self.first_wrong_hint = ""
        self.annotation_hash, self.has_annotations = "", False
        self._columns = {name: open(self.folder / f"{name}.bin", "wb", _BLOCK) for name in COLUMNS}
        self._text = open(self.folder / "text.bin", "wb", _BLOCK)
        self._lists = {name: open(self.folder / f"{name}.jsonl", "w", encoding="utf-8", errors="surrogatepass")
                       for name in LISTS}  # fmt: skip
        self._open = [*self._columns.values(), self._text, *self._lists.values()]
        self._text_end, self._last_file = 0, None

    def add_file(self, path: str, length: int) -> int:
        """Note a shard; returns its number."""
        self.files.append(os.path.relpath(path, self.base or "."))
        self.file_lengths.append(length)
        return len(self.files) - 1

    def reject(self, key: str, source: str, reason: str) -> None:
        """Name what cannot be used."""
        if self.base and source.startswith(self.base + os.sep):
            source = source[len(self.base) + 1 :]  # the index moves with its data
        self._note("problems", {"key": key, "source": source, "reason": reason})

    def leave_out(self, key: str, source: str, reason: str) -> None:
        """Name what annotations want left out; it is no fault of the data."""
        self._note("left_out", {"key": key, "source": os.path.relpath(source, self.base or "."), "reason": reason})

    def unmatched(self, key: str) -> None:
        """Name an annotation for which there is no sample."""
        self._note("unmatched", key)

    def unlisted(self, name: str) -> None:
        """Name a picture of which the listing of its folder does not speak."""
        self._note("unlisted", name)

    def wrong_hint(self, source: str, declared: tuple, real: tuple) -> None:
        """Count a declared size that is not the picture's."""
        self.counts["wrong_hints"] += 1
        self.first_wrong_hint = self.first_wrong_hint or (
            f"{os.path.relpath(source, self.base or '.')} is said to be {declared[0]}x{declared[1]} and is "
            f"{real[0]}x{real[1]}"
        )

    def append(self, key: str, size: tuple[int, int], location: tuple[int, int, int, int], extension: str, entry: dict,
               annotated: bool) -> None:
        """Take a sample; location is (file number, offset, length, CRC-32 of its header)."""
        file_number, offset, length, header = location
        entry = {name: value for name, value in entry.items() if value not in ({}, [], None)}
        text = json.dumps([key, extension, entry], ensure_ascii=False, separators=(",", ":"))
        self._text_end += self._text.write(text.encode("utf-8", "surrogatepass"))
        values = (size, file_number, offset, length, header, self._text_end)
        for (name, (dtype, _)), value in zip(COLUMNS.items(), values):
            self._columns[name].write(np.asarray(value, dtype).tobytes())
        self.counts["samples"] += 1
        if file_number < 0 or file_number != self._last_file:  # samples come file by file
            self.counts["files_used"] += 1
        self._last_file = file_number
        if not annotated and self.has_annotations:
            self._note("unannotated", key)

    def finish(self, **manifest) -> None:
        """Write what is left, and the manifest with the fields given."""
        self.close()
        names = list(map(os.path.basename, self.files))
        manifest |= {
            "files": self.files, **self.counts, "text_bytes": self._text_end, "first_wrong_hint": self.first_wrong_hint,
            "max_pixels": self.max_pixels,
            "fingerprint": _fingerprint(self.folder, [names, self.file_lengths, self.annotation_hash]),
        }  # fmt: skip
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def close(self) -> None:
        """Let go of the files."""
        for file in self._open:
            file.close()

    def _note(self, name: str, row) -> None:
        self.counts[name] += 1
        self._lists[name].write(json.dumps(row) + "\n")


def _fingerprint(folder: Path, listing: list) -> str:
    """sha256 of what the data is: names and sizes of files, index, texts, sidecar; not where or when it was written."""
    digest = hashlib.sha256(b"ppvilg records 2\0" + json.dumps(listing).encode())
    for name in (*(name for name in COLUMNS if name != "headers"), "text"):
        path = folder / f"{name}.bin"
        digest.update(path.stat().st_size.to_bytes(8, "little"))  # keeps neighbouring parts from running together
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
