"""Render an emoji world: picture-text data with Chinese and English captions and boxes, as tar shards.

Example: ppvilg prepare --output data/emoji64 --num-samples 60000 --num-validation 2000 --seed 0
         ppvilg prepare --world emoji128 --output data/emoji128
With --lesson it renders a folder of a few pictures of an emoji that the world lacks, whose names are their captions:
ppvilg prepare --lesson 🦊 --num-samples 20 --output data/fox
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppvilg.emoji.lesson.pictures import new_object, write_lesson
from ppvilg.emoji.prepare import write_dataset
from ppvilg.emoji.worlds import WORLDS

from ..arguments import new_parser, real, whole


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("prepare", __doc__)
    parser.add_argument("--output", required=True, type=Path, help="folder for train/ and validation/, or the lesson")
    parser.add_argument("--world", choices=tuple(WORLDS), default="emoji64", help="(default: %(default)s)")
    parser.add_argument("--num-samples", type=whole(0), help="training samples (60000), or pictures of a lesson (20)")
    parser.add_argument("--lesson", metavar="EMOJI", help="one that is none of the forty objects, such as 🦊")
    parser.add_argument("--measure", default="只", help="measure word of the lesson's object (default: %(default)s)")
    parser.add_argument(
        "--num-validation", type=whole(0), default=2000, help="validation samples (default: %(default)s)"
    )
    parser.add_argument("--samples-per-shard", type=whole(1), default=10000, help="per tar file (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--square-share", type=real(0, 1), default=0.7, help="of square ones (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.lesson is not None:
        item = new_object(arguments.lesson, arguments.measure)
        count = 20 if arguments.num_samples is None else arguments.num_samples
        written = write_lesson(arguments.output, item, count, arguments.seed)
        print(f"{len(written)} pictures, captions as their names: {arguments.output.resolve()}")
        return 0
    num_samples = 60000 if arguments.num_samples is None else arguments.num_samples
    options = (arguments.seed, arguments.samples_per_shard)
    for split, count in (("train", num_samples), ("validation", arguments.num_validation)):
        if count == 0:
            continue
        write_dataset(arguments.output / split, count, *options, split, arguments.square_share, arguments.world)
    print(f"data: {arguments.output.resolve()}")
    return 0
