"""Fifty damaged shards of sixty in one training run: it must end, and its report must name each of them.

    python tests/benchmarks/damaged_shards.py [--shards 60] [--samples 100] [--damaged 50] [--folder /tmp/damaged]

Shards are cut, have halves of a picture swapped, headers corrupted, no length, or keys that were there before; and
while the run is under way others are cut, swapped with each other, or deleted. Two worker processes read two epochs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from ppvilg.data import BatchOrder, ImageTransform, SampleLoader, open_source

MUTATE = Path(__file__).resolve().parents[1] / "data" / "mutate.py"


def load_mutations():
    """tests/data/mutate.py as a module."""
    specification = importlib.util.spec_from_file_location("data_mutate", MUTATE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main() -> None:
    """Prints which kinds of damage were named and what became of the samples; exit code 1 where one was forgotten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--samples", type=int, default=100, help="per shard")
    parser.add_argument("--damaged", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="ppvilg-damaged-"))
    mutate = load_mutations()
    expected = mutate.write_damaged(folder / "data", options.shards, options.samples, options.damaged, seed=0)
    source = open_source(folder / "data")
    transform = ImageTransform([(64, 64)])
    order = BatchOrder(source.buckets(transform), 32, seed=0)
    report = folder / "data_report.jsonl"
    loader = SampleLoader(source, transform, order, 0, bad_sample_share=1.0, workers=2, account=report)
    started, batches = time.perf_counter(), loader.iterate_from(0)
    next(batches)
    mutate.damage_after_indexing(folder / "data", expected)
    for _ in range(order.epoch_start(2)):  # what was read before its shard came to harm comes again
        next(batches)
    batches.close()
    data, *rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    named = {Path(name).name for name in data["files_with_problems"]}
    named |= {Path(name).name for row in rows for name in row["skipped_by_file"]}
    print(f"{len(source)} samples, {data['problems']} problems while indexing, two epochs in "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    for row in rows:
        print(f"{row['what']} {row['epoch']}: {row['read']} read, {row['used']} used, {row['skipped']} skipped")
    for kind, count in Counter(expected.values()).items():
        found = sum(name in named for name, of in expected.items() if of == kind)
        print(f"  {kind:<16}{found} of {count} shards named")
    forgotten, invented = sorted(set(expected) - named), sorted(named - set(expected))
    print(f"{len(named & set(expected))} of {len(expected)} damaged shards named in {report}; sound ones named: "
          f"{len(invented)}")  # fmt: skip
    if forgotten or invented:
        raise SystemExit(f"forgotten: {forgotten}; named without cause: {invented}")


if __name__ == "__main__":
    main()
