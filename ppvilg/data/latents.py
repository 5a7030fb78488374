"""Latents of a data set that were encoded once (see loading/encoding.py): one file per chunk, read through memory maps.

A folder of latents holds `bucket_<b>/<first place>.npy`, arrays (n, C, h, w) of neighbouring places in the list of a
bucket, with `.bad.jsonl` beside where pictures were bad; and once all are there `manifest.json`, `kept.npy` (indices
into the source), `buckets.npy`, `rows.npy` (places in the lists) and `members.npy` (lists of kept samples by bucket).
A file is there whole or not at all, and is never deleted here: what is encoded stays encoded.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ppvilg.files import read_json, read_lines

from .buckets import ShapeBuckets
from .records import Record
from .source import RecordSource
from .transforms import ImageTransform

FORMAT = 1  # raise it when the files change their meaning
_OPEN_CHUNKS = 256


class LatentStore:
    """Latents by bucket, and the record of every sample with its boxes in output pixels; samples are 0 ... len - 1.

    `kept` (n,): indices into the source; `buckets` (n,); `members`: lists by bucket, for `BatchOrder`; `records`: made
    when asked for; `shapes`: (width, height) of the pictures of each bucket. ValueError when the folder is not whole.
    """

    def __init__(self, folder: str | os.PathLike, source: RecordSource, transform: ImageTransform):
        self.folder, self.source, self.transform = Path(folder), source, transform
        if not is_whole(self.folder):
            raise ValueError(f"{folder}: latents are not complete; encode_latents goes on with them")
        self.shapes, self.chunk = transform.shapes, read_json(self.folder / "manifest.json")["chunk"]
        self.kept = np.load(self.folder / "kept.npy", mmap_mode="r")
        self.buckets = np.load(self.folder / "buckets.npy", mmap_mode="r")
        self.rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        self.members = ShapeBuckets(self.folder / "members.npy")
        self.records = _PlacedRecords(source, transform, self.kept, self.buckets)
        self._open = lru_cache(maxsize=_OPEN_CHUNKS)(partial(np.load, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.kept)

    def __reduce__(self):
        return LatentStore, (self.folder, self.source, self.transform)

    def latents(self, bucket: int, indices: np.ndarray) -> np.ndarray:
        """Latents (N, C, h, w) of samples of one bucket, in the type that they are stored in."""
        rows = np.asarray(self.rows[indices])
        chunks, places = rows // self.chunk, rows % self.chunk
        first = self._open(chunk_path(self.folder, bucket, int(chunks[0]) * self.chunk))
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for chunk in np.unique(chunks):
            mine = chunks == chunk
            found[mine] = self._open(chunk_path(self.folder, bucket, int(chunk) * self.chunk))[places[mine]]
        return found


class _PlacedRecords(Sequence):
    """Records with their boxes moved to the output picture, without decoding it."""

    def __init__(self, source: RecordSource, transform: ImageTransform, kept: np.ndarray, buckets: np.ndarray):
        self.source, self.transform, self.kept, self.buckets = source, transform, kept, buckets

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, i: int) -> Record:
        index, bucket = int(self.kept[i]), int(self.buckets[i])
        record = self.source.read_text(index)
        width, height = map(int, self.source.sizes[index])
        placement = self.transform.plan(width, height, bucket, np.random.default_rng(0))
        return replace(record, objects=placement.objects(record.objects, self.transform.min_visible))


def is_whole(folder: Path) -> bool:
    """Whether a folder of latents is complete, and no file of it was cut off since."""
    with contextlib.suppress(OSError, ValueError):
        manifest = read_json(Path(folder) / "manifest.json")
        sizes = manifest.get("bytes", {})
        return manifest.get("format") == FORMAT and sizes == {name: os.path.getsize(folder / name) for name in sizes}
    return False


def is_readable(folder: Path, bucket: int, start: int) -> bool:
    """Whether the files of a chunk are not there, or can be read."""
    latents, bad = chunk_path(folder, bucket, start), bad_path(folder, bucket, start)
    try:
        if latents.exists():
            np.load(latents, mmap_mode="r")
        return not bad.exists() or all(json.loads(line)["place"] >= 0 for line in read_lines(bad))
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return False


def chunk_path(folder: Path, bucket: int, start: int) -> Path:
    """The latents of neighbouring places in the list of a bucket, from `start` on."""
    return folder / f"bucket_{bucket}" / f"{start:010d}.npy"


def bad_path(folder: Path, bucket: int, start: int) -> Path:
    """What was bad in a chunk: rows of JSON with place, index, key, source and reason."""
    return chunk_path(folder, bucket, start).with_suffix(".bad.jsonl")
