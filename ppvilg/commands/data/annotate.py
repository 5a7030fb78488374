"""Boxes and captions for real pictures: run a detector and a captioner over shards, write sidecars for training.

Example: ppvilg annotate --data data/photos --output data/boxes --detector models/ppyoloe --captioner template
A shard whose sidecar is there is done; to go on after an interruption, run the same command again. Several processes
or machines share the work when each is given its number: --shard-index 0 --num-shards 8. Near duplicates are looked
for when all are done: --hashes first, then once the same command with --mark-duplicates 4. --show 50 writes a page
with what training will make of the samples.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path

from ppvilg.annotate import (
    CaptionStage,
    DetectionStage,
    Runner,
    Stage,
    Unit,
    find_units,
    open_captioner,
    open_detector,
    report_on,
    share_of,
    sidecars_not_read,
)
from ppvilg.annotate.cleaning import mark_duplicates
from ppvilg.annotate.detectors import MIN_SCORE
from ppvilg.files import write_whole
from ppvilg.knowledge import NameTable, open_names

from ..arguments import new_parser, real, whole
from .cleaning import add_cleaning, cleaning_of
from .looking import add_looking, show_sheet, tables_of


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = new_parser("annotate", __doc__)
    parser.add_argument("--data", required=True, help="a .tar, a folder of them, x-{000..009}.tar, or a folder of "
                                                      "pictures")  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="folder for the sidecars; data.annotations of a "
                                                                   "recipe")  # fmt: skip
    add_detection(parser)
    add_captioning(parser)
    add_cleaning(parser)
    add_looking(parser)
    work = parser.add_argument_group("work")
    work.add_argument("--shard-index", type=whole(0), default=0, help="number of this process (default: 0)")
    work.add_argument("--num-shards", type=whole(1), default=1, help="processes that share the work (default: 1)")
    work.add_argument("--batch-size", type=whole(1, 4096), default=8, help="pictures at once (default: %(default)s)")
    work.add_argument("--workers", type=whole(1, 256), default=min(8, os.cpu_count() or 1),
                      help="threads that decode pictures (default: %(default)s)")  # fmt: skip
    work.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where models run (default: %(default)s)")
    return parser.parse_args(argv)


def add_detection(parser: argparse.ArgumentParser) -> None:
    """Options of the detector."""
    group = parser.add_argument_group("boxes")
    group.add_argument("--detector", metavar="SPEC", help="folder of an export of PaddleDetection or PaddleX, an .onnx "
                       "beside its infer_cfg.yml, command:PROGRAM, or module:function")  # fmt: skip
    group.add_argument("--min-score", type=real(0, 1), default=MIN_SCORE, help="objects below it are not stored; what "
                       "training uses is knowledge.vision.min_score (default: %(default)s)")  # fmt: skip


def add_captioning(parser: argparse.ArgumentParser) -> None:
    """Options of the captioner."""
    group = parser.add_argument_group("captions")
    group.add_argument("--captioner", metavar="SPEC", help="folder of BLIP or BLIP-2 of paddlenlp, command:PROGRAM, or "
                       "template (Chinese, of what was detected)")  # fmt: skip
    group.add_argument("--prompt", help="how the captions of BLIP and BLIP-2 begin")
    group.add_argument("--names", nargs="+", metavar="TABLE", help="tables of names of labels: coco, or YAML files of "
                       "yours, later over earlier ones (default: the recipe's, else coco)")  # fmt: skip
    group.add_argument("--caption-min-score", type=real(0, 1), default=0.5, help="objects of this score are in a "
                       "template's caption (default: %(default)s)")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if not arguments.detector and arguments.captioner == "template":
        raise ValueError("--captioner template speaks of what was detected: give a --detector too")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    units = find_units(arguments.data, arguments.output)
    mine = share_of(units, arguments.shard_index, arguments.num_shards)
    for path in sidecars_not_read(units):
        logging.warning("%s lies beside the shards; what it says does not go into %s", path, arguments.output)
    names = open_names(tables_of(arguments))
    stages: list[Stage] = []
    try:
        open_stages(arguments, stages)
        if stages:
            runner = Runner(stages, arguments.batch_size, arguments.workers)
            runner.check(units)
            if mine:
                runner.run(mine)
        elif arguments.mark_duplicates is None and arguments.show is None:
            raise ValueError("nothing to do: give a --detector, a --captioner, an option of clean-up, or --show")
    finally:
        for stage in stages:
            stage.close()
    if arguments.mark_duplicates is not None:
        marked = mark_duplicates(units, arguments.mark_duplicates)
        logging.info("%d near duplicates are left out", marked)
    if stages or arguments.mark_duplicates is not None:
        print_report(arguments, mine, names)
    if arguments.show is not None:
        print(f"sheet: {show_sheet(arguments, units).resolve()}")
    return 0


def print_report(arguments: argparse.Namespace, units: list[Unit], names: NameTable) -> None:
    """Count what is in the sidecars, name the labels that no table of names has; on the screen and in a file."""
    report = report_on(units)
    unknown = names.unknown(list(report.labels))
    name = f"report_{arguments.shard_index:05d}_of_{arguments.num_shards:05d}.json"
    content = report.as_dict() | {"labels_without_a_name": unknown}
    write_whole(arguments.output / name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    print(report)
    if unknown:
        print(f"  labels that no table of names has: {', '.join(unknown)}")
    print(f"sidecars: {arguments.output.resolve()}")


def open_stages(arguments: argparse.Namespace, stages: list[Stage]) -> None:
    """Adds the stages that the options ask for, in the order in which a sample goes through them."""
    stages.extend(cleaning_of(arguments).stages())
    if arguments.detector:
        detector = open_detector(arguments.detector, arguments.min_score, arguments.device)
        stages.append(DetectionStage(detector))
    if arguments.captioner:
        captioner = open_captioner(arguments.captioner, arguments.prompt, arguments.caption_min_score, arguments.device,
                                   tables_of(arguments))  # fmt: skip
        stages.append(CaptionStage(captioner))
