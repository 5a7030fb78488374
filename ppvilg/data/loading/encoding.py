"""Latents of a data set, made chunk by chunk; whoever encodes is handed in."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.files import whole_file, write_whole

from ..buckets import write_buckets
from ..latents import FORMAT, LatentStore, bad_path, chunk_path, is_readable, is_whole
from ..records import BAD_SAMPLE_SHARE, BadSample, BadSampleLimit, TooManyBadSamples
from ..report import DataReport, Tally
from ..source import RecordSource
from ..transforms import ImageTransform
from .pool import WorkerPool

logger = logging.getLogger(__name__)

CHUNK = 1024  # pictures of one shape that are encoded by one rank into one file
_SCAN = 2**18  # samples looked at together where all of them are walked over

# uint8 pictures (N, H, W, 3) -> latents (N, C, h, w)
Encode = Callable[[np.ndarray], np.ndarray]


@dataclass
class Encoding:
    """How the latents of a source are made; `encode_latents` says what the fields mean."""

    encode: Encode
    source: RecordSource
    transform: ImageTransform
    folder: Path
    name: str
    count: int
    dtype: str
    limit: BadSampleLimit
    workers: int
    batch_size: int
    chunk: int

    def __post_init__(self):
        self.members = self.source.buckets(self.transform, self.count)
        self.listing = self.folder.parent / f"bad_samples_{self.name}.jsonl"

    def chunks(self) -> Iterator[tuple[int, int, int, int]]:
        """(number, bucket, start, end) of every chunk: places in the bucket's list."""
        number = 0
        for bucket, count in zip(self.members.numbers, self.members.counts):
            for start in range(0, count, self.chunk):
                yield number, bucket, start, min(start + self.chunk, count)
                number += 1

    def run(self, rank: int, world_size: int) -> None:
        """Encode this rank's chunks that are not there; of those that are, try the pictures that were bad again."""
        mine = [chunk[1:] for chunk in self.chunks() if chunk[0] % world_size == rank]
        for bucket, start, _ in mine:
            self._remove_damaged(bucket, start)
        bar = tqdm(total=sum(len(self._missing(*chunk)) for chunk in mine), unit="picture", disable=rank > 0,
                   desc=f"latents of {self.name} in {self.folder.parent}")  # fmt: skip
        parts = ((chunk[0], part) for chunk in mine for part in self._parts(*chunk))
        reader = _ChunkReader(self.source, self.transform, self.members)
        pool = WorkerPool(reader, self.workers, 2 * self.workers, parts) if self.workers else None
        read, bad = iter(pool if pool is not None else itertools.starmap(reader, parts)), 0
        try:
            with bar:
                for chunk in mine:
                    bad += self._encode_chunk(*chunk, read, bad, bar)
        finally:
            if pool is not None:
                pool.close()

    def _remove_damaged(self, bucket: int, start: int) -> None:
        """What a copy or a crash of the machine has cut off is named and made again."""
        if not is_readable(self.folder, bucket, start):
            path = chunk_path(self.folder, bucket, start)
            logger.warning("%s is cut off or damaged: it is made again", path)
            path.unlink(missing_ok=True)
            bad_path(self.folder, bucket, start).unlink(missing_ok=True)

    def _missing(self, bucket: int, start: int, end: int) -> Sequence[int]:
        """Places of a chunk that are to be encoded."""
        if not chunk_path(self.folder, bucket, start).exists():
            return range(start, end)
        return [row["place"] for row in self._bad(bucket, start)]

    def _parts(self, bucket: int, start: int, end: int) -> Iterator[Sequence[int]]:
        """The missing places, a batch at a time; asked for before the chunk is written."""
        places = self._missing(bucket, start, end)
        return (places[first : first + self.batch_size] for first in range(0, len(places), self.batch_size))

    def _bad(self, bucket: int, start: int) -> list[dict]:
        path = bad_path(self.folder, bucket, start)
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def _encode_chunk(self, bucket: int, start: int, end: int, read: Iterator, before: int, bar: tqdm) -> int:
        """Write one chunk, and the list of its bad pictures; returns how many, `before` being those of other chunks."""
        path, rows, array = chunk_path(self.folder, bucket, start), [], None
        for _ in self._parts(bucket, start, end):
            good, pixels, problems = next(read)
            rows += problems
            bar.update(len(good) + len(problems))
            if before + len(rows) > self.limit.count:
                self._refuse(before, rows)
            if good:
                latents = self.encode(pixels)
                if array is None:
                    array = self._start_of(path, (end - start, *latents.shape[1:]))
                array[np.array(good) - start] = latents
        path.parent.mkdir(parents=True, exist_ok=True)
        if rows or bad_path(self.folder, bucket, start).exists():
            write_whole(bad_path(self.folder, bucket, start), _lines(rows))
        if array is None and not path.exists():
            array = np.zeros((end - start, 0, 0, 0), self.dtype)  # none of its pictures is good
        if array is not None:
            with whole_file(path) as partial, open(partial, "wb") as file:
                np.save(file, array)
        return len(rows)

    def _start_of(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """The array of a chunk, with what was encoded before."""
        if path.exists() and (before := np.load(path)).shape == shape:
            return before
        return np.zeros(shape, self.dtype)

    def _refuse(self, before: int, rows: list[dict]) -> None:
        """Raise TooManyBadSamples, with all that were found so far in the list."""
        known = [row for _, bucket, start, _ in self.chunks() for row in self._bad(bucket, start)]
        found = list({row["index"]: row for row in [*known, *rows]}.values())
        write_whole(self.listing, _lines(found))
        self.limit.check(before + len(rows), map(_problem, found), self.listing)

    def finish(self) -> None:
        """Account for every sample, and write which ones are kept and where their latents are."""
        found = [row for _, bucket, start, _ in self.chunks() for row in self._bad(bucket, start)]
        bad = {row["index"]: _problem(row) for row in found}
        write_whole(self.listing, _lines(found))
        report = DataReport(self.folder.parent / f"data_report_{self.name}.jsonl")
        for source in self.source.sources:
            report.data(source)
        report.samples("latents", self.count, self.count - len(bad), Tally(bad.values()))
        self.limit.check(len(bad), bad.values(), self.listing)
        if len(bad) == self.count:
            raise TooManyBadSamples(f"no picture of {self.name} could be encoded; all are named in {self.listing}")
        self._write_kept(np.array(sorted(bad), np.int64))
        manifest = {"format": FORMAT, "chunk": self.chunk, "dtype": self.dtype, "samples": self.count - len(bad),
                    "bad": len(bad), "shapes": self.transform.shapes,
                    "bytes": {path.relative_to(self.folder).as_posix(): path.stat().st_size
                              for path in sorted(self.folder.rglob("*.npy"))}}  # fmt: skip
        write_whole(self.folder / "manifest.json", json.dumps(manifest, indent=1))

    def _write_kept(self, bad: np.ndarray) -> None:
        """kept, buckets and rows of the good samples, in the order of the source; then the lists by bucket."""
        count, shapes = self.count - len(bad), len(self.transform.shapes)
        kinds = {"kept": np.int64, "buckets": np.int16, "rows": np.int64}
        with contextlib.ExitStack() as stack:
            paths = {key: stack.enter_context(whole_file(self.folder / f"{key}.npy")) for key in kinds}
            arrays = {key: np.lib.format.open_memmap(paths[key], "w+", kind, (count,)) for key, kind in kinds.items()}
            filled, seen = 0, np.zeros(shapes, np.int64)
            for start in range(0, self.count, _SCAN):
                buckets = self.transform.buckets_of(self.source.sizes[start : min(start + _SCAN, self.count)])
                rows = np.empty(len(buckets), np.int64)
                for bucket in np.unique(buckets):
                    inside = np.flatnonzero(buckets == bucket)
                    rows[inside] = seen[bucket] + np.arange(len(inside))
                    seen[bucket] += len(inside)
                indices = np.arange(start, start + len(buckets))
                good = ~np.isin(indices, bad)
                for key, values in (("kept", indices), ("buckets", buckets), ("rows", rows)):
                    arrays[key][filled : filled + good.sum()] = values[good]
                filled += int(good.sum())
            for array in arrays.values():
                array.flush()
            write_buckets(self.folder / "members.npy", count, shapes, lambda a, b: arrays["buckets"][a:b])


def encode_latents(
    encode: Encode,
    source: RecordSource,
    transform: ImageTransform,
    folder: str | os.PathLike,
    name: str,
    *,
    count: int | None = None,
    dtype: str = "float16",
    bad_sample_share: float = BAD_SAMPLE_SHARE,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    workers: int = 0,
    batch_size: int = 32,
    chunk: int = CHUNK,
) -> LatentStore:
    """Encode the pictures of a source (the first `count`) into `folder`, or find them there.

    encode: uint8 (N, H, W, 3) -> latents (N, C, h, w), called in this process; pictures are read and decoded by
    `workers` processes. The folder's name must stand for encoder, data (`source.fingerprint()`), transform, count and
    dtype: what is in it is taken as it is. An interruption loses one chunk of each rank at most; another number of
    ranks goes on. Bad pictures are left out, named in `<folder>/../bad_samples_<name>.jsonl` and counted in
    `data_report_<name>.jsonl` there. Ranks share the chunks; `barrier` waits for all of them.

    Raises:
        TooManyBadSamples: more than `bad_sample_share` of the pictures are bad. What was encoded stays, and the bad
            ones are tried again the next time.
        ValueError: the transform is not deterministic, or the dtype is none that NumPy stores.
    """
    folder = Path(folder)
    if transform.crop != "center" or transform.horizontal_flip:
        raise ValueError("latents are kept of pictures cut from the centre and not flipped: transform.deterministic()")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"latents are stored as float16 or float32, not {dtype!r}")
    if not is_whole(folder):
        folder.mkdir(parents=True, exist_ok=True)
        count = len(source) if count is None else min(count, len(source))
        limit = BadSampleLimit(count, bad_sample_share)
        encoding = Encoding(encode, source, transform, folder, name, count, dtype, limit, workers, batch_size, chunk)
        encoding.run(rank, world_size)
        barrier()
        if rank == 0:
            encoding.finish()
        barrier()
        if not is_whole(folder):
            raise TooManyBadSamples(f"latents of {name} could not be made; rank 0 says why")
    return LatentStore(folder, source, transform)


@dataclass
class _ChunkReader:
    """Reads pictures of a bucket by their places in its list; without state, so any process may do it."""

    source: RecordSource
    transform: ImageTransform
    members: object

    def __call__(self, bucket: int, places: Sequence[int]) -> tuple[list[int], np.ndarray, list[dict]]:
        """(places of the good ones, their pixels uint8 (n, H, W, 3), rows about the others)."""
        rng, good, pixels, bad = np.random.default_rng(0), [], [], []
        for place, index in zip(places, self.members.members(bucket, np.array(places)).tolist()):
            try:
                record = self.source.read(index)
                pixels.append(self.transform(record.image, record.objects, bucket, rng)[0])
                good.append(place)
            except BadSample as problem:
                bad.append({"place": place, "index": index, "key": problem.key, "source": problem.source,
                            "reason": problem.reason})  # fmt: skip
        return good, np.stack(pixels) if pixels else np.zeros(0, np.uint8), bad


def _problem(row: dict) -> BadSample:
    return BadSample(row["key"], row["source"], row["reason"])


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
