"""tools/infer.py, called as a function."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import ppvilg
from ppvilg.commands import main
from ppvilg.pipelines import ErnieViLG2Pipeline, read_metadata


def infer(arguments: list[str]) -> int:
    return main(["infer", *arguments])


@pytest.fixture(scope="module")
def model(components, tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("model")
    ErnieViLG2Pipeline(**components, max_length=16, default_num_inference_steps=2).save_pretrained(place)
    return str(place)


def test_pictures_their_metadata_and_the_grid(model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("左边是一只猫\n\n a red car \n", encoding="utf-8")
    output = tmp_path / "pictures"
    arguments = ["-m", model, "--prompt", "三只企鹅", "--prompt-file", str(tmp_path / "prompts.txt"), "--seed", "5"]
    arguments += ["--style", "水彩", "--num-images", "2", "--batch-size", "4", "--guidance-scale", "3"]
    assert infer([*arguments, "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert str(output / "grid.png") in captured.out.splitlines()[-1]
    assert "2/2" in captured.err  # a bar that counts steps
    assert sorted(path.name for path in output.iterdir()) == [f"{i:05d}.png" for i in range(6)] + ["grid.png"]
    about = [read_metadata(output / f"{i:05d}.png") for i in range(6)]
    prompts = ["三只企鹅", "三只企鹅", "左边是一只猫", "左边是一只猫", "a red car", "a red car"]
    assert [one["prompt"] for one in about] == prompts
    assert [one["seed"] for one in about] == ["5", "6", "7", "8", "9", "10"]
    expected = {"style": "水彩", "num_inference_steps": "2", "guidance_scale": "3.0", "model": model}
    assert expected.items() <= about[4].items() and about[4]["ppvilg"] == ppvilg.__version__

    pipeline = ErnieViLG2Pipeline.from_pretrained(model)  # a picture can be drawn again from what it says of itself
    again = pipeline(prompts[4], style="水彩", guidance_scale=3.0, generator=9).images[0]
    difference = np.asarray(again, int) - np.asarray(Image.open(output / "00004.png"), int)
    assert np.abs(difference).max() <= 1


def test_second_run_continues_the_numbers(model, tmp_path):
    for seed in ("1", "2"):
        arguments = ["-m", model, "--prompt", "三只企鹅", "--seed", seed, "--output", str(tmp_path)]
        assert infer([*arguments, "--scheduler", "euler", "--steps", "3"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png", "grid.png", "grid_2.png"]
    first, second = (read_metadata(tmp_path / f"0000{i}.png") for i in range(2))
    assert (first["seed"], second["seed"]) == ("1", "2")
    assert first["scheduler"] == "EulerDiscreteScheduler" and first["num_inference_steps"] == "3"


def test_repainting_a_file(model, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "image.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    files = ["--image", str(tmp_path / "image.png"), "--mask-image", str(tmp_path / "mask.png")]
    assert infer(["-m", model, "--prompt", "三只企鹅", *files, "--output", str(tmp_path / "out")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    assert (pixels[:, 8:] == [255, 0, 0]).all() and not (pixels[:, :8] == [255, 0, 0]).all()


def test_mistakes_are_one_line(model, tmp_path, capsys):
    assert infer(["-m", "emoji65", "--prompt", "三只企鹅", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("neither a folder nor a model of the zoo (emoji64)\n")
    assert infer(["-m", model, "--prompt", "三只企鹅", "--style", "水墨", "--output", str(tmp_path)]) == 1
    assert "error: unknown style '水墨'" in capsys.readouterr().err
    assert infer(["-m", model, "--prompt", "三只企鹅", "--width", "18", "--output", str(tmp_path)]) == 1
    assert "the nearest valid: 16 and 20" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer(["-m", model])
    assert "give --prompt or --prompt-file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
