"""What the console script `ppvilg` and tools/*.py run: one module a command, each with `main(argv)`.

To add a command: a module here, and one line in COMMANDS. Its `main` raises OSError or ValueError with one sentence
for a mistake of the user's; how that is said, and with which exit code, is decided here.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import warnings
from typing import NamedTuple, NoReturn

SHOW_TRACEBACK = "PPVILG_TRACEBACK"


class Command(NamedTuple):
    """Where a command is (imported when it is asked for) and what it does, in one line."""

    module: str
    help: str


COMMANDS = {
    "infer": Command("ppvilg.commands.infer", "draw pictures of prompts"),
    "train": Command("ppvilg.commands.train", "train from a recipe, or go on with it"),
    "supervise": Command("ppvilg.supervise", "run a training command again until it ends well"),
    "experts": Command("ppvilg.commands.experts", "split, assemble, merge and validate experts as folders"),
    "prepare": Command("ppvilg.commands.data.prepare", "render the emoji world as training data"),
    "annotate": Command("ppvilg.commands.data.annotate", "find boxes and captions for real pictures"),
    "train-detector": Command("ppvilg.commands.train_detector", "train and measure the judge of the emoji world"),
    "evaluate": Command("ppvilg.commands.evaluate", "measure a model by a recipe"),
    "export": Command("ppvilg.commands.export", "export a model as static graphs, proven against the model"),
    "prove": Command("ppvilg.commands.prove", "prove a bundle on this machine, and time its back ends"),
    "check": Command("ppvilg.commands.check", "try what this machine can do, for a bug report"),
    "serve": Command("ppvilg.commands.serve", "serve a model: a page and an API"),
}


def parse(argv: list[str] | None = None) -> tuple[str, list[str]]:
    """Command line -> name of a command and its own arguments."""
    import ppvilg

    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="ppvilg",
        description="ERNIE-ViLG 2.0 for PaddlePaddle: Chinese text to image.",
        epilog="\n".join(
            [
                "commands:",
                *lines,
                "",
                "ppvilg COMMAND --help lists what a command takes.",
                f"{SHOW_TRACEBACK}=1 in the environment shows where in the code an error came from.",
            ]
        ),
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
    """Run one command; returns its exit code. What went wrong is one sentence on standard error, and exit code 1."""
    name, arguments = parse(argv)
    try:
        return importlib.import_module(COMMANDS[name].module).main(arguments) or 0
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:  # who read what is printed has gone, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        if os.environ.get(SHOW_TRACEBACK, "0") != "0":
            raise
        return _say(f"error: out of memory ({_first_line(error)}): smaller pictures or a smaller batch need less", 1)
    except (OSError, ValueError, ImportError) as error:
        if os.environ.get(SHOW_TRACEBACK, "0") != "0":
            raise
        return _say(f"error: {error}", 1)


def start(*command: str) -> NoReturn:
    """Run what the command line says, after `command`, and leave with its exit code."""
    _read_arguments_as_utf8()
    os.environ.setdefault("USE_TORCH", "0")  # ppdiffusers imports PyTorch where it is, for seconds; no command uses it
    # What the libraries say about their own imports, and our own warnings without a line of code.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"paddle\.utils\.cpp_extension|_distutils_hack")
    warnings.filterwarnings("ignore", category=SyntaxWarning)  # of their sources, by Python 3.12 and later
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    sys.exit(main([*command, *sys.argv[1:]]))


def _read_arguments_as_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has no other way to read Chinese prompts and file names."""
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error:" in line]  # Paddle puts its stack above
    return (told or lines or [type(error).__name__])[0]
