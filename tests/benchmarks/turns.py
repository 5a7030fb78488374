"""Sides of a comparison as processes that take turns in one run, and the ratios of their times.

In each round every side does the same task a few times, in an order that alternates; a round's ratio is that of the
sides' medians, the result is the median ratio over the rounds with its bootstrap interval. Two clocks: `wall` is what
a user waits, on a quiet machine; `cpu` counts the processor's time, which other programs on the machine hardly change
(its unit is a processor: threads that wait for each other count too, so compare it with one thread).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLOCKS = ("wall", "cpu")
SPIN_SECONDS = 0.3  # OpenMP threads keep spinning after their work; another side must not be timed meanwhile


# ---- inside a side's process ----


def answer_requests(prepare: Callable) -> None:
    """Prepares a side, then does what the lines of stdin ask: {"task": [method, ...], "times": n, "save": path}.

    A method returns a tensor with `numpy()`. Its seconds include that call, after which nothing is left to compute.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    side = prepare()
    print(json.dumps({"memory": memory()}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        name, *arguments = request["task"]
        seconds = {clock: [] for clock in CLOCKS}
        for _ in range(request["times"]):
            start = time.perf_counter(), time.process_time()
            output = getattr(side, name)(*arguments).numpy()
            seconds["wall"].append(time.perf_counter() - start[0])
            seconds["cpu"].append(time.process_time() - start[1])
        if request["save"]:
            np.save(request["save"], output)
        print(json.dumps({**seconds, "memory": memory(), "notes": getattr(side, "notes", None)}), file=answers)


def memory() -> dict[str, float]:
    """MiB of this process: now, and at most so far."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": pages * resource.getpagesize() / 2**20, "peak": peak / 2**10}


# ---- in the process that compares ----


class Side:
    """A process that answers requests; `loaded` is its memory when it was ready."""

    def __init__(self, name: str, command: list[str], threads: int, folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        self.loaded = self._answer()["memory"]

    def run(self, task: tuple, times: int, save: Path | None = None) -> dict:
        """Seconds of each time by clock, memory and notes; `save`: where to put the last output as .npy."""
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


def outputs(sides: list[Side], task: tuple, folder: Path) -> dict[str, np.ndarray]:
    """What each side gives for a task."""
    for side in sides:
        side.run(task, 1, folder / f"{side.name}.npy")
    return {side.name: np.load(folder / f"{side.name}.npy") for side in sides}


def measure(sides: list[Side], task: tuple, rounds: int, times: int, threads: int) -> dict[str, dict[str, np.ndarray]]:
    """{clock: {side: seconds of each round}}; medians of `times` calls, round by round in alternating order."""
    seconds = {clock: {side.name: [] for side in sides} for clock in CLOCKS}
    for number in range(rounds):
        for side in sides[:: 1 if number % 2 else -1]:
            time.sleep(SPIN_SECONDS if threads > 1 else 0)
            answer = side.run(task, times)
            for clock in CLOCKS:
                seconds[clock][side.name].append(np.median(answer[clock]))
    return {clock: {name: np.array(values) for name, values in each.items()} for clock, each in seconds.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> str:
    """Median of the rounds' ratios with its 95 % bootstrap interval."""
    ratios = numerator / denominator
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def report(title: str, seconds: dict, pairs: list[tuple[str, str]]) -> None:
    """Prints the ratios of these pairs of sides, one line per clock."""
    for clock, of_side in seconds.items():
        milliseconds = ", ".join(f"{name} {1e3 * np.median(values):.1f}" for name, values in of_side.items())
        columns = "  ".join(f"{a}/{b} {ratio(of_side[a], of_side[b])}" for a, b in pairs)
        print(f"{title:16s} {clock:4s}  {columns}  (ms: {milliseconds})", flush=True)
