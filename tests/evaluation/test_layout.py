"""Pictures as GenEval lays them out; going on; folders of something else."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from ppvilg.emoji.captions import held_out_prompts
from ppvilg.evaluation import PictureFolder, geneval_metadata
from ppvilg.pipelines import read_metadata

PROTOCOL = {"source": "model", "seed": 0}


@pytest.fixture(scope="module")
def prompts() -> list[dict]:
    return [prompt for kind in ("single", "pair", "count") for prompt in held_out_prompts(kind, 2)]


def picture(prompt: dict, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (prompt["width"], prompt["height"]), colour)


def fill(folder: PictureFolder, prompts: list[dict]) -> None:
    for key in folder.missing():
        folder.write(*key, picture(prompts[key[0]]), {"seed": 7})


def test_keys_that_geneval_reads(prompts):
    single, pair, count = (geneval_metadata(prompts[i]) for i in (0, 2, 4))
    name = prompts[0]["objects"][0]["label_en"]
    assert single["tag"] == "single_object" and single["include"] == [{"class": name, "count": 1}]
    assert single["prompt"] == prompts[0]["prompt"] and single["background"] == prompts[0]["background"]
    first, second = (item["label_en"] for item in prompts[2]["objects"])
    words = {"left": "left of", "above": "above"}[prompts[2]["relation"]]
    assert pair["tag"] == "position" and "exclude" not in pair
    assert pair["include"] == [
        {"class": second, "count": 1},
        {"class": first, "count": 1, "position": [words, 0]},
    ]
    name, number = prompts[4]["objects"][0]["label_en"], prompts[4]["count"]
    assert count["tag"] == "counting" and count["include"] == [{"class": name, "count": number}]
    assert count["exclude"] == [{"class": name, "count": number + 1}]


def test_files_are_where_geneval_looks_for_them(prompts, tmp_path):
    folder = PictureFolder(tmp_path, prompts, 2, PROTOCOL)
    fill(folder, prompts)
    folder.write_grids()
    lines = (tmp_path / "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(prompts)
    for index, line in enumerate(lines):
        place = tmp_path / f"{index:05d}"
        assert json.loads((place / "metadata.jsonl").read_text(encoding="utf-8")) == json.loads(line)
        samples = sorted(path.name for path in (place / "samples").iterdir() if re.match(r"\d+\.png", path.name))
        assert samples == ["0000.png", "0001.png"]
        assert (place / "grid.png").is_file()
    about = read_metadata(tmp_path / "00000" / "samples" / "0000.png")
    assert about == {"prompt": prompts[0]["prompt"], "seed": "7"}


def test_pictures_that_are_there_are_not_drawn_again(prompts, tmp_path):
    folder = PictureFolder(tmp_path, prompts, 1, PROTOCOL)
    assert folder.missing() == [(i, 0) for i in range(len(prompts))]
    folder.write(0, 0, picture(prompts[0], "blue"), {})
    (tmp_path / "00001" / "samples").mkdir()
    (tmp_path / "00001" / "samples" / ".0000.png.partial").write_bytes(b"half a picture")  # what a killed run leaves
    again = PictureFolder(tmp_path, prompts, 1, dict(PROTOCOL))
    assert again.missing() == [(i, 0) for i in range(1, len(prompts))]
    fill(again, prompts)
    assert again.missing() == [] and again.read(0, 0).getpixel((0, 0)) == (0, 0, 255)
    assert PictureFolder(tmp_path, prompts, 2, PROTOCOL).missing() == [(i, 1) for i in range(len(prompts))]


def test_other_prompts_and_other_protocols_are_refused(prompts, tmp_path):
    PictureFolder(tmp_path, prompts, 1, PROTOCOL)
    with pytest.raises(ValueError, match="another protocol \\(seed 0, not 1\\)"):
        PictureFolder(tmp_path, prompts, 1, {**PROTOCOL, "seed": 1})
    with pytest.raises(ValueError, match="belongs to other prompts"):
        PictureFolder(tmp_path, prompts[::-1], 1, PROTOCOL)
    changed = tmp_path / "00002" / "metadata.jsonl"
    changed.write_text(changed.read_text(encoding="utf-8").replace("position", "counting"), encoding="utf-8")
    with pytest.raises(ValueError, match="00002/metadata.jsonl belongs to other prompts"):
        PictureFolder(tmp_path, prompts, 1, PROTOCOL)


def test_a_folder_of_something_else_is_left_alone(prompts, tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ValueError, match="is not empty and has no protocol.json"):
        PictureFolder(tmp_path, prompts, 1, PROTOCOL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unreadable_pictures_are_named(prompts, tmp_path):
    folder = PictureFolder(tmp_path, prompts, 1, PROTOCOL)
    fill(folder, prompts)
    path = folder.path(1, 0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="00001/samples/0000.png cannot be decoded .* remove it"):
        folder.read(1, 0)
    Image.new("RGB", (32, 32)).save(folder.path(2, 0))
    with pytest.raises(ValueError, match="is 32x32, its prompt asks for"):
        folder.read(2, 0)
    (tmp_path / "protocol.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="protocol.json is not readable as JSON"):
        PictureFolder(tmp_path, prompts, 1, PROTOCOL)
