"""The index of a data set: built once, kept in files beside the shards, and read through memory maps.

A sample costs 40 bytes and its texts on disk, and nothing in memory. The index is made again when a file it speaks of
has another size or modification time; which ones is said in the log and kept in the index.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ppvilg.files import cache_folder, naming_disk_errors

from .indexing import COLUMNS, IndexWriter
from .records import BadSample

logger = logging.getLogger(__name__)

FORMAT = 3  # raise it when the files below change their meaning
HOME = ".ppvilg"  # beside the shards


class Index:
    """A finished index, read through memory maps. `column(name)` is (n,) or (n, 2); texts are [key, extension, entry].

    Raises ValueError when the folder holds no whole index of this version.
    """

    def __init__(self, folder: str | os.PathLike, base: str):
        self.folder, self.base = Path(folder), base
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: no index ({error})") from error
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{folder}: index of format {self.manifest.get('format')}, not {FORMAT}")
        self._check_whole()
        self.files = [os.path.normpath(os.path.join(base, name)) for name in self.manifest["files"]]
        self._text = np.memmap(self.folder / "text.bin", np.uint8, "r")

    def _check_whole(self) -> None:
        """A crash of the machine may leave files without what was written to them."""
        sizes = {name: len(self) * dtype.itemsize * width for name, (dtype, width) in COLUMNS.items()}
        for name, size in (sizes | {"text": self.manifest["text_bytes"]}).items():
            path = self.folder / f"{name}.bin"
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(f"{path} is torn")

    def __len__(self) -> int:
        return self.manifest["samples"]

    def column(self, name: str) -> np.ndarray:
        """A column as a read-only memory map."""
        dtype, width = COLUMNS[name]
        shape = (len(self), width) if width > 1 else (len(self),)
        return np.asarray(np.memmap(self.folder / f"{name}.bin", dtype, "r", shape=shape))

    def text(self, start: int, end: int) -> list:
        """[key, extension, entry] that lies between two bytes of the texts."""
        return json.loads(self._text[start:end].tobytes().decode("utf-8", "surrogatepass"))

    def problems(self) -> Iterator[BadSample]:
        """What could not be used while indexing, read one by one."""
        yield from self._named("problems")

    def left_out(self) -> Iterator[BadSample]:
        """What annotations want left out, read one by one."""
        yield from self._named("left_out")

    def _named(self, which: str) -> Iterator[BadSample]:
        for row in self._rows(which):
            source = os.path.join(self.base, row["source"]) if self.base and row["source"] else row["source"]
            yield BadSample(row["key"], source, row["reason"])

    def keys(self, which: str) -> Iterator[str]:
        """Keys of "unannotated" samples or "unmatched" annotations, names of "unlisted" pictures, one by one."""
        return self._rows(which)

    def _rows(self, name: str) -> Iterator:
        with open(self.folder / f"{name}.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)


def stamp_of(path: str | os.PathLike) -> list[int]:
    """[size in bytes, modification time in ns]: what an index is checked by."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def changed_since(manifest: dict, stamps: dict) -> list[str]:
    """Names of files that are new, gone or other than when the index was made."""
    before = manifest["stamps"]
    return [name for name in {**before, **stamps} if before.get(name) != stamps.get(name)]


def home_of(base: str) -> Path:
    """Folder for what is kept about the data in `base`: beside them, else in the user's cache folder."""
    beside = Path(base or ".") / HOME
    with contextlib.suppress(OSError):
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    place = cache_folder() / hashlib.sha256(os.path.abspath(base).encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    logger.info("%s cannot be written to: its index is kept in %s", base, place)
    return place


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Wait until no other process is inside; ends by itself with the process."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_index(base: str, request: dict, stamps: dict, max_pixels: int, fill, home: Path | None = None) -> Index:
    """The index of `request` if it is there and fits `stamps` ({file: stamp}), else a new one, filled by fill(writer).

    Several processes may ask at once: one builds, the others wait. ValueError when nothing is usable, naming why.
    """
    name = "index_" + hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    beside = Path(base or ".") / HOME
    if home is None and (beside / name).is_dir() and not os.access(beside, os.W_OK):  # made by somebody who could
        ready, _ = _usable(beside / name, base, stamps)
        if ready is not None:
            return ready
    home = home_of(base) if home is None else Path(home)
    home.mkdir(parents=True, exist_ok=True)
    folder = home / name
    with only_one(home / f".{name}.lock"):
        old, changed = _usable(folder, base, stamps)
        if old is not None:
            return old
        partial = home / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            with naming_disk_errors(home):
                _build(partial, base, request, stamps, changed, max_pixels, fill)
            if folder.exists():
                os.rename(folder, partial / "old")
            os.rename(partial, folder)
            shutil.rmtree(folder / "old", ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Index(folder, base)


def _usable(folder: Path, base: str, stamps: dict) -> tuple[Index | None, list[str]]:
    """(the index in a folder if it fits, else the names of files for which it does not)."""
    if not folder.is_dir():
        return None, []
    try:
        index = Index(folder, base)
    except ValueError as error:
        logger.warning("%s; it is made again", error)
        return None, []
    changed = changed_since(index.manifest, stamps)
    if changed:
        logger.warning("%d files changed since %s was indexed, the index is made again: %s", len(changed),
                       base or "the data", ", ".join(changed[:50]) + (", ..." if len(changed) > 50 else ""))
    return (None if changed else index), changed


def _build(partial: Path, base: str, request: dict, stamps: dict, changed: list, max_pixels: int, fill) -> None:
    writer = IndexWriter(partial, base, max_pixels)
    try:
        fill(writer)
        if not writer.counts["samples"]:
            writer.close()
            rows = [json.loads(line) for line in (partial / "problems.jsonl").read_text("utf-8").splitlines()[:10]]
            problems = "; ".join(str(BadSample(row["key"], row["source"], row["reason"])) for row in rows)
            others = {"unlisted": "pictures that no line speaks of", "left_out": "samples that annotations leave out"}
            rest = ", ".join(f"{writer.counts[name]} {what}" for name, what in others.items() if writer.counts[name])
            raise ValueError(f"{base or '.'}: no usable sample ({problems or rest or 'no samples inside'})")
        writer.finish(format=FORMAT, request=request, stamps=stamps, changed=changed)
    finally:
        writer.close()


class KeyView(Sequence):
    """Keys of all samples, read from the index when asked for."""

    def __init__(self, read, length: int):
        self._read, self._length = read, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self._read(i) for i in range(*place.indices(self._length))]
        if not -self._length <= place < self._length:
            raise IndexError(f"sample {place} of {self._length}")
        return self._read(place % self._length)

    def __eq__(self, other) -> bool:
        return len(self) == len(other) and all(one == two for one, two in zip(self, other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{self._length} keys: {', '.join(map(repr, self[:3]))}, ...>"
