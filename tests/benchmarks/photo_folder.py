"""Photographs with Chinese captions as a folder: animals of gcompris, and stamps of tuxpaint on wallpapers.

    python tests/benchmarks/photo_folder.py --output data/photos [--detector output/detector]

Where the packages come from is said in tests/annotate/photos.py. A caption is the sentence that tuxpaint has for a
stamp, or the name of the animal. --detector also writes the folder of the CenterNet of tests/annotate/centernet.py.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "annotate"))
from photos import BACKGROUNDS, RCC, STAMPS, WALLPAPERS, animal_photos, package_folder

NAMES = {
    "dog": "一只戴着项圈的狗", "cow": "草地上的奶牛", "cat": "一只猫", "chicken": "一只母鸡", "horse": "一匹马",
    "duck": "一只鸭子", "sheep": "一只绵羊", "owl": "一只猫头鹰", "giraffe": "一只长颈鹿", "polar_bear": "一头北极熊",
    "scarlet_macaw": "一只金刚鹦鹉", "northern_harrier": "飞着的鹰", "calf": "一头小牛", "penguin": "一只企鹅",
    "swans": "水上的天鹅", "kingfisher": "一只翠鸟", "heron": "一只苍鹭", "toucan": "一只巨嘴鸟", "gosling": "一只小鹅",
    "kitten": "一只小猫", "spoonbills": "琵鹭",
}  # fmt: skip


def sentence(stamp: Path) -> str:
    """The Chinese sentence of a stamp, "" where it has none."""
    text = stamp.with_suffix(".txt")
    found = re.search(r"^zh_CN\.utf8=(.*)$", text.read_text(encoding="utf-8"), re.M) if text.exists() else None
    return found[1].strip().rstrip("。") if found else ""


def photographic(stamp: Path) -> bool:
    """Whether a stamp was cut out of a photograph: many colours, and not among the drawings."""
    if "cartoon" in stamp.parts or "symbols" in stamp.parts:
        return False
    picture = Image.open(stamp).convert("RGBA")
    picture.thumbnail((128, 128))
    return len(set(picture.getdata())) > 3000


def main() -> None:
    """Writes NAME.jpg and NAME.txt; the same every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--detector", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.detector:
        import centernet

        options.detector.mkdir(parents=True, exist_ok=True)
        centernet.save_detector(options.detector, options.detector)
    count = 0
    for name, _, picture in animal_photos(package_folder(RCC)):
        count += write(options.output, name.replace("/", "_"), picture, NAMES[os.path.basename(name)])
    chance, stamps = random.Random(0), package_folder(STAMPS)
    backs = [Image.open(package_folder(WALLPAPERS) / name / "contents/images/2560x1600.jpg").convert("RGB")
             for name in BACKGROUNDS]  # fmt: skip
    for stamp in sorted(stamps.rglob("*.png")):
        text = sentence(stamp)
        if text and photographic(stamp):
            for number in range(3):
                count += write(options.output, f"{stamp.stem}_{number}", paste(stamp, backs, chance), text)
    print(f"{count} pictures in {options.output}")


def paste(stamp: Path, backs: list[Image.Image], chance: random.Random) -> Image.Image:
    """A stamp on a square piece of a wallpaper."""
    back, side = chance.choice(backs), 384
    x, y = chance.randint(0, back.width - 900), chance.randint(0, back.height - 900)
    picture = back.crop((x, y, x + 900, y + 900)).resize((side, side))
    cut = Image.open(stamp).convert("RGBA")
    factor = chance.uniform(0.4, 0.75) * side / max(cut.size)
    cut = cut.resize([max(1, round(length * factor)) for length in cut.size])
    picture.paste(cut, (chance.randint(0, side - cut.width), chance.randint(0, side - cut.height)), cut)
    return picture


def write(folder: Path, name: str, picture: Image.Image, caption: str) -> int:
    """One picture and its caption."""
    picture.thumbnail((640, 640))
    picture.save(folder / f"{name}.jpg", quality=92)
    (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return 1


if __name__ == "__main__":
    main()
