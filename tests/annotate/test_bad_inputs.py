"""Pictures as they come: every kind is annotated as training will see it, or named; boxes never leave a picture."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from annotation_shards import encode, noise, write_tar  # noqa: E402

from ppvilg.annotate import DetectionStage, Rejection, Runner, find_units, open_detector  # noqa: E402
from ppvilg.annotate.detectors import Detection  # noqa: E402
from ppvilg.annotate.detectors.detection import fit  # noqa: E402
from ppvilg.data import open_source  # noqa: E402


def corner(pictures):
    """A detector of the red quarter at the upper left of a picture, whose boxes reach over every edge."""
    found = []
    for picture in pictures:
        pixels = np.asarray(picture).astype(int)
        red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80)
        y, x = np.nonzero(red)
        found.append([("red", 0.9, (-3, -2, x.max() + 1, y.max() + 1)), ("all", 0.8, (-9, -9, 9999, 9999)),
                      ("outside", 0.8, (picture.width, 0, picture.width + 5, 5))] if len(x) else [])  # fmt: skip
    return found


def quartered(width: int = 80, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Blue with a red quarter."""
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, max(1, width // 2), max(1, height // 2)))
    return image.convert(mode)


def turned() -> bytes:
    """A picture that lies on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    return encode(quartered().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def test_every_picture_is_right_or_named(tmp_path):
    deep = Image.fromarray((np.arange(3200).reshape(40, 80) * 20).astype(np.uint16))
    members = {
        "cmyk.jpg": encode(quartered(mode="CMYK"), "JPEG", quality=95),
        "turned.jpg": turned(),
        "palette.png": encode(quartered().quantize(4), "PNG"),
        "wide.png": encode(quartered(5000, 1), "PNG"),
        "tall.png": encode(quartered(1, 5000), "PNG"),
        "deep.png": encode(deep, "PNG"),
        "cut.jpg": encode(noise(1, (200, 200)))[:3000],
        "other.webp": b"GIF89a and more",
        "empty.jpg": b"",
    }
    write_tar(tmp_path / "00000.tar", members)
    sys.modules["bad_inputs"] = sys.modules[__name__]
    [unit] = find_units(tmp_path, tmp_path / "out")
    Runner([DetectionStage(open_detector("bad_inputs:corner")), Caption()]).run([unit])
    lines = {line["key"]: line for line in map(json.loads, unit.output.read_text().splitlines()[1:])}
    assert set(lines) == {name.split(".")[0] for name in members}
    boxes = {key: {each["label"]: each["box"] for each in line["objects"]} for key, line in lines.items()
             if "objects" in line}  # fmt: skip
    assert boxes["cmyk"] == boxes["palette"] == boxes["turned"] == {"red": [0, 0, 40, 20], "all": [0, 0, 80, 40]}
    assert boxes["wide"] == {"red": [0, 0, 2500, 1], "all": [0, 0, 5000, 1]} and boxes["deep"] == {}
    assert boxes["tall"] == {"red": [0, 0, 1, 2500], "all": [0, 0, 1, 5000]}
    assert "cannot be decoded" in lines["cut"]["rejected"]["reason"]
    assert "it is a GIF" in lines["other"]["rejected"]["reason"]
    assert "is empty" in lines["empty"]["rejected"]["reason"]
    source = open_source(tmp_path, tmp_path / "out")
    assert {record.key for record in map(source.read, range(len(source)))} == set(boxes)  # all boxes lie within


class Caption:
    """A stage that gives every sample a caption, which training needs."""

    name, identity = "caption", {"kind": "test"}

    def start(self):
        """Nothing is kept."""

    def process(self, batch):
        return [{"captions": {"generated": "一块红色"}} for _ in batch]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("cat", math.nan, (0, 0, 5, 5)), "not finite"),
        (("cat", 0.5, (0, 0, math.inf, 5)), "not finite"),
        (("cat", 12.0, (0, 0, 5, 5)), "score 12.0 of 'cat' is not within"),
        (("", 0.5, (0, 0, 5, 5)), "label '' is no text"),
    ],
)
def test_numbers_that_are_none_are_named(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit([Detection(*row)], (10, 10), 0.2)


def test_a_function_that_answers_nonsense_leaves_the_sample_out(tmp_path, monkeypatch):
    (tmp_path / "nonsense.py").write_text("def detect(pictures):\n    return [[('cat', 'high', (0, 0, 1, 1))]] * "
                                          "len(pictures)\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    [answer] = open_detector("nonsense:detect").detect([noise(0)])
    assert isinstance(answer, Rejection) and "could not convert string to float" in answer.reason
