"""Render an emoji world: picture-text data with Chinese and English captions and boxes, as tar shards.

Example: ppvilg prepare --output data/emoji64 --num-samples 60000 --num-validation 2000 --seed 0
         ppvilg prepare --world emoji128 --output data/emoji128
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppvilg.emoji.prepare import write_dataset
from ppvilg.emoji.worlds import WORLDS

from ..arguments import new_parser, real, whole


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("prepare", __doc__)
    parser.add_argument("--output", required=True, type=Path, help="folder for train/ and validation/")
    parser.add_argument("--world", choices=tuple(WORLDS), default="emoji64", help="(default: %(default)s)")
    parser.add_argument("--num-samples", type=whole(0), default=60000, help="training samples (default: %(default)s)")
    parser.add_argument(
        "--num-validation", type=whole(0), default=2000, help="validation samples (default: %(default)s)"
    )
    parser.add_argument("--samples-per-shard", type=whole(1), default=10000, help="per tar file (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--square-share", type=real(0, 1), default=0.7, help="of square ones (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    options = (arguments.seed, arguments.samples_per_shard)
    for split, num_samples in (("train", arguments.num_samples), ("validation", arguments.num_validation)):
        if num_samples == 0:
            continue
        write_dataset(arguments.output / split, num_samples, *options, split, arguments.square_share, arguments.world)
    print(f"data: {arguments.output.resolve()}")
    return 0
