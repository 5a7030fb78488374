from __future__ import annotations

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppvilg.annotate import DetectionStage, Runner, find_units, open_detector
from ppvilg.annotate.sheet import Settings, show
from ppvilg.annotate.sheet.card import APPENDED, DOUBTFUL, NAMED, card_of
from ppvilg.annotate.sheet.drawing import draw_weights
from ppvilg.annotate.sidecar import TOOL
from ppvilg.commands import main
from ppvilg.data import ObjectBox, Record

sys.path.insert(0, str(Path(__file__).parent))

from annotation_shards import encode, noise, write_tar  # noqa: E402

THINGS = [ObjectBox("dog", (0, 0, 64, 64), 0.9), ObjectBox("cup", (64, 64, 128, 128), 0.8),
          ObjectBox("cat", (0, 64, 64, 128), 0.2)]  # fmt: skip


def test_a_card_says_what_training_will_do():
    captions = {"zh": "一只柯基。", "generated": "图中有一条狗"}
    card = card_of(Record("k", noise(1, (128, 128)), captions, THINGS), Settings())
    assert [(thing.name, thing.fate) for thing in card.things] == [("狗", NAMED), ("杯子", APPENDED), ("猫", DOUBTFUL)]
    assert [row.title for row in card.rows] == ["caption (zh)", "completed", "generated"]
    before, after, generated = card.rows
    assert "".join(word for _, word in after.words[after.given :]) == "，杯子"
    assert before.given == len(before.words) and generated.words[generated.given :][-1] == ("[n]", "杯子")
    weights = np.ones((32, 32), np.float32)
    weights[:16, :16] = weights[16:, 16:] = np.float32(1.1)
    np.testing.assert_array_equal(card.weights, weights)
    shown = np.asarray(draw_weights(Image.new("RGB", (256, 256), "white"), card.weights), int)
    quarter = len(shown) // 4
    assert shown[quarter, quarter].sum() > 600 > 500 > shown[3 * quarter, quarter].sum()  # bright where it weighs more


def write_annotated(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    members, lines = {}, [{"tool": TOOL, "version": "1", "source": {}, "stages": [], "problems": []}]
    for number, caption in enumerate(captions):
        members |= {f"{number}.png": encode(noise(number, (96, 64)), "PNG"), f"{number}.txt": caption.encode()}
        objects = [{"label": "ufo", "box": [0, 0, 30, 30], "score": 0.9},
                   {"label": "dog", "box": [30, 0, 60, 64], "score": 0.7}]  # fmt: skip
        lines.append({"key": str(number), "width": 96, "height": 64, "objects": objects})
    lines[-1] = {"key": lines[-1]["key"], "rejected": {"stage": "text", "reason": "text covers 9.00% of it"}}
    write_tar(folder / "a.tar", members)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "a.annotations.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_the_sheet_is_one_file_and_goes_to_visualdl(tmp_path, capsys):
    data = write_annotated(tmp_path / "data", ["一只<b>狗</b>", "草地", "海报"])
    names = tmp_path / "own.yml"
    names.write_text("labels: {ufo: {zh: [飞碟]}}", encoding="utf-8")
    command = ["annotate", "--data", str(data), "--output", str(data), "--show", "9"]
    assert main(command) == 0
    page = (data / "sheet" / "index.html").read_text(encoding="utf-8")
    assert "Without an entry in the tables of names: ufo" in page and page.count("<article>") == 2
    assert "<b>狗</b>" not in page and "&lt;" in page and "text covers 9.00% of it" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    pictures = re.findall(r"base64,([^\"]+)", page)
    assert len(pictures) == 5  # two of each sample, and one that is left out
    assert all(Image.open(io.BytesIO(base64.b64decode(each))).format == "JPEG" for each in pictures)
    assert main([*command, "--names", "coco", str(names), "--recipe", "emoji64"]) == 0
    page = (data / "sheet" / "index.html").read_text(encoding="utf-8")
    assert "飞碟" in page and "Without an entry" not in page and "96x64, 12x8 cells" in page
    assert f"sheet: {data / 'sheet' / 'index.html'}" in capsys.readouterr().out
    from visualdl import LogReader

    reader = LogReader(file_path=str(data / "sheet" / "visualdl" / "vdlrecords.sheet.log"))
    assert len(reader.get_data("image", "samples")) == 2 and len(reader.get_data("text", "captions")) == 2


def test_sheets_of_nothing_are_refused(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", {"0.png": encode(noise(0), "PNG"), "0.txt": "猫".encode()})
    command = ["annotate", "--data", str(tmp_path / "a.tar"), "--output", str(tmp_path / "out")]
    assert main([*command, "--show", "3"]) == 1
    assert "annotate first, then look at it" in capsys.readouterr().err
    assert main([*command, "--show", "3", "--names", str(tmp_path / "none.yml")]) == 1
    assert "no table of names at" in capsys.readouterr().err


def corners(pictures: list[Image.Image]) -> list[list[tuple]]:
    """A detector as a function: all of the picture, and a box that leaves it."""
    return [[("dog", 0.9, (0, 0, *picture.size)), ("cat", 0.9, (-50, -50, picture.width + 9, picture.height + 9))]
            for picture in pictures]  # fmt: skip


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return encode(image, "JPEG", exif=exif)


def test_odd_pictures_are_annotated_upright_or_named(tmp_path):
    grey16 = Image.fromarray(np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16))
    pictures = {
        "cmyk.jpg": encode(noise(1).convert("CMYK")), "deep.png": encode(grey16, "PNG"), "turned.jpg": turned(noise(2)),
        "long.png": encode(Image.new("RGB", (1, 5000), "red"), "PNG"),
        "clear.png": encode(noise(3).convert("RGBA"), "PNG"),
        "palette.png": encode(noise(4).convert("P"), "PNG"), "cut.jpg": encode(noise(5, (200, 200)))[:900],
        "empty.png": b"", "text.png": b"not a picture",
    }  # fmt: skip
    captions = {f"{name.split('.')[0]}.txt": "一张图".encode() for name in pictures}
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", pictures | captions)
    units = find_units(tmp_path / "data", tmp_path / "out")
    Runner([DetectionStage(open_detector(f"{__name__}:corners", 0.1))]).run(units)
    lines = {}
    for line in units[0].output.read_text("utf-8").splitlines()[1:]:
        line = json.loads(line)
        assert line["key"] not in lines
        lines[line["key"]] = line
    assert set(lines) == {name.split(".")[0] for name in pictures}  # every sample has its fate
    rejected = {key for key, line in lines.items() if "rejected" in line}
    assert rejected == {"cut", "empty", "text"}
    for key, size in (("cmyk", [40, 30]), ("deep", [48, 32]), ("turned", [30, 40]), ("long", [1, 5000])):
        for item in lines[key]["objects"]:
            assert item["box"] == [0, 0, *size]  # cut at the border of the upright picture
    path = show(tmp_path / "data", units, 20, Settings())
    page = path.read_text(encoding="utf-8")
    assert page.count("<article>") == 6 and "1x5000" in page and "30x40" in page
    assert all(f"{key}<br>" in page for key in rejected)


@pytest.mark.parametrize("box", [[-1, 0, 5, 5], [0, 0, 500, 5], [5, 5, 5, 9], [0, 0, "a", 5]])
def test_boxes_that_others_wrote_outside_of_the_picture_are_named(tmp_path, box):
    data = write_annotated(tmp_path / "data", ["一只狗", "草地", "海报"])
    path = data / "a.annotations.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[1]["objects"][0]["box"] = box
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = show(data, find_units(data, data), 9, Settings()).read_text(encoding="utf-8")
    assert page.count("<article>") == 1 and page.count("<li>") == 1 and "sample &#x27;0&#x27;" in page
