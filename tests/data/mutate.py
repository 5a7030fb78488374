"""Shards of noise, and the ways in which they come to harm; for the tests and tests/benchmarks/damaged_shards.py."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("cut", "swapped bytes", "corrupt header", "zero length", "duplicate key", "cut later", "swapped later",
         "gone later")  # fmt: skip


def write_shard(path: Path, first: int, count: int, size: int, rng: np.random.Generator) -> Path:
    """Samples `first`... with noise in PNG, caption and nothing else."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
            for kind, content in (("png", buffer.getvalue()), ("txt", f"图{number}".encode())):
                info = tarfile.TarInfo(f"{number:07d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_damaged(folder: Path, shards: int, samples: int, damaged: int, seed: int, size: int = 64) -> dict[str, str]:
    """{name of a damaged shard: what befell it}; kinds that end in "later" are for `damage_after_indexing`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for shard in range(shards):
        write_shard(folder / f"{shard:05d}.tar", shard * samples, samples, size, rng)
    chosen = sorted(rng.choice(np.arange(1, shards), damaged, replace=False).tolist())
    done = {}
    for number, shard in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        path = folder / f"{shard:05d}.tar"
        if not kind.endswith("later"):
            path.write_bytes(_damage(kind, path.read_bytes(), folder / "00000.tar", rng))
        done[path.name] = kind
    return done


def _damage(kind: str, data: bytes, other: Path, rng: np.random.Generator) -> bytes:
    if kind == "zero length":
        return b""
    if kind == "cut":
        return data[: int(rng.integers(len(data) // 4, 3 * len(data) // 4))]
    changed = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    if kind == "corrupt header":
        changed[members[len(members) // 2 & ~1].offset + 5] ^= 0xFF
    elif kind == "swapped bytes":  # two halves of a picture change places
        start, length = members[2].offset_data, members[2].size // 2
        changed[start : start + 2 * length] = data[start + length : start + 2 * length] + data[start : start + length]
    elif kind == "duplicate key":
        return data + data  # written one after another
    return bytes(changed)


def damage_after_indexing(folder: Path, kinds: dict[str, str]) -> None:
    """What happens to shards while a run is under way."""
    later = {kind: [folder / name for name, of in kinds.items() if of == kind] for kind in KINDS}
    for path in later["cut later"]:
        path.write_bytes(path.read_bytes()[:600])
    for path in later["gone later"]:
        path.unlink()
    swapped = [path.read_bytes() for path in later["swapped later"]]
    for path, data in zip(later["swapped later"], swapped[1:] + swapped[:1]):
        path.write_bytes(data)
