"""Latents of a whole data set, encoded once and kept in memory-mapped files: memory does not grow with the data."""
from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data import (
    BadSample,
    DataReport,
    ImageTransform,
    Record,
    RecordSource,
    ShapeBuckets,
    Tally,
    to_pixel_values,
    write_buckets,
)
from ppvilg.engine.parallel import distributed

logger = logging.getLogger(__name__)

CHUNK = 1024  # pictures of one shape that are encoded by one rank and then noted as done
_SCAN = 2**18  # samples looked at together where all of them are walked over


class LatentCache:
    """Scaled posterior means by bucket, and the record of every sample with its boxes in output pixels.

    buckets: (n,) the bucket of each sample; members: their lists by bucket, for the order of batches; records: n
    records without pictures, made when asked for. Bad pictures are not among the n.
    """

    def __init__(self, folder: Path, source: RecordSource, transform: ImageTransform):
        self.folder, self.shapes = folder, transform.shapes
        self.kept = np.load(folder / "kept.npy", mmap_mode="r")  # indices into the source
        self.buckets = np.load(folder / "buckets.npy", mmap_mode="r")
        self.members = ShapeBuckets(folder / "members.npy")
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")  # place of a sample in its bucket's array
        self.arrays = {b: np.load(folder / f"bucket_{b}.npy", mmap_mode="r") for b in self.members.numbers}
        self.records = _PlacedRecords(source, transform, self.kept, self.buckets)

    def __len__(self) -> int:
        return len(self.kept)

    def latents(self, bucket: int, indices: np.ndarray) -> np.ndarray:
        """Latents (N, C, h, w) float32 of samples of one bucket."""
        return np.asarray(self.arrays[bucket][self.rows[indices]], dtype=np.float32)


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


def cache_latents(vae, vae_hash: str, source: RecordSource, transform: ImageTransform, root: Path, limit: int,
                  name: str, batch_size: int = 32) -> LatentCache:
    """Encode every picture of `source`, or find it done: the folder's name is a hash of VAE, data and transform.

    What was encoded before an interruption is kept, also for another number of ranks. What became of every sample is
    added to `<root>/data_report_<name>.jsonl`.

    Raises:
        RuntimeError: more than `limit` pictures are bad; their names are in `<root>/bad_samples_<name>.jsonl`.
    """
    made_of = f"2 {vae_hash} {source.fingerprint()} {transform.shapes} {transform.crop}"
    folder = root / f"{name}_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if not folder.exists():
        partial = root / f".{folder.name}.partial"
        members = source.buckets(transform)
        if distributed.is_main() and not (partial / "done.npy").exists():
            _prepare(vae, members, transform, partial)
        distributed.barrier()
        _encode_share(vae, source, transform, members, partial, name, batch_size)
        distributed.barrier()
        if distributed.is_main():
            _finish(partial, source, transform, limit, root, name)
            os.rename(partial, folder)
        distributed.barrier()
        if not folder.exists():
            raise RuntimeError(f"latents of {name} could not be made; the main rank says why")
    return LatentCache(folder, source, transform)


def _chunks(members) -> Iterator[tuple[int, int, int, int]]:
    """(number, bucket, start, end) of every chunk: positions in the bucket's list."""
    number = 0
    for bucket, count in zip(members.numbers, members.counts):
        for start in range(0, count, CHUNK):
            yield number, bucket, start, min(start + CHUNK, count)
            number += 1


def _prepare(vae, members, transform: ImageTransform, folder: Path) -> None:
    """Files for the latents of every bucket, and last the list of chunks that are done."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for bucket, count in zip(members.numbers, members.counts):
        width, height = transform.shapes[bucket]
        shape = _encode(vae, np.zeros((1, height, width, 3), np.uint8)).shape[1:]
        np.lib.format.open_memmap(folder / f"bucket_{bucket}.npy", "w+", np.float32, (count, *shape)).flush()
    done = folder / ".done.npy"
    np.lib.format.open_memmap(done, "w+", np.uint8, (sum(1 for _ in _chunks(members)),)).flush()
    os.rename(done, folder / "done.npy")


def _encode_share(vae, source, transform, members, folder: Path, name: str, batch_size: int) -> None:
    """Encode this rank's chunks that are not done; bad samples go to a list of the rank's own in `folder`."""
    rank, world = distributed.rank(), distributed.world_size()
    done = np.load(folder / "done.npy", mmap_mode="r+")
    mine = [chunk for chunk in _chunks(members) if chunk[0] % world == rank and not done[chunk[0]]]
    bar = tqdm(total=sum(end - start for *_, start, end in mine), desc=f"latents of {name}", unit="picture",
               disable=not distributed.is_main())
    with bar, open(folder / f"bad_{rank}.jsonl", "a", encoding="utf-8") as bad:
        for number, bucket, start, end in mine:
            array = np.load(folder / f"bucket_{bucket}.npy", mmap_mode="r+")
            for first in range(start, end, batch_size):
                places = np.arange(first, min(first + batch_size, end))
                rows, pixels = _read(source, transform, bucket, places, members, bad)
                if pixels:
                    array[rows] = _encode(vae, np.stack(pixels))
                bar.update(len(places))
            array.flush()
            bad.flush()
            done[number] = 1
            done.flush()


def _read(source, transform, bucket: int, places: np.ndarray, members, bad) -> tuple[list[int], list[np.ndarray]]:
    """(places of the good ones in the bucket's list, their pixels (H, W, 3)); the others are written to `bad`."""
    rng, rows, pixels = np.random.default_rng(0), [], []
    for place, index in zip(places.tolist(), members.members(bucket, places).tolist()):
        try:
            record = source.read(index)
            pixels.append(transform(record.image, record.objects, bucket, rng)[0])
            rows.append(place)
        except BadSample as problem:
            row = {"index": index, "key": problem.key, "source": problem.source, "reason": problem.reason}
            bad.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows, pixels


@paddle.no_grad()
def _encode(vae, pixels: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, H, W, 3) -> scaled posterior means (N, C, h, w) float32."""
    values = paddle.to_tensor(to_pixel_values(pixels))  # (N, 3, H, W)
    return (vae.encode(values).latent_dist.mode() * vae.config.scaling_factor).numpy()


def _finish(folder: Path, source, transform, limit: int, root: Path, name: str) -> None:
    """Account for every sample, and write which ones are kept and where their latents are."""
    bad: dict[int, BadSample] = {}
    for file in sorted(folder.glob("bad_*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            bad[row["index"]] = BadSample(row["key"], row["source"], row["reason"])
    bad_list = root / f"bad_samples_{name}.jsonl"
    rows = [{"key": p.key, "source": p.source, "reason": p.reason} for p in bad.values()]
    bad_list.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    report = DataReport(root / f"data_report_{name}.jsonl")
    report.data(source)
    report.samples("latents", len(source), len(source) - len(bad), Tally(bad.values()))
    if bad:
        logger.warning("%d bad pictures are left out; they are named in %s", len(bad), bad_list)
    if len(bad) > limit:
        shutil.rmtree(folder)  # the pictures may be mended
        first = "; ".join(f"{row['key']} in {row['source']}: {row['reason']}" for row in rows[:3])
        raise RuntimeError(f"{len(bad)} bad pictures, data.bad_sample_limit={limit}: {first} ... all in {bad_list}")
    if len(bad) == len(source):
        raise RuntimeError(f"no picture could be encoded; see {bad_list}")
    _write_kept(folder, source.sizes, transform, np.array(sorted(bad), np.int64))
    for file in (*folder.glob("bad_*.jsonl"), folder / "done.npy"):
        file.unlink()


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
