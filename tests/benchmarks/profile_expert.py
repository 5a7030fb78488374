"""Where the time of one step of an exported expert goes, operator by operator.

python tests/benchmarks/profile_expert.py --bundle output/export/emoji64 [--backend onednn] [--batch 2]

Times of one kind of operator are summed over its calls in a step: `median` over the runs is what it took on this
machine now, `least` (the fastest run of every single call) what it takes when nothing else runs.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from pathlib import Path

import numpy as np


def record(bundle: Path, backend: str, index: int, batch: int, length: int, runs: int) -> tuple[list[str], np.ndarray]:
    """Names of the operators of a step in order, and their microseconds (runs, operators)."""
    import paddle
    from paddle import profiler

    from ppvilg.inference import load_exported_expert, read_manifest

    expert = load_exported_expert(bundle, index, backend)
    config = read_manifest(bundle).components["unet"]["unet"]
    size = config["sample_size"]
    sample = paddle.randn([batch, config["in_channels"], size, size])
    states = paddle.randn([batch, length, config["cross_attention_dim"]])
    for _ in range(4):
        expert(sample, 500, states)
    with tempfile.TemporaryDirectory() as folder:
        to_folder = profiler.export_chrome_tracing(folder)
        tracer = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=to_folder)
        tracer.start()
        for _ in range(runs):
            expert(sample, 500, states)
        tracer.stop()
        (file,) = Path(folder).glob("*.json")
        events = json.loads(file.read_text(errors="replace"), strict=False)["traceEvents"]
    events = sorted((event for event in events if event.get("ph") == "X"), key=lambda event: event["ts"])
    steps = [(event["name"].split("[")[0], event["dur"]) for event in events]
    steps = [
        (name, duration) for name, duration in steps if name.startswith(("pd_op", "onednn_op")) and " " not in name
    ]
    count = len(steps) // runs
    return [name for name, _ in steps[:count]], np.array([duration for _, duration in steps]).reshape(runs, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--backend", default="onednn")
    parser.add_argument("--expert", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=48, help="text tokens (%(default)s)")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    arguments = options.bundle, options.backend, options.expert, options.batch, options.length, options.runs
    names, microseconds = record(*arguments)
    median, least = np.median(microseconds, axis=0) / 1e3, microseconds.min(axis=0) / 1e3
    total: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
    for name, *values in zip(names, np.ones(len(names)), median, least):
        total[name] += values
    print(
        f"{len(names)} operators, {median.sum():.1f} ms (least {least.sum():.1f} ms) per step of batch {options.batch}"
    )
    for name, (calls, middle, low) in sorted(total.items(), key=lambda item: -item[1][2]):
        print(f"{name:36s} {calls:4.0f} calls  median {middle:7.2f} ms  least {low:7.2f} ms")


if __name__ == "__main__":
    main()
