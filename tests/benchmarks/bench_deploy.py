"""Exported models against PyTorch diffusers with the same weights, and against Paddle dygraph: ratios from one run.

python tests/benchmarks/bench_deploy.py --bundle output/emoji64-export [--model emoji64] [--torch-python PYTHON]

Every side is a process of its own with the same number of threads: `dygraph` and the bundle's back ends run under this
Python, `torch` (diffusers, transformers) and `torch_compile` under --torch-python; setup.py's extra `peers` installs
what they need. Before anything is timed all sides must give the same outputs; then they take turns (see turns.py).
--model may be the folder of experts or a stock UNet alone, with --tasks of steps. Without `dygraph` among the sides it
only writes the weights.
Last come ten random experts, streamed over resident and over one (bench_residency.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Side, answer_requests, measure, outputs, report

SERVE = "--serve"
PEERS = ("torch", "torch_compile")
TASKS = {
    "step, batch 1": ("step", 1),
    "step, batch 2": ("step", 2),
    "step, batch 8": ("step", 8),
    "text encoder": ("text",),
    "VAE decode": ("decode",),
    "picture": ("picture",),
}
EXPERTS = "experts"  # n experts over one and streamed over resident: bench_residency.py, after the others
TOLERANCE = 1e-3  # largest error over the standard deviation of the output
BFLOAT16_TOLERANCE = 0.5  # the same for arithmetic in bfloat16, on random inputs


def prepare(options: argparse.Namespace):
    """The side that this process serves."""
    if options.serve in PEERS:
        import deploy_torch

        return deploy_torch.prepare(Path(options.folder), options.threads, options.serve == "torch_compile")
    import deploy_paddle

    return deploy_paddle.prepare(options)


def make_side(name: str, options: argparse.Namespace, folder: Path) -> Side:
    python = options.torch_python if name in PEERS else sys.executable
    command = [python, __file__, SERVE, name, "--folder", str(folder), "--model", options.model]
    command += ["--bundle", str(options.bundle), "--steps", str(options.steps), "--threads", str(options.threads)]
    if options.latent_size is not None:
        command += ["--latent-size", str(options.latent_size)]
    return Side(name, command, options.threads, folder)


def check_equal(sides: list[Side], tasks: dict, folder: Path) -> None:
    """SystemExit unless all sides give the same: pictures within 1/255 on average, other outputs to their tolerance."""
    for title, task in tasks.items():
        results = outputs(sides, task, folder)
        expected = results[sides[0].name]
        for name, output in list(results.items())[1:]:
            error = np.abs(output - expected)
            narrow = name.endswith("bfloat16")
            limit = BFLOAT16_TOLERANCE if narrow else TOLERANCE
            if title == "picture":
                good = error.mean() < (3 if narrow else 1) / 255
            else:
                good = error.max() < limit * expected.std()
            print(f"{title:16s} {name} differs from {sides[0].name} by {error.max():.1e} at most", flush=True)
            if output.shape != expected.shape or not good:
                raise SystemExit(f"{title}: {name} and {sides[0].name} do not agree, there is nothing to compare")


def comparisons(names: list[str]) -> list[tuple[str, str]]:
    """Which side over which: all over PyTorch, back ends over dygraph."""
    ours = [name for name in names if name not in PEERS]
    over_peers = [(name, peer) for peer in PEERS if peer in names for name in ours]
    return over_peers + [(name, "dygraph") for name in ours if name != "dygraph" and "dygraph" in names]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="what tools/export.py wrote for --model")
    parser.add_argument("--model", default="emoji64", help="pipeline folder, zoo name or UNet (%(default)s)")
    sides = ["dygraph", "torch", "onednn"]
    parser.add_argument("--sides", nargs="+", default=sides, help="(%(default)s); also torch_compile and any back end")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, EXPERTS], default=[*TASKS, EXPERTS], help="(all)")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with the extra `peers` (this one)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    parser.add_argument("--latent-size", type=int, help="side of the latents in a step (the model's own)")
    parser.add_argument("--steps", type=int, default=25, help="of a picture (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--times", type=int, default=5, help="calls per side and round; a picture is drawn once")
    parser.add_argument(SERVE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.serve:
        if options.sides[0] != "dygraph" and "dygraph" in options.sides:
            parser.error("dygraph must be the first of --sides: it writes the weights for the others")
        if options.bundle is None and set(options.sides) - {"dygraph", *PEERS}:
            parser.error("--bundle is needed: python tools/export.py --model MODEL --output BUNDLE")
    return options


def main() -> None:
    options = parse()
    if options.serve:
        answer_requests(lambda: prepare(options))
        return
    tasks = {title: TASKS[title] for title in options.tasks if title != EXPERTS}
    if tasks:
        compare(options, tasks)
    if EXPERTS in options.tasks:
        command = [sys.executable, Path(__file__).with_name("bench_residency.py"), "--weights", "float32"]
        subprocess.run([*command, "--threads", str(options.threads), "--rounds", str(options.rounds)], check=True)


def compare(options: argparse.Namespace, tasks: dict) -> None:
    """All sides of the exported parts, checked and timed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "dygraph" not in options.sides:
            make_side("dygraph", options, folder).close()
        sides = [make_side(side, options, folder) for side in options.sides]
        check_equal(sides, tasks, folder)
        print(f"{options.threads} threads per side; median ratio over {options.rounds} rounds [95 % interval]")
        for title, task in tasks.items():
            times = 1 if title == "picture" else options.times
            seconds = measure(sides, task, options.rounds, times, options.threads)
            report(title, seconds, comparisons(options.sides))
        report_memory(sides, next(iter(tasks.values())), comparisons(options.sides))


def report_memory(sides: list[Side], task: tuple, pairs: list[tuple[str, str]]) -> None:
    """Prints the peaks of the processes and their ratios; ends the processes."""
    peaks = {side.name: side.run(task, 1)["memory"]["peak"] for side in sides}
    columns = "  ".join(f"{a}/{b} {peaks[a] / peaks[b]:.2f}" for a, b in pairs)
    sizes = ", ".join(f"{side.name} {peaks[side.name]:.0f}, {side.loaded['now']:.0f} when loaded" for side in sides)
    print(f"{'peak memory':16s} proc  {columns}  (MiB: {sizes})")
    for side in sides:
        side.close()


if __name__ == "__main__":
    main()
