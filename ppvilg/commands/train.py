"""Train from a recipe: `ppvilg train -c configs/emoji64.yml [-o train.base.steps=1000 ...]`.

On several ranks: `python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c ...`, or, where ppvilg is
installed, `... --nproc_per_node 2 $(command -v ppvilg) train -c ...`. Run the same command again to go on after a stop.
SIGTERM and Ctrl-C finish the step, write a checkpoint and end with exit code 75 (a second Ctrl-C ends at once); outside
of training they end at once with 143 and 130, for nothing would be lost.
"""
from __future__ import annotations

import argparse
import logging
import os
import signal

from ppvilg.config import load_config

from .arguments import add_device, add_recipe, new_parser, use_device


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("train", __doc__)
    add_recipe(parser)
    add_device(parser)
    return parser.parse_args(argv)


def is_main_rank() -> bool:
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def is_one_of_many() -> bool:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def stop_by_signal() -> None:
    """Ctrl-C and SIGTERM end the process at once, until training has something to checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_at_once)


def stop_at_once(number, frame) -> None:
    """Nothing half-written is ever used, so that nothing need be tidied up."""
    if is_main_rank():
        os.write(2, b"\nstopped: run the same command again to go on where the checkpoints end\n")
    os._exit(128 + number)


def train(recipe, device: str | None = None) -> str:
    """All stages of the recipe; gives the folder of the last result."""
    from ppvilg._versions import TRAINING, check_versions

    check_versions(TRAINING)
    use_device(device)
    from ppvilg.data.records import TooManyBadSamples
    from ppvilg.engine import CheckpointError, Run, distributed, stopping

    logging.basicConfig(level=logging.INFO if is_main_rank() else logging.WARNING, format="%(asctime)s %(message)s",
                        force=True)  # the libraries leave a handler of their own
    stop_by_signal()  # again, for Paddle installed a handler that prints a stack
    distributed.start(recipe.distributed)
    stopping.install(recipe.distributed.stop_seconds, stop_at_once)
    try:
        return Run(recipe).run()
    except stopping.Stopped as stopped:
        logging.info("%s", stopped)
        distributed.barrier()
        stopping.leave()
    except (CheckpointError, FloatingPointError, TooManyBadSamples) as error:  # their texts say it all
        raise SystemExit(f"error: {error}") from error


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    stop_by_signal()
    result = train(load_config(arguments.config, arguments.override), arguments.device)
    if is_main_rank():
        print(f"done: {result}")
    if is_one_of_many():
        from ppvilg.engine import stopping

        stopping.leave(0)
