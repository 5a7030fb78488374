"""Latents of a whole data set, encoded once and kept in memory-mapped files: memory does not grow with the data.

`<root>/<name>_<hash>/bucket_0/chunk_000000.npy` holds the float16 latents (n, C, h, w) of one piece of a bucket's list;
beside it the bad pictures of the piece are named. `whole.json` is written last and says how large every file must be.
"""
from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data import (
    BAD_SAMPLE_SHARE,
    BadSample,
    BadSampleLimit,
    DataReport,
    ImageTransform,
    Record,
    RecordSource,
    ShapeBuckets,
    Tally,
    to_pixel_values,
    write_buckets,
)
from ppvilg.data.buckets import shape_buckets
from ppvilg.engine.parallel import distributed
from ppvilg.files import whole_file, write_whole

logger = logging.getLogger(__name__)

CHUNK = 1024  # pictures of one shape that are encoded by one rank and are in one file
WHOLE = "whole.json"
_SCAN = 2**18  # samples looked at together where all of them are walked over
_OPEN = 256  # chunks that are mapped at once


class LatentCache:
    """Scaled posterior means by bucket, and the record of every sample with its boxes in output pixels.

    buckets: (n,) the bucket of each sample; members: their lists by bucket, for the order of batches; records: n
    records without pictures, made when asked for. Bad pictures are not among the n.
    """

    def __init__(self, folder: Path, source: RecordSource, transform: ImageTransform):
        self.folder, self.shapes = folder, transform.shapes
        self._chunk = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["chunk"]
        self.kept = np.load(folder / "kept.npy", mmap_mode="r")  # indices into the source
        self.buckets = np.load(folder / "buckets.npy", mmap_mode="r")
        self.members = ShapeBuckets(folder / "members.npy")
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")  # place of a sample in its bucket's list
        self.records = _PlacedRecords(source, transform, self.kept, self.buckets)
        self._open = lru_cache(maxsize=_OPEN)(lambda path: np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.kept)

    def latents(self, bucket: int, indices: np.ndarray) -> np.ndarray:
        """Latents (N, C, h, w) float32 of samples of one bucket."""
        chunks, rows = np.divmod(self.rows[indices], self._chunk)
        found = [self._open(_chunk_path(self.folder, bucket, chunk))[row] for chunk, row in zip(chunks, rows)]
        return np.stack(found).astype(np.float32)


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


def cache_latents(vae, vae_hash: str, source: RecordSource, transform: ImageTransform, root: Path, name: str,
                  bad_sample_share: float = BAD_SAMPLE_SHARE, count: int | None = None, batch_size: int = 32
                  ) -> LatentCache:
    """Encode every picture of `source`, or its first `count`, or find it done; also what is damaged is made again.

    The folder's name is a hash of VAE, data and transform. What was encoded before an interruption is kept, also for
    another number of ranks. What became of every sample is added to `<root>/data_report_<name>.jsonl`.

    Raises:
        TooManyBadSamples: a larger share of the pictures is bad; they are named in `<root>/bad_samples_<name>.jsonl`,
            and what was encoded is kept.
    """
    count = min(len(source), count or len(source))
    made_of = f"3 {vae_hash} {source.fingerprint()} {count} {transform.shapes} {transform.crop}"
    folder = root / f"{name}_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if distributed.is_main():
        _drop_torn(folder)
    distributed.barrier()
    if not (folder / WHOLE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        distributed.barrier()
        if distributed.is_main():
            shape_buckets(folder, source.sizes[:count], transform)  # written by one rank, read by all
        distributed.barrier()
        members = shape_buckets(folder, source.sizes[:count], transform)
        encoder = _Encoder(vae, source, transform, members, folder, root / f"bad_samples_{name}.jsonl",
                           BadSampleLimit(count, bad_sample_share), batch_size)
        encoder.encode_share(name)
        distributed.barrier()
        if distributed.is_main():
            _finish(encoder, count, root, name)
        distributed.barrier()
    return LatentCache(folder, source, transform)


def _chunk_path(folder: Path, bucket: int, number: int) -> Path:
    return folder / f"bucket_{bucket}" / f"chunk_{number:06d}.npy"


def _drop_torn(folder: Path) -> None:
    """Name files of a finished cache that are missing or of another size, and let them be made again."""
    if not (folder / WHOLE).exists():
        return
    try:
        sizes = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["bytes"]
        torn = [name for name, size in sizes.items()
                if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    except (ValueError, KeyError, TypeError, AttributeError):
        torn = [WHOLE]
    if torn:
        logger.warning("%s is damaged (%s%s): what is damaged is made again", folder, ", ".join(torn[:3]),
                       f" and {len(torn) - 3} more files" if len(torn) > 3 else "")
        for name in {*torn, WHOLE}:
            (folder / name).unlink(missing_ok=True)


@dataclass
class _Encoder:
    """Encodes the chunks of one rank into `folder`; `listing` names all bad pictures, of which `limit` allows some."""

    vae: object
    source: RecordSource
    transform: ImageTransform
    members: object
    folder: Path
    listing: Path
    limit: BadSampleLimit
    batch_size: int
    chunk: int = 0

    def __post_init__(self):
        self.chunk = CHUNK

    def chunks(self) -> Iterator[tuple[int, int, int, int]]:
        """(bucket, number in it, start, end) of every chunk: positions in the bucket's list."""
        for bucket, count in zip(self.members.numbers, self.members.counts):
            for start in range(0, count, self.chunk):
                yield bucket, start // self.chunk, start, min(start + self.chunk, count)

    def encode_share(self, name: str) -> None:
        """Encode what is missing of this rank's chunks, and read once more what was bad."""
        rank, world = distributed.rank(), distributed.world_size()
        mine = [chunk for i, chunk in enumerate(self.chunks()) if i % world == rank]
        bad: list[BadSample] = []
        with tqdm(total=sum(end - start for *_, start, end in mine), desc=f"latents of {name} in {self.folder}",
                  unit="picture", disable=not distributed.is_main()) as bar:
            for bucket, number, start, end in mine:
                bad += [problem for _, problem in self._encode_chunk(bucket, number, start, end)]
                bar.update(end - start)
                if len(bad) > self.limit.count:
                    write_listing(self.listing, bad)
                self.limit.check(len(bad), bad, self.listing)

    def _encode_chunk(self, bucket: int, number: int, start: int, end: int) -> list[tuple[int, BadSample]]:
        """Write the latents of a bucket's list from start to end; gives its bad samples."""
        path, before = _chunk_path(self.folder, bucket, number), self.bad_of(bucket, number)
        old = _load_whole(path, end - start)
        places = np.arange(start, end) if old is None else np.array([place for place, _ in before], np.int64)
        latents, bad = old, []
        for first in range(0, len(places), self.batch_size):
            rows, pixels = self._read(bucket, places[first:first + self.batch_size], bad)
            if pixels:
                encoded = encode(self.vae, np.stack(pixels)).astype(np.float16)  # (n, C, h, w)
                if latents is None:
                    latents = np.zeros((end - start, *encoded.shape[1:]), np.float16)
                latents[np.array(rows) - start] = encoded
                bad += self._not_finite(bucket, rows, encoded)
        if old is None or len(bad) < len(before):
            path.parent.mkdir(exist_ok=True)
            rows = [{"place": place, "key": p.key, "source": p.source, "reason": p.reason} for place, p in bad]
            write_whole(_bad_path(path), json.dumps(rows, ensure_ascii=False))  # first: the latents say that it is done
            with whole_file(path) as partial:
                np.save(partial, np.zeros((end - start, 1, 1, 1), np.float16) if latents is None else latents)
        return bad

    def _read(self, bucket: int, places: np.ndarray, bad: list) -> tuple[list[int], list[np.ndarray]]:
        """(places of the good ones in the bucket's list, their pixels (H, W, 3)); the others are added to `bad`."""
        rng, rows, pixels = np.random.default_rng(0), [], []
        for place, index in zip(places.tolist(), self.members.members(bucket, places).tolist()):
            try:
                record = self.source.read(index)
                pixels.append(self.transform(record.image, record.objects, bucket, rng)[0])
                rows.append(place)
            except BadSample as problem:
                bad.append((place, problem))
        return rows, pixels

    def _not_finite(self, bucket: int, rows: list[int], encoded: np.ndarray) -> list[tuple[int, BadSample]]:
        """Pictures whose latents are no numbers of float16."""
        wrong = [row for row, latent in zip(rows, encoded) if not np.isfinite(latent).all()]
        found = []
        for row, index in zip(wrong, self.members.members(bucket, np.array(wrong, np.int64)).tolist()):
            record = self.source.read_text(index)
            found.append((row, BadSample(record.key, record.source, "the autoencoder gives no finite latents")))
        return found

    def bad_of(self, bucket: int, number: int) -> list[tuple[int, BadSample]]:
        """(place in the bucket's list, problem) of the bad samples of a chunk that was encoded."""
        path = _bad_path(_chunk_path(self.folder, bucket, number))
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return [(row["place"], BadSample(row["key"], row["source"], row["reason"])) for row in rows]
        except (OSError, ValueError, KeyError, TypeError):  # not encoded yet, or damaged: then it is encoded again
            return []


def _bad_path(path: Path) -> Path:
    return path.with_suffix(".bad.json")


def _load_whole(path: Path, count: int) -> np.ndarray | None:
    """Latents of a chunk, None where they are not there or not whole, with what was bad among them."""
    try:
        latents = np.load(path)
        json.loads(_bad_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError):
        return None
    return latents if len(latents) == count and latents.shape[1:] != (1, 1, 1) else None


@paddle.no_grad()
def encode(vae, pixels: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, H, W, 3) -> scaled posterior means (N, C, h, w) float32."""
    values = paddle.to_tensor(to_pixel_values(pixels))  # (N, 3, H, W)
    return (vae.encode(values).latent_dist.mode() * vae.config.scaling_factor).numpy()


def write_listing(path: Path, bad: Sequence[BadSample]) -> None:
    """Name bad samples, one JSON object a line."""
    rows = [{"key": problem.key, "source": problem.source, "reason": problem.reason} for problem in bad]
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _finish(encoder: _Encoder, count: int, root: Path, name: str) -> None:
    """Account for every sample, and write which ones are kept and where their latents are."""
    folder, members, bad = encoder.folder, encoder.members, {}
    for bucket, number, *_ in encoder.chunks():
        for place, problem in encoder.bad_of(bucket, number):
            bad[int(members.members(bucket, np.array([place]))[0])] = problem
    write_listing(encoder.listing, bad.values())
    report = DataReport(root / f"data_report_{name}.jsonl")
    report.data(encoder.source)
    report.samples("latents", count, count - len(bad), Tally(bad.values()))
    if bad:
        logger.warning("%d bad pictures are left out; they are named in %s", len(bad), encoder.listing)
    if len(bad) < count:  # else none is good, whatever share may be bad
        encoder.limit.check(len(bad), bad.values(), encoder.listing)
    else:
        BadSampleLimit(count, 0.0).check(len(bad), bad.values(), encoder.listing)
    _write_kept(folder, encoder.source.sizes[:count], encoder.transform, np.array(sorted(bad), np.int64))
    for left in folder.rglob(".*.partial*"):  # by processes that were killed
        left.unlink()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != WHOLE]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(files)}
    write_whole(folder / WHOLE, json.dumps({"chunk": encoder.chunk, "bytes": sizes}))
    for old in root.glob(f".{name}_*.partial"):  # of versions that began with a hidden folder
        shutil.rmtree(old, ignore_errors=True)


def _write_kept(folder: Path, sizes: np.ndarray, transform: ImageTransform, bad: np.ndarray) -> None:
    """kept, buckets and rows of the good samples, in the order of the source; then the lists by bucket."""
    count, shapes = len(sizes) - len(bad), len(transform.shapes)
    kinds = {"kept": np.int64, "buckets": np.int16, "rows": np.int64}
    arrays = {key: np.lib.format.open_memmap(folder / f"{key}.npy", "w+", kind, (count,))
              for key, kind in kinds.items()}
    filled, seen = 0, np.zeros(shapes, np.int64)
    for start in range(0, len(sizes), _SCAN):
        buckets = transform.buckets_of(sizes[start:start + _SCAN])
        rows = np.empty(len(buckets), np.int64)
        for bucket in np.unique(buckets):
            inside = np.flatnonzero(buckets == bucket)
            rows[inside] = seen[bucket] + np.arange(len(inside))
            seen[bucket] += len(inside)
        indices = np.arange(start, start + len(buckets))
        good = ~np.isin(indices, bad)
        for key, values in (("kept", indices), ("buckets", buckets), ("rows", rows)):
            arrays[key][filled:filled + good.sum()] = values[good]
        filled += int(good.sum())
    for array in arrays.values():
        array.flush()
    write_buckets(folder / "members.npy", count, shapes, lambda a, b: arrays["buckets"][a:b])
