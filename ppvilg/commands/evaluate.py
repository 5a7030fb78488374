"""Evaluate a model: ppvilg evaluate -c configs/evaluation/objects.yml -o model=emoji64.

The key `suite` of the recipe says which evaluation runs. Run the same command again to go on after a stop; pictures
that are there are not drawn twice.
"""

from __future__ import annotations

import argparse

from .arguments import add_device, add_recipe, new_parser, use_device


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line -> arguments."""
    parser = new_parser("evaluate", __doc__)
    add_recipe(parser)
    add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the suite of a recipe; 0 when results.json is written."""
    arguments = parse_arguments(argv)
    use_device(arguments.device)
    from ppvilg.evaluation import open_suite

    suite = open_suite(arguments.config, arguments.override)
    report = suite.run()
    print(suite.summary(report))
    print(f"results: {suite.output.resolve() / 'results.json'}")
    return 0
