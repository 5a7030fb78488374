"""What the command lines have in common, and what a command does before the first tensor."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from ppvilg.config import ConfigError, parse_adapter


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        """As ever, but `--model=--`, of which argparse makes an empty list, is refused."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            several = value if isinstance(value, list) else [value]
            if action.nargs is None and (value == [] != action.default or any(each == [] for each in several)):
                self.error(f"argument {'/'.join(action.option_strings) or action.dest}: expected one argument")
        return found, rest


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Parser of the command `ppvilg NAME`; the description keeps its lines."""
    return _Parser(prog=f"ppvilg {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """Type of an option: a whole number from `least` (to `most`)."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            limits = f"from {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text[:40]!r}")
        return value

    return read


def real(least: float = 0.0, most: float = math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """Type of an option: a finite number from `least` to `most`, and more than `above`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            low = f"more than {above:g}" if above >= least else f"at least {least:g}"
            high = "" if math.isinf(most) else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"must be a number, {low}{high}, got {text[:40]!r}")
        return value

    return read


def add_recipe(parser: argparse.ArgumentParser, use: str = "recipe (YAML): a file, or the name of one of ppvilg's own"):
    """-c and -o."""
    parser.add_argument("-c", "--config", required=True, metavar="RECIPE", help=use)
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="replace one value of the recipe; may be given many times",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", help="cpu, gpu or gpu:N (a GPU where there is one)")


def use_device(device: str | None) -> None:
    """Compute on `device`, with Paddle set up for it and the libraries quiet.

    Raises:
        ImportError: a package is missing, or of a version that fails.
        ValueError: the device is not there.
    """
    from ppvilg._versions import DRAWING, check_versions

    check_versions(DRAWING)  # before the libraries, for its message
    import paddle
    from paddlenlp.utils.log import logger

    from ppvilg._runtime import prepare_cpu
    from ppvilg.pipelines.opening import check_device

    check_device(device)
    if device is not None:
        paddle.set_device(device)
    prepare_cpu()
    logger.set_level("WARNING")  # it tells the story of every file it opens


def add_lora(parser: argparse.ArgumentParser) -> None:
    """Adds --lora to a parser; may be given several times."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="PATH[:SCALE]",
        help="adapter to draw with; SCALE: one number, or one per expert from low to high noise, as 0,0,0.5,1 (1)",
    )


def parse_lora(text: str) -> tuple[Path, float | list[float]]:
    """(path, scale) of PATH or PATH:SCALE. argparse.ArgumentTypeError: SCALE is no number."""
    try:
        return parse_adapter(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
