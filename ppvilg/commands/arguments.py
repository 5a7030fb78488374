"""What the command lines have in common, and what a command does before the first tensor."""

from __future__ import annotations

import argparse


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Parser of the command `ppvilg NAME`; the description keeps its lines."""
    return argparse.ArgumentParser(
        prog=f"ppvilg {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


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
