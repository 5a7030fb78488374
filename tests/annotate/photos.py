"""Photographs out of Debian packages, for tests alone: of Qt's resource files, and stamps that were cut out of some.

PPVILG_TEST_PHOTOS names a folder into which gcompris-qt-data, tuxpaint-stamps-default and plasma-workspace-wallpapers
were unpacked (dpkg -x), or several, separated by colons; else the installed packages are looked for.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4

RCC = "usr/share/gcompris-qt/rcc"
STAMPS = "usr/share/tuxpaint/stamps"
WALLPAPERS = "usr/share/wallpapers"
# Photographs of animals that COCO has a class for: all of them in these three files.
ANIMALS = {
    "explore_farm_animals": {"dog": "dog", "cow": "cow", "cat": "cat", "chicken": "bird", "horse": "horse",
                             "duck": "bird", "sheep": "sheep", "owl": "bird"},
    "explore_world_animals": {"giraffe": "giraffe", "polar_bear": "bear", "scarlet_macaw": "bird"},
    "erase": {"northern_harrier": "bird", "giraffe": "giraffe", "calf": "cow", "penguin": "bird", "swans": "bird",
              "kingfisher": "bird", "heron": "bird", "toucan": "bird", "gosling": "bird", "horse": "horse",
              "kitten": "cat", "spoonbills": "bird"},
}  # fmt: skip
# Photographic stamps of COCO's classes, below animals/, food/ and vehicles/.
CUT_OUTS = {
    "animals/birds": {"bird": "blackbird crow drake duck hen heron_greatblue magpie ostrich owl pelican penguin pigeon "
                              "rooster seagull silver-gull"},
    "animals/mammals": {"bear": "bears/bear bears/european-bear", "cow": "bovines/cow bovines/cow_white",
                        "sheep": "bovines/sheep bovines/sheep_lamb", "dog": "dogs/dog", "elephant": "elephant",
                        "horse": "equines/horse", "zebra": "equines/zebra", "giraffe": "giraffe"},
    "food": {"apple": "fruit/apple_fuji fruit/apple_red", "banana": "fruit/banana", "orange": "fruit/orange",
             "pizza": "pizza", "broccoli": "vegetables/broccoli", "carrot": "vegetables/carrot"},
    "vehicles": {"airplane": "flight/planes/747", "truck": "auto/truck garbagetruck",
                 "bus": "masstransit/green_korean_bus", "car": "auto/sportscar2"},
}  # fmt: skip
BACKGROUNDS = ("Autumn", "BytheWater", "ColdRipple", "EveningGlow", "FallenLeaf", "DarkestHour")


def rcc_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in a Qt resource file of version 1 to 3 (qtbase, tools/rcc)."""
    data = path.read_bytes()
    magic, version, tree, payload, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError(f"{path} is no Qt resource file")
    node = 22 if version >= 2 else 14  # bytes; later versions have a time

    def name_of(offset: int) -> str:
        length = struct.unpack_from(">H", data, names + offset)[0]
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(number: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + number * node)
        place = f"{folder}/{name_of(name)}" if number else ""
        if flags & _FOLDER:
            for child in range(second, second + first):
                yield from walk(child, place)
            return
        if flags & _ZSTD:
            raise ValueError(f"{path}: {place} is compressed with Zstandard")
        length = struct.unpack_from(">I", data, payload + second)[0]
        content = data[payload + second + 4 : payload + second + 4 + length]
        yield place, zlib.decompress(content[4:]) if flags & _COMPRESSED else content

    return walk(0, "")


def package_folder(below: str) -> Path | None:
    """The folder `below` of an unpacked or installed package, if it is there."""
    roots = [*os.environ.get("PPVILG_TEST_PHOTOS", "").split(os.pathsep), "/"]
    return next((Path(root) / below for root in roots if root and (Path(root) / below).is_dir()), None)


def animal_photos(rcc: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """(name, class of COCO, RGB picture) of the animals."""
    for file, wanted in ANIMALS.items():
        for name, content in rcc_files(rcc / f"{file}.rcc"):
            stem, kind = os.path.splitext(os.path.basename(name))
            if stem in wanted and kind in (".webp", ".jpg"):
                yield f"{file}/{stem}", wanted[stem], Image.open(io.BytesIO(content)).convert("RGB")


def cut_outs(
    stamps: Path, wallpapers: Path, seed: int = 0, each: int = 2
) -> Iterator[tuple[str, str, tuple[int, int, int, int], Image.Image]]:
    """(name, class, box, picture of 960x600): every stamp on `each` photographs, somewhere, 240 to 420 pixels long."""
    chance = random.Random(seed)
    backs = [Image.open(wallpapers / name / "contents/images/2560x1600.jpg").convert("RGB").resize((960, 600))
             for name in BACKGROUNDS]  # fmt: skip
    for folder, classes in CUT_OUTS.items():
        for kind, names in classes.items():
            for name in names.split():
                stamp = Image.open(stamps / folder / f"{name}.png").convert("RGBA")
                stamp = stamp.crop(stamp.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
                for back in chance.sample(backs, each):
                    factor = chance.randint(240, 420) / max(stamp.size)
                    small = stamp.resize([max(1, round(side * factor)) for side in stamp.size])
                    x, y = chance.randint(0, 960 - small.width), chance.randint(0, 600 - small.height)
                    picture = back.copy()
                    picture.paste(small, (x, y), small)
                    yield name, kind, (x, y, x + small.width, y + small.height), picture


def overlap(one: tuple, two: tuple) -> float:
    """Intersection of two boxes over their union."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return common / (areas - common)
