"""Evaluate a model: ppvilg evaluate -c configs/evaluation/objects.yml -o model=emoji64.

The key `suite` of the recipe says which evaluation runs. Run the same command again to go on after a stop; pictures
that are there are not drawn twice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import new_parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("evaluate", __doc__)
    parser.add_argument("-c", "--config", required=True, type=Path, help="recipe (YAML)")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one value of the recipe; may be given many times",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the suite of a recipe; 0 when results.json is written, 1 after one sentence on what is wrong."""
    arguments = parse_arguments(argv)
    from paddlenlp.utils.log import logger

    from ppvilg._runtime import prepare_cpu
    from ppvilg.evaluation import open_suite

    prepare_cpu()
    logger.set_level("WARNING")  # it tells the story of every file it opens
    try:
        suite = open_suite(arguments.config, arguments.override)
        report = suite.run()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(suite.summary(report))
    print(f"results: {suite.output.resolve() / 'results.json'}")
    return 0
