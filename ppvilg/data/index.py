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
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .order import RangeBuckets
from .records import BadSample
from .transforms import ImageTransform

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the files below change their meaning
HOME = ".ppvilg"  # beside the shards
COLUMNS = {
    "sizes": (np.dtype("<i4"), 2),  # width, height
    "file_of": (np.dtype("<i4"), 1),  # number of the shard; -1: a file of its own, named in the text
    "offsets": (np.dtype("<i8"), 1),  # of the picture in its file
    "lengths": (np.dtype("<i8"), 1),
    "headers": (np.dtype("<u4"), 1),  # CRC-32 of the tar header before the picture; 0: none
    "text_ends": (np.dtype("<i8"), 1),
}
_BLOCK = 2**20


class IndexWriter:
    """Takes samples one by one into the files of an index; memory does not grow with their number.

    `base` is the folder that names of files are relative to. Keys are looked up in a temporary SQLite file.
    """

    def __init__(self, folder: Path, base: str, max_pixels: int):
        self.folder, self.base, self.max_pixels = folder, base, max_pixels
        self.files: list[str] = []
        self.file_lengths: list[int] = []
        self.counts = {"samples": 0, "problems": 0, "unannotated": 0, "unmatched": 0, "files_used": 0}
        self.annotation_hash = ""
        self.has_annotations = False
        self._columns = {name: open(folder / f"{name}.bin", "wb", _BLOCK) for name in COLUMNS}
        self._text = open(folder / "text.bin", "wb", _BLOCK)
        self._lists = {name: open(folder / f"{name}.jsonl", "w", encoding="utf-8", errors="surrogatepass")
                       for name in ("problems", "unannotated", "unmatched")}
        self._text_end, self._last_file = 0, None
        self._sidecar = None
        self._keys = sqlite3.connect(folder / "keys.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-65536",
            "CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE annotation (key BLOB PRIMARY KEY, start INTEGER, length INTEGER) WITHOUT ROWID", "BEGIN",
        ):
            self._keys.execute(statement)

    def reject(self, key: str, source: str, reason: str) -> None:
        """Name what cannot be used."""
        if self.base and source.startswith(self.base + os.sep):
            source = source[len(self.base) + 1 :]  # the index moves with its data
        self.counts["problems"] += 1
        row = {"key": key, "source": source, "reason": reason}
        self._lists["problems"].write(json.dumps(row) + "\n")

    def is_new(self, key: str) -> bool:
        """Whether no sample had this key before."""
        return self._keys.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_bytes(key),)).rowcount == 1

    def keep_annotation(self, key: str, start: int, length: int) -> bool:
        """Note where the sidecar speaks of a key; False when it did already."""
        row = (_bytes(key), start, length)
        return self._keys.execute("INSERT OR IGNORE INTO annotation VALUES (?, ?, ?)", row).rowcount == 1

    def take_annotation(self, key: str) -> bytes | None:
        """The sidecar's line of a key, once."""
        if not self.has_annotations:
            return None
        found = self._keys.execute("SELECT start, length FROM annotation WHERE key = ?", (_bytes(key),)).fetchone()
        if found is None:
            return None
        self._keys.execute("DELETE FROM annotation WHERE key = ?", (_bytes(key),))
        self._sidecar.seek(found[0])
        return self._sidecar.read(found[1])

    def open_sidecar(self, path: str) -> Iterator[tuple[int, int, bytes]]:
        """(line number, offset, line) of the sidecar; afterwards its lines can be taken."""
        digest, start = hashlib.sha256(), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                yield number, start, line
                start += len(line)
        self.has_annotations, self.annotation_hash = True, digest.hexdigest()
        self._sidecar = open(path, "rb")  # noqa: SIM115 (closed in close)

    def append(self, key: str, size: tuple[int, int], location: tuple[int, int, int, int], extension: str, entry: dict,
               annotated: bool) -> None:
        """Take a sample; location is (file number, offset, length, CRC-32 of its header)."""
        file_number, offset, length, header = location
        entry = {name: value for name, value in entry.items() if value not in ({}, [], None)}
        text = _bytes(json.dumps([key, extension, entry], ensure_ascii=False, separators=(",", ":")))
        self._text.write(text)
        self._text_end += len(text)
        values = (size, file_number, offset, length, header, self._text_end)
        for (name, (dtype, _)), value in zip(COLUMNS.items(), values):
            self._columns[name].write(np.asarray(value, dtype).tobytes())
        self.counts["samples"] += 1
        if file_number < 0 or file_number != self._last_file:  # samples come file by file
            self.counts["files_used"] += 1
        self._last_file = file_number
        if not annotated and self.has_annotations:
            self.counts["unannotated"] += 1
            self._lists["unannotated"].write(json.dumps(key) + "\n")

    def finish(self, request: dict, stamps: dict, changed: list[str]) -> None:
        """Write what is left and the manifest; `changed` are the files for which an older index was given up."""
        for (key,) in self._keys.execute("SELECT key FROM annotation ORDER BY start"):
            self.counts["unmatched"] += 1
            self._lists["unmatched"].write(json.dumps(key.decode("utf-8", "surrogatepass")) + "\n")
        self.close()
        os.unlink(self.folder / "keys.sqlite")
        names = list(map(os.path.basename, self.files))
        manifest = {
            "format": FORMAT, "request": request, "stamps": stamps, "changed": changed, "files": self.files,
            **self.counts, "max_pixels": self.max_pixels,
            "fingerprint": _fingerprint(self.folder, [names, self.file_lengths, self.annotation_hash]),
        }  # fmt: skip
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def close(self) -> None:
        """Let go of the files."""
        for file in (*self._columns.values(), self._text, *self._lists.values()):
            file.close()
        if self._sidecar is not None:
            self._sidecar.close()
        self._keys.close()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


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
        self.files = [os.path.normpath(os.path.join(base, name)) for name in self.manifest["files"]]
        self._text = np.memmap(self.folder / "text.bin", np.uint8, "r")

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
        for row in self._rows("problems"):
            source = os.path.join(self.base, row["source"]) if self.base and row["source"] else row["source"]
            yield BadSample(row["key"], source, row["reason"])

    def keys(self, which: str) -> Iterator[str]:
        """Keys of "unannotated" samples or "unmatched" annotations, read one by one."""
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "ppvilg" / hashlib.sha256(os.path.abspath(base).encode()).hexdigest()[:16]
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
            raise ValueError(f"{base or '.'}: no usable sample ({problems or 'no samples inside'})")
        writer.finish(request, stamps, changed)
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


class ShapeBuckets:
    """Which samples fall into which of the transform's shapes: lists on disk, read through a memory map."""

    def __init__(self, path: Path):
        self._path = path
        array = np.load(path, mmap_mode="r")  # number of shapes, counts, then the lists end to end
        shapes = int(array[0])
        counts = array[1 : 1 + shapes].tolist()
        self.numbers = [bucket for bucket, count in enumerate(counts) if count]
        self.counts = [counts[bucket] for bucket in self.numbers]
        self._lists = np.asarray(array)[1 + shapes :]
        self._starts = np.cumsum([0, *counts[:-1]])

    def __reduce__(self):
        return ShapeBuckets, (self._path,)

    def members(self, bucket: int, places: np.ndarray) -> np.ndarray:
        """The samples at places (k,) of a bucket's list, int64 (k,)."""
        return self._lists[self._starts[bucket] + np.asarray(places)]


def shape_buckets(folder: Path, sizes: np.ndarray, transform: ImageTransform, chunk: int = 2**18):
    """Buckets of pictures by their sizes (n, 2), kept in `folder`; made in chunks, so that memory stays the same."""
    shapes = len(transform.shapes)
    if shapes == 1:
        return RangeBuckets({0: len(sizes)})
    made_of = json.dumps([transform.shapes, len(sizes)])
    path = folder / f"shapes_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        write_buckets(path, len(sizes), shapes, lambda a, b: transform.buckets_of(sizes[a:b]), chunk)
    return ShapeBuckets(path)


def write_buckets(path: Path, count: int, shapes: int, bucket_of, chunk: int = 2**18) -> None:
    """Write the file of ShapeBuckets; bucket_of(a, b) gives the buckets (b - a,) of samples [a, b)."""
    counts = np.zeros(shapes, np.int64)
    for start in range(0, count, chunk):
        counts += np.bincount(bucket_of(start, min(start + chunk, count)), minlength=shapes)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    array = np.lib.format.open_memmap(partial, "w+", np.int64, (1 + shapes + count,))
    array[0], array[1 : 1 + shapes] = shapes, counts
    places = 1 + shapes + np.cumsum([0, *counts[:-1]])
    for start in range(0, count, chunk):
        buckets = bucket_of(start, min(start + chunk, count))
        for bucket in np.unique(buckets):
            members = start + np.flatnonzero(buckets == bucket)
            array[places[bucket] : places[bucket] + len(members)] = members
            places[bucket] += len(members)
    array.flush()
    del array
    os.replace(partial, path)


