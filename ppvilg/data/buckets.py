"""Which samples fall into which of the transform's shapes, in files that are read through memory maps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ppvilg.files import whole_file

from .order import RangeBuckets
from .transforms import ImageTransform


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

    def members(self, bucket: int, places: np.ndarray, epoch: int = 0) -> np.ndarray:
        """The samples at places (k,) of a bucket's list, int64 (k,)."""
        return self._lists[self._starts[bucket] + np.asarray(places)]


def shape_buckets(folder: Path, sizes: np.ndarray, transform: ImageTransform, chunk: int = 2**18, of: str = ""):
    """Buckets of pictures by their sizes (n, 2), kept in `folder`; made in chunks, so that memory stays the same.

    of: what tells them from others in the same folder.
    """
    shapes = len(transform.shapes)
    if shapes == 1:
        return RangeBuckets({0: len(sizes)})
    made_of = json.dumps([transform.shapes, len(sizes), *([of] if of else [])])
    path = folder / f"shapes_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        write_buckets(path, len(sizes), shapes, lambda a, b: transform.buckets_of(sizes[a:b]), chunk)
    return ShapeBuckets(path)


def write_buckets(path: Path, count: int, shapes: int, bucket_of, chunk: int = 2**18) -> None:
    """Write the file of ShapeBuckets; bucket_of(a, b) gives the buckets (b - a,) of samples [a, b)."""
    counts = np.zeros(shapes, np.int64)
    for start in range(0, count, chunk):
        counts += np.bincount(bucket_of(start, min(start + chunk, count)), minlength=shapes)
    with whole_file(path) as partial:
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
