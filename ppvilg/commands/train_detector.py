"""Train and measure the detector that judges pictures of the emoji world.

ppvilg train-detector -c configs/evaluation/detector.yml [-o steps=300 ...]
ppvilg train-detector -c configs/evaluation/detector.yml --measure-only ppvilg/zoo/emoji64_detector
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ppvilg.files import write_whole

from .arguments import add_device, add_recipe, new_parser, use_device


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("train-detector", __doc__)
    add_recipe(parser)
    parser.add_argument("--measure-only", type=Path, metavar="FOLDER", help="measure this detector, train none")
    add_device(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    use_device(arguments.device)
    from ppvilg.config import load
    from ppvilg.emoji.detector import Detector
    from ppvilg.emoji.detector_accuracy import measure_detector
    from ppvilg.emoji.detector_training import DetectorRecipe, train_detector

    recipe = load(DetectorRecipe, arguments.config, arguments.override)
    report: dict = {}
    if arguments.measure_only is None:
        detector, report["training"] = train_detector(recipe)
        detector.save(recipe.output)
    folder = arguments.measure_only or Path(recipe.output)
    report["accuracy"] = measure_detector(Detector.load(folder), recipe.accuracy_scenes, recipe.accuracy_seed)
    text = json.dumps(report, ensure_ascii=False, indent=1)
    print(text)
    if arguments.measure_only is None:
        write_whole(folder / "report.json", text + "\n")
        print(f"detector: {folder.resolve()}")
    return 0
