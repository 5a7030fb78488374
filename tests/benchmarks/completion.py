"""How often completion appends what a caption names already, on Chinese captions that other people wrote.

    python tests/benchmarks/completion.py TUXPAINT GCOMPRIS

TUXPAINT and GCOMPRIS are the unpacked Debian packages tuxpaint-stamps-default (a sentence per stamp, in simplified and
traditional characters) and gcompris-qt-data (a word per picture). What each picture shows of COCO's 80 classes is
written below, by its English name; captions whose Chinese says something else are listed as well. Of the objects that
a caption names, by whatever word, the share is printed that completion would append again, and the share of all other
classes that it would not append if they were found; before: one name per label, as `knowledge.vision.synonyms` gives.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections import defaultdict
from pathlib import Path

from ppvilg.knowledge import NameTable, open_names
from ppvilg.knowledge.names.reading import find_table, read_table

# class -> names of stamps (folder/name, or folder/ for all in it) that show it
STAMPS = {
    "person": "girl_in_wheelchair woman_chemist woman_dancing woman_doctor woman_nurse woman_police_officer_1 "
    "woman_police_officer_2 fireman200b fireman240a paratrooper Santa spacewalk",
    "bird": "birds/ easter/bluebird easter/chick easter/chick-hatched easter/chick-in-egg tux_tractor",
    "cat": "kitten blackcat", "dog": "dogs/dog dingo", "horse": "equines/horse", "sheep": "ram sheep sheep_lamb",
    "cow": "bison bull cow cow_white yak zebu", "elephant": "elephant", "bear": "bears/bear european-bear",
    "zebra": "zebra zebra2", "giraffe": "giraffe", "teddy bear": "teddy_bear", "bicycle": "bluebike",
    "motorcycle": "motorbike", "airplane": "747 planes/plane f22_raptor", "bus": "iso_bus double_decker_bus schoolbus "
    "green_korean_bus", "train": "toy_train white_train",
    "car": "beetle sedan sportscar sportscar2 sportscar3 indycar f1_car sedan_police",
    "truck": "auto/truck blue_truck cementMixer terex fire_engine firetruck iso_fireengine toy_truck",
    "boat": "tugboat chineseJunk sail_boat1 sail_boat2 walnutBoat shipwreck", "banana": "banana",
    "apple": "apple apple_fuji apple_granny_smith apple_green apple_red apple_sierra_beauty", "broccoli": "broccoli",
    "orange": "orange mandarine orange_seville sliced_orange", "carrot": "carrot", "pizza": "pizza",
    "cake": "birthday_cake pink_cake smallcake", "bottle": "bottle", "cup": "mug expresso coffeecup household/glass",
    "scissors": "scissors_small_closed scissors_small_open", "umbrella": "umbrella", "kite": "kite",
    "sports ball": "australian_rules_football basketball volleyball cricketball football soccer tennis_ball "
    "spider_football", "tennis racket": "tennis_racket", "clock": "symbols/clock clockface", "laptop": "laptop",
    "tv": "monitor", "mouse": "electronics/mouse", "cell phone": "mobile", "toilet": "household/toilet",
    "traffic light": "stoplight_01_red stoplight_02_yellow stoplight_03_green", "stop sign": "roadsigns/stop",
    "fork": "fork", "knife": "knife", "spoon": "spoon",
}  # fmt: skip
# class -> English words of pictures that show it
WORDS = {
    "person": "accountant actor artist astronaut athlete banker_female boxer boy bricklayer bride brother butcher "
    "carpenter chef child cleaning_lady clown coach couple cowboy dad doctor electrician engineer family farmer "
    "fireman fisherman friend girl grandmother hunter husband jockey judge juggler king knight lad lady lawyer "
    "librarian man mate mechanic mom mother musician nun nurse nurse_male pal people pilot pirate plumber police pope "
    "president priest prince princess prisoner queen sailor sister soldier son student teacher thief twin_boys "
    "twin_girls vet wife woman worker",
    "bird": "bird blackbird canary chick chicken crow dove duck duck_mother eagle flamingo goose hen hummingbird jay "
    "magpie ostrich owl parakeet parrot peacock pelican pigeon sparrow swan turkey vulture",
    "cat": "cat cat_female kitten", "dog": "dog hound pug puppy", "horse": "horse colt pony", "sheep": "sheep lamb",
    "cow": "cow bull ox buffalo", "bear": "bear", "zebra": "zebra", "bicycle": "bike", "bus": "bus", "car": "car taxi "
    "van", "truck": "truck", "train": "train", "boat": "boat canoe raft ship", "airplane": "plane",
    "motorcycle": "motorcycle", "bench": "bench", "apple": "apple", "orange": "orange", "broccoli": "broccoli",
    "carrot": "carrot", "cake": "cake", "donut": "doughnut", "pizza": "pizza", "hot dog": "hot_dog",
    "sandwich": "sandwich hamburger", "bed": "bed crib", "chair": "chair armchair", "couch": "couch", "dining table":
    "table desk", "toilet": "toilet", "tv": "television", "keyboard": "keyboard", "book": "book", "clock": "clock "
    "alarmclock", "vase": "vase", "teddy bear": "teddy", "hair drier": "hair_dryer", "scissors": "scissors",
    "bottle": "baby_bottle carafe flacon", "cup": "mug", "fork": "fork", "knife": "knife", "spoon": "spoon",
    "sports ball": "ball ball_soccer tennis", "kite": "kite", "umbrella": "umbrella", "suitcase": "suitcase",
    "backpack": "school_bag", "sink": "sink", "toaster": "toaster",
}  # fmt: skip
# Captions whose Chinese does not name what is shown, mistakes of translation among them (a bear is called 梨)
OTHERWISE = {
    "bears/bear": "CN", "yak": "CN TW", "household/toilet": "TW", "shipwreck": "TW", "tux": "TW",
}  # fmt: skip
# Pictures and captions about which one may think either way: not counted
EITHER = set(
    "goat mountaingoat gnu-baby gnu-baby-stand gnu-sitting gnu-stand edward_bear eddieCopter dumper towTruck forklift "
    "forklift2 carriage boxcar caboose tender tanker bathyscape apple_core apple_core_01 phone glass call grave "
    "spider_computer rubberduck calculator shrimp class dish pepper seat dwarf fairy notebook sole grannysmith barn "
    "pitcher_small pasta_pot tribe angel family hunter cartoon/plane rowing play study scooter cone sombrero racing "
    "hat harp".split()
)


def stamps(folder: Path):
    """(names it goes by, language, caption)."""
    for path in sorted(folder.rglob("*.txt")):
        parts = path.with_suffix("").parts
        names = {parts[-1], "/".join(parts[-2:]), *(f"{part}/" for part in parts[:-1])}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, text = line.partition(".utf8=")
            if key in ("zh_CN", "zh_TW") and text.strip():
                yield names, key[3:], text.strip()


def resources(path: Path):
    """(name, content) of the files in a Qt resource file (doc.qt.io: The Qt Resource System, rcc --binary)."""
    data = path.read_bytes()
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    width = 14 if version == 1 else 22

    def walk(number: int, folder: str):
        place = tree + number * width
        name, flags = struct.unpack(">IH", data[place : place + 6])
        length = struct.unpack(">H", data[names + name : names + name + 2])[0]
        text = data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be") if number else ""
        if flags & 2:
            count, first = struct.unpack(">II", data[place + 6 : place + 14])
            for child in range(first, first + count):
                yield from walk(child, f"{folder}/{text}")
            return
        start = contents + struct.unpack(">I", data[place + 10 : place + 14])[0]
        raw = data[start + 4 : start + 4 + struct.unpack(">I", data[start : start + 4])[0]]
        yield f"{folder}/{text}", zlib.decompress(raw[4:]) if flags & 1 else raw

    yield from walk(0, "")


def words(folder: Path):
    """(names it goes by, language, caption) of the pictures of the activity that teaches words."""
    files = dict(resources(next(folder.rglob("lang.rcc"))))
    for language in ("CN", "TW"):
        name = next(name for name in files if name.endswith(f"content-zh_{language}.json"))
        for key, text in json.loads(files[name]).items():
            yield {key.split(".")[0]}, language, text


def shown(names: set[str], truth: dict[str, str]) -> set[str]:
    """Classes of a picture."""
    return {label for label, listed in truth.items() if names & set(listed.split())}


def measure(captions, truth: dict[str, str], labels: list[str], coco: NameTable) -> dict:
    """Counts by way ("before", "after")."""
    names = read_table(find_table("coco")).entries
    before = {label: NameTable(synonyms={label: list(names[label].zh[:1])}) for label in labels}
    counts, lists = defaultdict(int), defaultdict(list)
    for known_as, language, caption in captions:
        if known_as & EITHER:
            continue
        classes = shown(known_as, truth)
        if any(language in OTHERWISE.get(name, "").split() for name in known_as):
            classes = set()
        ways = {"before": {label for label in labels if before[label].mentioned(caption, [label])},
                "after": set(coco.mentioned(caption, labels))}  # fmt: skip
        counts["captions"] += 1
        counts["named"] += len(classes)
        counts["not named"] += len(labels) - len(classes)
        for way, mentioned in ways.items():
            counts[way, "again"] += len(classes - mentioned)
            counts[way, "silent"] += len(mentioned - classes)
            lists[way, "again"] += [(caption, label) for label in classes - mentioned]
            lists[way, "silent"] += [(caption, label) for label in mentioned - classes]
    return {"counts": counts, "lists": lists}


def main(tuxpaint: str, gcompris: str) -> None:
    coco = open_names()
    labels = [entry.label for entry in read_table(find_table("coco")).entries.values()]
    print("| captions | objects named | appended again before | after | others held back before | after |")
    print("| --- | --- | --- | --- | --- | --- |")
    sets = {"tuxpaint": measure(stamps(Path(tuxpaint)), STAMPS, labels, coco),
            "gcompris": measure(words(Path(gcompris)), WORDS, labels, coco)}  # fmt: skip
    for name, found in sets.items():
        counts = found["counts"]
        row = [f"{name}, {counts['captions']}", str(counts["named"])]
        for what, of in (("again", "named"), ("silent", "not named")):
            row += [f"{counts[way, what]} ({counts[way, what] / counts[of]:.2%})" for way in ("before", "after")]
        print("| " + " | ".join(row) + " |")
    for name, found in sets.items():
        for what in ("again", "silent"):
            print(f"\n{name}, {what}, after:", *(f"{c} {x}" for c, x in found["lists"]["after", what]), sep="\n  ")


if __name__ == "__main__":
    main(*sys.argv[1:])
