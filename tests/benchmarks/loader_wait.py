"""How long a training loop waits for data when a step of its network takes a given time (replaced by a sleep).

    python tests/benchmarks/loader_wait.py [--step 0.02] [--batch 64] [--size 256] [--workers 2] [--steps 150]

Pictures are grained JPEGs of `size` pixels in shards; latents are float16 of 4 x size/8 x size/8. Prints for each
source the share of wall time spent waiting, and the seconds of CPU that the waiting process itself used per step.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ppvilg.data import BatchOrder, ImageTransform, LatentLoader, SampleLoader, encode_latents, open_source

WARM_UP = 20  # steps that are not counted


def write_shard(path: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((size, size))
            grained = np.asarray(image) + rng.integers(-12, 12, (size, size, 3))
            buffer = io.BytesIO()
            Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            for kind, content in (("jpg", buffer.getvalue()), ("txt", f"图{number}".encode())):
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def encode(pixels: np.ndarray) -> np.ndarray:
    """Every eighth pixel, as latents (N, 4, H / 8, W / 8)."""
    return np.repeat(pixels[:, ::8, ::8, :1].transpose(0, 3, 1, 2), 4, axis=1) / 255.0


def measure(name: str, loader, steps: int, seconds: float) -> None:
    """Print the share of waiting after a warm-up."""
    waited, batches = 0.0, loader.iterate_from(0)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            start, cpu, waited = time.perf_counter(), time.process_time(), 0.0
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
        time.sleep(seconds)
    whole, used = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    print(f"{name}: {100 * waited / whole:.1f} % of {whole:.1f} s waiting, {1000 * used / steps:.2f} ms CPU a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, default=0.02, help="seconds that the network takes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "0.tar", 512, options.size)
        source, transform = open_source(folder), ImageTransform([(options.size, options.size)])
        order = BatchOrder(source.buckets(transform), options.batch, 0)
        pictures = SampleLoader(source, transform, order, 0, workers=options.workers)
        measure("pictures", pictures, options.steps, options.step)
        store = encode_latents(encode, source, transform, Path(folder) / "latents", "data", workers=options.workers)
        latents = LatentLoader(store, BatchOrder(store.members, options.batch, 0), workers=options.workers)
        measure("latents", latents, options.steps, options.step)


if __name__ == "__main__":
    main()
