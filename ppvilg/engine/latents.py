"""Latents of a whole data set, encoded once and kept in memory-mapped files."""
from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from ppvilg.data import BadSample, ImageTransform, Record, RecordSource
from ppvilg.engine import distributed

logger = logging.getLogger(__name__)


class LatentCache:
    """Scaled posterior means by bucket, and the record of every sample with its boxes in output pixels.

    buckets: (n,) int64; rows: (n,) int64, place of a sample in its bucket's array; records: n records without pictures.
    """

    def __init__(self, folder: Path, source: RecordSource, transform: ImageTransform):
        self.folder = folder
        kept = np.load(folder / "kept.npy")  # indices into the source; bad pictures are not among them
        sizes = source.sizes[kept]
        self.buckets = transform.buckets_of(sizes)
        self.rows = np.zeros(len(kept), np.int64)
        for bucket in np.unique(self.buckets):
            members = np.flatnonzero(self.buckets == bucket)
            self.rows[members] = np.arange(len(members))
        self.arrays = {int(b): np.load(folder / f"bucket_{b}.npy", mmap_mode="r") for b in np.unique(self.buckets)}
        self.shapes = transform.shapes
        self.records = [_placed(source, transform, int(i), int(b)) for i, b in zip(kept, self.buckets)]

    def __len__(self) -> int:
        return len(self.records)

    def latents(self, bucket: int, indices: np.ndarray) -> np.ndarray:
        """Latents (N, C, h, w) float32 of samples of one bucket."""
        return np.asarray(self.arrays[bucket][self.rows[indices]], dtype=np.float32)


def _placed(source: RecordSource, transform: ImageTransform, index: int, bucket: int) -> Record:
    """A record with its boxes moved to the output picture, without decoding it."""
    record = source.read_text(index)
    width, height = source.sizes[index]
    placement = transform.plan(int(width), int(height), bucket, np.random.default_rng(0))
    return replace(record, objects=placement.objects(record.objects, transform.min_visible))


def cache_latents(vae, vae_hash: str, source: RecordSource, transform: ImageTransform, root: Path, limit: int,
                  name: str, batch_size: int = 32) -> LatentCache:
    """Encode every picture of `source`, or find it done: the folder's name is a hash of VAE, data and transform.

    Raises:
        RuntimeError: more than `limit` pictures are bad; their names are in `<root>/bad_samples_<name>.jsonl`.
    """
    made_of = f"{vae_hash} {source.fingerprint()} {transform.shapes} {transform.crop}"
    folder = root / f"{name}_{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if not folder.exists():
        partial = root / f".{folder.name}.partial"
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        distributed.barrier()
        _encode_share(vae, source, transform, partial, name, batch_size)
        distributed.barrier()
        if distributed.is_main():
            _join_shares(partial, source, transform, limit, root / f"bad_samples_{name}.jsonl")
            os.rename(partial, folder)
        distributed.barrier()
        if not folder.exists():
            raise RuntimeError(f"latents of {name} could not be made; the main rank says why")
    return LatentCache(folder, source, transform)


@paddle.no_grad()
def _encode_share(vae, source, transform, folder: Path, name: str, batch_size: int) -> None:
    """Encode this rank's samples; leaves index, latents per bucket and bad samples of the rank in `folder`."""
    rank, world = distributed.rank(), distributed.world_size()
    buckets = transform.buckets_of(source.sizes)
    rng, bad = np.random.default_rng(0), []
    bar = tqdm(total=len(source) // world, desc=f"latents of {name}", unit="picture", disable=not distributed.is_main())
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket)[rank::world]
        kept, encoded = [], []
        for start in range(0, len(members), batch_size):
            pixels = []
            for index in members[start:start + batch_size]:
                try:
                    record = source.read(int(index))
                    pixels.append(transform(record.image, record.objects, int(bucket), rng)[0])
                    kept.append(index)
                except BadSample as problem:
                    bad.append(problem)
            if pixels:
                encoded.append(_encode(vae, np.stack(pixels)))
            bar.update(len(members[start:start + batch_size]))
        if kept:
            np.save(folder / f"part_{bucket}_{rank}.npy", np.concatenate(encoded))
        np.save(folder / f"kept_{bucket}_{rank}.npy", np.array(kept, np.int64))
    bar.close()
    rows = [{"key": problem.key, "source": problem.source, "reason": problem.reason} for problem in bad]
    (folder / f"bad_{rank}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def _encode(vae, pixels: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, H, W, 3) -> scaled posterior means (N, C, h, w) float32."""
    values = paddle.to_tensor(pixels.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1.0)  # (N, 3, H, W)
    return (vae.encode(values).latent_dist.mode() * vae.config.scaling_factor).numpy()


def _join_shares(folder: Path, source, transform, limit: int, bad_list: Path) -> None:
    """Put the ranks' shares together in the order of the source, and account for bad pictures."""
    bad: list[dict] = []
    for file in sorted(folder.glob("bad_*.json")):
        bad += json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
    bad_list.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad), encoding="utf-8")
    if bad:
        logger.warning("%d bad pictures are left out; they are named in %s", len(bad), bad_list)
    if len(bad) > limit:
        first = "; ".join(f"{row['key']} in {row['source']}: {row['reason']}" for row in bad[:3])
        raise RuntimeError(f"{len(bad)} bad pictures, data.bad_sample_limit={limit}: {first} ... all in {bad_list}")
    kept_all = []
    for bucket in range(len(transform.shapes)):
        parts = sorted(folder.glob(f"kept_{bucket}_*.npy"))
        kept = np.concatenate([np.load(part) for part in parts]) if parts else np.zeros(0, np.int64)
        if len(kept):
            ranks = [part.stem.rsplit("_", 1)[1] for part in parts]
            files = [folder / f"part_{bucket}_{rank}.npy" for rank in ranks]
            latents = np.concatenate([np.load(file) for file in files if file.exists()])
            np.save(folder / f"bucket_{bucket}.npy", latents[np.argsort(kept)])
            kept_all.append(np.sort(kept))
        for file in parts + sorted(folder.glob(f"part_{bucket}_*.npy")):
            file.unlink()
    if not kept_all:
        raise RuntimeError(f"no picture could be encoded; see {bad_list}")
    np.save(folder / "kept.npy", np.sort(np.concatenate(kept_all)))
