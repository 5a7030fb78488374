"""A detector with real weights over real photographs, and against PaddleX on the same folder.

    python tests/benchmarks/detector_photos.py --folder output/detector [--paddlex PYTHON]

The detector is the CenterNet of tests/annotate/centernet.py, the photographs those of tests/annotate/photos.py, which
say where both come from. PYTHON: the interpreter of an environment with paddlex 3.1.4, aistudio-sdk<0.3 and
paddlepaddle; it runs the same folder, and boxes of both that belong together may differ by a pixel.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "annotate"))
import centernet
from photos import RCC, STAMPS, WALLPAPERS, animal_photos, cut_outs, overlap, package_folder

from ppvilg.annotate import open_detector

PADDLEX = """
import json, sys
from paddlex import create_predictor
from paddlex.inference import PaddlePredictorOption
folder, names = sys.argv[1], json.load(sys.stdin)
predictor = create_predictor("PicoDet-S", model_dir=folder, device="cpu", pp_option=PaddlePredictorOption(
    "PicoDet-S", run_mode="paddle"))
found = {}
for name in names:
    boxes = next(iter(predictor.predict(name, threshold=0.2))).json["res"]["boxes"]
    found[name] = [(each["label"], each["score"], each["coordinate"]) for each in boxes]
print(json.dumps(found))
"""


def main() -> None:
    """Prints what was found; exit code 1 below 17 of 19 animals, 60 % of the cut-outs, or beyond a pixel of PaddleX."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--paddlex", metavar="PYTHON")
    options = parser.parse_args()
    folder = options.folder / "centernet"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.json").exists():
        centernet.save_detector(folder, options.folder)
    detector, started = open_detector(str(folder)), time.perf_counter()
    photos = list(animal_photos(package_folder(RCC)))
    found = [detector.detect([picture])[0] for _, _, picture in photos]
    right = sum(bool(each) and each[0].label == kind and each[0].score >= 0.3 for each, (_, kind, _) in
                zip(found, photos))  # fmt: skip
    seconds = (time.perf_counter() - started) / len(photos)
    print(f"{right} of {len(photos)} animals right at .3 or more, {seconds:.2f} s a picture")
    count = hit = named = 0
    for _, kind, box, picture in cut_outs(package_folder(STAMPS), package_folder(WALLPAPERS)):
        there = [each for each in detector.detect([picture])[0] if overlap(each.box, box) > 0.5]
        count, hit = count + 1, hit + bool(there)
        named += bool(there) and there[0].label == kind
    print(f"{hit} of {count} cut-outs found at IoU > .5, {named} with the right class")
    apart = compare(options.folder, folder, photos, options.paddlex) if options.paddlex else 0.0
    if right < len(photos) * 17 / 19 or hit < 0.6 * count or apart > 1:
        raise SystemExit("less than it should be")


def compare(work: Path, folder: Path, photos: list, python: str) -> float:
    """The largest difference of a corner, in pixels, from what PaddleX finds; every box must be in both."""
    export, pictures = work / "paddlex", work / "pictures"
    export.mkdir(exist_ok=True)
    pictures.mkdir(exist_ok=True)
    settings = yaml.safe_load((folder / "infer_cfg.yml").read_text())
    settings["Global"] = {"model_name": "PicoDet-S"}
    (export / "inference.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for kind in ("json", "pdiparams"):
        shutil.copy(folder / f"model.{kind}", export / f"inference.{kind}")
    ours, detector = {}, open_detector(str(export))
    for name, _, picture in photos:
        path = pictures / f"{name.replace('/', '_')}.png"
        picture.save(path)
        ours[str(path)] = detector.detect([picture])[0]
    answer = subprocess.run([python, "-c", PADDLEX, str(export)], input=json.dumps(list(ours)), text=True,
                            stdout=subprocess.PIPE, check=True)  # fmt: skip
    theirs, apart, boxes = json.loads(answer.stdout.splitlines()[-1]), 0.0, 0
    for path, found in ours.items():
        sure = [each for each in theirs[path] if each[1] >= 0.2]
        if len(sure) != len(found):
            raise SystemExit(f"{path}: {len(found)} boxes, PaddleX has {len(sure)}")
        for mine, (label, score, box) in zip(found, sorted(sure, key=lambda each: -each[1])):
            width, height = next(picture.size for name, _, picture in photos if name.replace("/", "_") in path)
            inside = [min(max(value, 0), limit) for value, limit in zip(box, (width, height, width, height))]
            apart = max([apart, *(abs(one - two) for one, two in zip(mine.box, inside))])
            boxes += 1
            if mine.label != label or abs(mine.score - score) > 0.001:
                raise SystemExit(f"{path}: {mine}, PaddleX has {label} {score}")
    print(f"PaddleX: {boxes} boxes of {len(ours)} pictures, the same labels and scores, at most {apart:.3f} pixels off")
    return apart


if __name__ == "__main__":
    main()
