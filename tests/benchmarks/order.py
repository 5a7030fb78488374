"""Memory and time of the order of samples, for numbers up to 170 million; each number in a process of its own.

    python tests/benchmarks/order.py [--samples 1000000 10000000 170000000] [--folder /tmp/order]

Two shapes (four fifths, one fifth), batches of 1024. "computed" keeps the counts alone; "on disk" reads the lists of
shapes from a memory-mapped file as a real data set does (8 bytes per sample, made here). Resident memory is what the
process has private (anonymous pages); pages of the file belong to the kernel, which takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ppvilg.data import BatchOrder, RangeBuckets, ShapeBuckets, write_buckets

BATCH = 1024


def private_mib() -> float:
    """Anonymous resident memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(count: int, path: Path | None) -> None:
    """Print what an order of `count` samples costs."""
    before = private_mib()
    if path is None:
        buckets = RangeBuckets({0: count - count // 5, 1: count // 5})
    else:
        write_buckets(path, count, 2, lambda a, b: (np.arange(a, b) % 5 == 4).astype(np.int64))
        buckets = ShapeBuckets(path)
    order = BatchOrder(buckets, BATCH, seed=0)
    last, steps = order.epoch_start(1) - 1, 300
    started = time.process_time()
    for step in np.linspace(0, last, steps).astype(int).tolist():  # all over the epoch: the worst case
        bucket, indices = order.batch(step)
        assert len(set(indices.tolist())) == BATCH and 0 <= indices.min() and indices.max() < count
    jumping = (time.process_time() - started) / steps
    started = time.process_time()
    for step in range(last - steps, last):
        order.batch(step)
    running = (time.process_time() - started) / steps
    print(f"| {count} | {'computed' if path is None else 'on disk'} | {private_mib() - before:.1f} | "
          f"{1e3 * running:.2f} | {1e3 * jumping:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000_000, 10_000_000, 170_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.samples[0], None if options.one == "computed" else Path(options.one))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ppvilg-order-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("| samples | lists | private memory, MiB | ms per batch in a row | ms per batch anywhere |")
    print("|---|---|---|---|---|", flush=True)
    for count in options.samples:
        for one in ("computed", str(folder / f"{count}.npy")):
            command = [sys.executable, __file__, "--samples", str(count), "--one", one]
            subprocess.run(command, check=True)
            Path(one).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
