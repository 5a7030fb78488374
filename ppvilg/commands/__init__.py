"""What the console script `ppvilg` and tools/*.py run: one module a command, each with `main(argv)`.

To add a command: a module here, and one line in COMMANDS.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is (imported when it is asked for) and what it does, in one line."""

    module: str
    help: str


COMMANDS = {
    "infer": Command("ppvilg.commands.infer", "draw pictures of prompts"),
    "train": Command("ppvilg.commands.train", "train from a recipe, or go on with it"),
    "supervise": Command("ppvilg.supervise", "run a training command again until it ends well"),
    "experts": Command("ppvilg.commands.experts", "split, assemble, merge and validate experts as folders"),
    "prepare": Command("ppvilg.commands.prepare", "render the emoji world as training data"),
    "train-detector": Command("ppvilg.commands.train_detector", "train and measure the judge of the emoji world"),
    "evaluate": Command("ppvilg.commands.evaluate", "measure a model by a recipe"),
    "export": Command("ppvilg.commands.export", "export a model as static graphs, proven against the model"),
}


def parse(argv: list[str] | None = None) -> tuple[str, list[str]]:
    """Command line -> name of a command and its own arguments."""
    import ppvilg

    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="ppvilg",
        description="ERNIE-ViLG 2.0 for PaddlePaddle: Chinese text to image.",
        epilog="\n".join(["commands:", *lines, "", "ppvilg COMMAND --help lists what a command takes"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=ppvilg.__version__)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    found = parser.parse_args(argv)
    if found.command not in COMMANDS:
        close = difflib.get_close_matches(found.command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        parser.error(f"no command {found.command!r}; {hint}")
    return found.command, found.arguments


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    name, arguments = parse(argv)
    return importlib.import_module(COMMANDS[name].module).main(arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
