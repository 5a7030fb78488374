"""Try what this machine can do, on a model of some ten thousand weights, and print a table for a bug report.

ppvilg check
ppvilg check --device cpu --folder output/check

Trains a few steps in float32 and in every precision, with recompute and on two ranks, exports the result and runs it
on every back end, each in a process of its own; losses and outputs are compared with those in float32. Of each line
the table says whether it is good, refused (this machine cannot do it, and why) or wrong. Exit code 1: something is
wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ..arguments import add_device, new_parser
from .cases import Outcome, Workshop, cases
from .machine import describe, probe


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("check", __doc__)
    add_device(parser)
    parser.add_argument("--folder", type=Path, help="keep what was made and said there (a temporary folder, removed)")
    parser.add_argument("--seconds", type=float, default=900.0, help="that one line may take (%(default)g)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The machine, then one line per case as it is done."""
    arguments = parse(argv)
    if arguments.folder is not None and arguments.folder.exists() and any(arguments.folder.iterdir()):
        raise ValueError(f"--folder {arguments.folder} is not empty; choose a new folder")
    found = probe(arguments.device)
    print(describe(found), flush=True)
    with _folder(arguments.folder) as folder:
        workshop = Workshop(folder, found, arguments.seconds)
        wrong = []
        for name, case in tqdm(cases(found), unit="check", desc="check", leave=False):
            outcome = case(workshop)
            tqdm.write(line(name, outcome))
            wrong += [name] if outcome.verdict == "wrong" else []
    print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong on this machine")
    return int(bool(wrong))


def line(name: str, outcome: Outcome) -> str:
    """One row of the table."""
    return f"{name:<36}{outcome.verdict:<9}{outcome.reason}"


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ppvilg-check-") as folder:
        yield Path(folder)
