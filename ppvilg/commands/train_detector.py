"""Train and measure the detector that judges pictures of the emoji world.

python tools/train_detector.py -c configs/evaluation/detector.yml [-o steps=300 ...]
python tools/train_detector.py -c configs/evaluation/detector.yml --measure-only ppvilg/zoo/emoji64_detector
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .arguments import new_parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("train-detector", __doc__)
    parser.add_argument("-c", "--config", required=True, type=Path, help="recipe (YAML)")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--measure-only", type=Path, metavar="FOLDER", help="measure this detector, train none")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from ppvilg._runtime import prepare_cpu
    from ppvilg.config import load
    from ppvilg.emoji.detector import Detector
    from ppvilg.emoji.detector_accuracy import measure_detector
    from ppvilg.emoji.detector_training import DetectorRecipe, train_detector

    prepare_cpu()
    try:
        recipe = load(DetectorRecipe, arguments.config, arguments.override)
        report: dict = {}
        if arguments.measure_only is None:
            detector, report["training"] = train_detector(recipe)
            detector.save(recipe.output)
        folder = arguments.measure_only or Path(recipe.output)
        report["accuracy"] = measure_detector(Detector.load(folder), recipe.accuracy_scenes, recipe.accuracy_seed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = json.dumps(report, ensure_ascii=False, indent=1)
    print(text)
    if arguments.measure_only is None:
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        print(f"detector: {folder.resolve()}")
    return 0
