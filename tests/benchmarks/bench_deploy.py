"""Exported models against PyTorch diffusers with the same weights, and against Paddle dygraph: ratios from one run.

python tests/benchmarks/bench_deploy.py --bundle output/emoji64-export [--model emoji64] [--torch-python PYTHON]

Every side is a process of its own with the same number of threads: `dygraph` and the bundle's back ends run under this
Python, `torch` (diffusers, transformers) under --torch-python; setup.py's extra `peers` installs what it needs. Before
anything is timed all sides must give the same outputs. They then take turns: in each round every side does the same
task a few times, in an order that alternates; a round's ratio is that of its medians, and the table has the median
ratio over the rounds with its bootstrap interval. `wall` is what a user waits, on a quiet machine; `cpu` counts the
processor's time, which other programs on the machine hardly change; with one thread both mean the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SERVE = "--serve"
TASKS = {
    "step, batch 1": ("step", 1),
    "step, batch 2": ("step", 2),
    "step, batch 8": ("step", 8),
    "text encoder": ("text",),
    "VAE decode": ("decode",),
    "picture": ("picture",),
}
TOLERANCE = 1e-3  # largest error over the standard deviation of the output
SPIN_SECONDS = 0.3  # OpenMP threads keep spinning after their work; another side must not be timed meanwhile


# ---- a side, in its own process ----


def serve(options: argparse.Namespace) -> None:
    """Loads one side, then answers requests, one JSON object per line: {"task": [...], "times": n, "save": path}."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    folder = Path(options.folder)
    if options.serve == "torch":
        from deploy_torch import prepare

        side = prepare(folder, options.threads)
    else:
        from deploy_paddle import prepare

        side = prepare(options.serve, options.model, options.bundle, folder, options.steps, options.threads)
    print(json.dumps({"loaded": memory()}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        name, *arguments = request["task"]
        wall, cpu = [], []
        for _ in range(request["times"]):
            start = time.perf_counter(), time.process_time()
            output = getattr(side, name)(*arguments)
            output = output.numpy()
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
        if request.get("save"):
            np.save(request["save"], output)
        print(json.dumps({"wall": wall, "cpu": cpu, "memory": memory()}), file=answers)


def memory() -> dict[str, float]:
    """Megabytes of this process: now, and at most so far."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": pages * resource.getpagesize() / 2**20, "peak": peak / 2**10}


# ---- the one who asks ----


class Side:
    """A process that serves one side."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        python = options.torch_python if name == "torch" else sys.executable
        command = [python, __file__, SERVE, name, "--folder", str(folder)]
        command += ["--model", options.model, "--bundle", str(options.bundle)]
        command += ["--steps", str(options.steps), "--threads", str(options.threads)]
        threads = str(options.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self.name, self.log = name, folder / f"{name}.log"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environment,
        )
        self.loaded = self._answer()["loaded"]

    def run(self, task: tuple, times: int, save: Path | None = None) -> dict:
        """Seconds of each time, wall and cpu; `save`: where to put the output as .npy."""
        request = {"task": task, "times": times, "save": save and str(save)}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"side {self.name} ended: {self.log.read_text(encoding='utf-8')[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def check_equal(sides: list[Side], tasks: dict, folder: Path) -> None:
    """SystemExit unless all sides give the same outputs, the last task's as pictures within 1/255 on average."""
    for title, task in tasks.items():
        outputs = {}
        for side in sides:
            side.run(task, 1, folder / f"{side.name}.npy")
            outputs[side.name] = np.load(folder / f"{side.name}.npy")
        expected = outputs[sides[0].name]
        for name, output in outputs.items():
            error = np.abs(output - expected)
            good = error.mean() < 1 / 255 if title == "picture" else error.max() < TOLERANCE * expected.std()
            print(f"{title:16s} {name:10s} differs from {sides[0].name} by {error.max():.1e} at most", flush=True)
            if output.shape != expected.shape or not good:
                raise SystemExit(f"{title}: {name} and {sides[0].name} do not agree, there is nothing to compare")


def measure(sides: list[Side], task: tuple, rounds: int, times: int, pause: float) -> dict[str, dict[str, np.ndarray]]:
    """{clock: {side: seconds of each round}}; medians of `times` calls, round by round in alternating order."""
    seconds = {clock: {side.name: [] for side in sides} for clock in ("wall", "cpu")}
    for number in range(rounds):
        for side in sides[:: 1 if number % 2 else -1]:
            time.sleep(pause)
            answer = side.run(task, times)
            for clock, of_side in seconds.items():
                of_side[side.name].append(np.median(answer[clock]))
    return {clock: {name: np.array(values) for name, values in each.items()} for clock, each in seconds.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> str:
    """Median of the rounds' ratios with its 95 % bootstrap interval."""
    ratios = numerator / denominator
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def comparisons(names: list[str]) -> list[tuple[str, str]]:
    """Which side over which: all over torch, back ends over dygraph."""
    over_torch = [(name, "torch") for name in names if name != "torch" and "torch" in names]
    return over_torch + [(name, "dygraph") for name in names if name not in ("torch", "dygraph") and "dygraph" in names]


def report(title: str, seconds: dict, pairs: list[tuple[str, str]]) -> None:
    """Lines of the table for one task."""
    for clock, of_side in seconds.items():
        milliseconds = ", ".join(f"{name} {1e3 * np.median(values):.1f}" for name, values in of_side.items())
        columns = "  ".join(f"{a}/{b} {ratio(of_side[a], of_side[b])}" for a, b in pairs)
        print(f"{title:16s} {clock:4s}  {columns}  (ms: {milliseconds})", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="what tools/export.py wrote for --model")
    parser.add_argument("--model", default="emoji64", help="pipeline folder or zoo name (%(default)s)")
    parser.add_argument("--sides", nargs="+", default=["dygraph", "torch", "onednn"], help="(%(default)s); also: cpu")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="(all)")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with the extra `peers` (this one)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (all cores)")
    parser.add_argument("--steps", type=int, default=25, help="of a picture (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--times", type=int, default=5, help="calls per side and round; a picture is drawn once")
    parser.add_argument(SERVE, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.serve:
        if options.sides[0] != "dygraph":
            parser.error("the first of --sides must be dygraph: it writes the weights for the others")
        if options.bundle is None and set(options.sides) - {"dygraph", "torch"}:
            parser.error("--bundle is needed: python tools/export.py --model MODEL --output BUNDLE")
    return options


def main() -> None:
    options = parse()
    if options.serve:
        serve(options)
        return
    tasks = {title: TASKS[title] for title in options.tasks}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [Side(side, options, folder) for side in options.sides]
        check_equal(sides, tasks, folder)
        pairs = comparisons(options.sides)
        pause = SPIN_SECONDS if options.threads > 1 else 0
        print(f"{options.threads} threads per side; median ratio over {options.rounds} rounds [95 % interval]")
        for title, task in tasks.items():
            times = 1 if title == "picture" else options.times
            report(title, measure(sides, task, options.rounds, times, pause), pairs)
        for side in sides:
            peak = side.run(("text",) if "text encoder" in tasks else ("step", 1), 1)["memory"]["peak"]
            print(f"peak memory      {side.name:10s} {peak:.0f} MB, {side.loaded['now']:.0f} MB when loaded")
            side.close()


if __name__ == "__main__":
    main()
