"""Thousands of odd inputs, seeds fixed: no traceback but an error that names what is the matter, nothing lost silently,
memory bounded.

    python tests/benchmarks/fuzz_inputs.py --inputs 10000 --seconds 900 --memory 4096
    python tests/benchmarks/fuzz_inputs.py --only shards --first 4711 --inputs 1

A room has its generators in tests/<room>/fuzz.py: functions (rng, folder) that make one input, read it and judge the
outcome, by name in GENERATORS.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
import types
import warnings
from pathlib import Path

from tqdm import tqdm

ROOMS = ("data", "config", "commands")  # whose tests have a fuzz.py with GENERATORS
TESTS = Path(__file__).resolve().parents[1]


def load_generators() -> dict:
    """{name: generator} of all rooms."""
    tests = types.ModuleType("tests")  # not another package's of that name
    tests.__path__ = [str(TESTS)]
    sys.modules["tests"] = tests
    found = {}
    for room in ROOMS:
        found |= importlib.import_module(f"tests.{room}.fuzz").GENERATORS
    return found


GENERATORS = load_generators()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, the generators taking turns")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, which is its seed")
    parser.add_argument("--only", choices=GENERATORS, help="one generator alone")
    parser.add_argument("--seconds", type=float, default=1800.0, help="stop after so long")
    parser.add_argument("--memory", type=int, default=4096, help="address space of this process in MiB")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    resource.setrlimit(resource.RLIMIT_AS, (options.memory * 2**20,) * 2)
    warnings.simplefilter("ignore")  # of Pillow, about metadata
    logging.disable(logging.WARNING)
    names = [options.only] if options.only else list(GENERATORS)
    done, failed, start = collections.Counter(), [], time.perf_counter()
    for number in tqdm(range(options.first, options.first + options.inputs), unit="input"):
        if time.perf_counter() - start > options.seconds:
            print(f"stopped after {options.seconds} s")
            break
        name = names[number % len(names)]
        try:
            with tempfile.TemporaryDirectory() as folder:
                GENERATORS[name](random.Random(f"{name} {number}"), Path(folder))
        except Exception:
            failed.append((name, number))
            print(f"--only {name} --first {number} --inputs 1\n{traceback.format_exc()}", file=sys.stderr)
        done[name] += 1
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = ", ".join(f"{count} {name}" for name, count in done.items())
    print(f"{sum(done.values())} inputs ({counts}) in {time.perf_counter() - start:.0f} s, {len(failed)} failed; "
          f"{used:.0f} MiB at most")  # fmt: skip
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
