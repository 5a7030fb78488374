"""The command `infer`, called as a function."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import ppvilg
from ppvilg import pipelines
from ppvilg.commands import album, main
from ppvilg.files import file_sha256
from ppvilg.inference.expert_sources import DygraphExperts
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
    assert "6/6" in captured.err and "pictures/s" in captured.err
    names = [f"{i:05d}.png" for i in range(6)] + ["grid.png", "run_00000.json"]
    assert sorted(path.name for path in output.iterdir()) == names
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
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["00000.png", "00001.png", "grid.png", "grid_2.png"]
    first, second = (read_metadata(tmp_path / f"0000{i}.png") for i in range(2))
    assert (first["seed"], second["seed"]) == ("1", "2")
    assert first["scheduler"] == "EulerDiscreteScheduler" and first["num_inference_steps"] == "3"


def test_words_that_cannot_be_read_are_said_before_anything_is_drawn(model, tmp_path, capsys):
    prompts = [option for prompt in ("三只企鹅", "三只饕餮", "三只狐狸") for option in ("--prompt", prompt)]
    assert infer(["-m", model, *prompts, "--num-images", "2", "--batch-size", "2", "--output", str(tmp_path)]) == 0
    said = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if "cannot read" in line or "lacks" in line]
    told = "warning: the model cannot read, and will not draw:"
    assert said == [f"{told} 饕 餮 (in 三只饕餮)", f"{told} 狐 狸 (in 三只狐狸)"]


def test_adapters_are_drawn_with_and_told(model, tmp_path, capsys):
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    random = np.random.default_rng(0)
    pair = {f"{place}.lora_{part}.weight": random.standard_normal((8, 8)).astype("f4") for part in "AB"}
    save_file(pair, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    command = ["-m", model, "--prompt", "三只企鹅", "--output", str(tmp_path / "out")]
    for more in ([], ["--lora", f"{tmp_path / 'a.safetensors'}:0,0,0.5,1"]):
        assert infer([*command, *more]) == 0
    first, second = (np.asarray(Image.open(tmp_path / "out" / f"0000{i}.png"), int) for i in range(2))
    assert np.abs(first - second).max() > 3
    told = ast.literal_eval(read_metadata(tmp_path / "out" / "00001.png")["lora"])
    assert told[0]["scale"] == [0.0, 0.0, 0.5, 1.0] and told[0]["name"].endswith("a.safetensors")
    assert told[0]["sha256"] == file_sha256(tmp_path / "a.safetensors")
    capsys.readouterr()
    assert infer([*command, "--lora", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer([*command, "--lora", "a:much"])
    assert "'much' is no scale" in capsys.readouterr().err


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
    output = tmp_path / "pictures"
    prompt = ["--prompt", "三只企鹅", "--output", str(output)]
    (tmp_path / "gbk.txt").write_bytes("白色背景上的一只猫".encode("gbk"))
    (tmp_path / "empty.txt").write_text("\n\n")
    for arguments, said in {
        ("-m", "emoji65"): "neither a folder nor a model of the zoo (emoji64)",
        ("-m", model, "--style", "水墨"): "error: unknown style '水墨'",
        ("-m", model, "--width", "18"): "the nearest valid: 16 and 20",
        ("-m", model, "--backend", "cpu"): "is no bundle: export it",
        ("-m", model, "--device", "gpu:7"): "device 'gpu:7' is not there",
        ("-m", model, "--device", "tpu"): "device must be 'cpu', 'gpu' or 'gpu:N', got 'tpu'",
        ("-m", model, "--prompt-file", str(tmp_path / "gbk.txt")): "gbk.txt is not UTF-8",
        ("-m", model, "--prompt-file", str(tmp_path / "nowhere.txt")): f"no such file: {tmp_path / 'nowhere.txt'}",
        ("-m", model, "--prompt-file", str(tmp_path)): f"{tmp_path} is a folder",
        ("-m", model, "--image", str(tmp_path / "empty.txt")): "empty.txt is not a picture",
        ("-m", model, "--image", str(tmp_path / "nowhere.png")): "nowhere.png",
        ("-m", model, "--output", str(tmp_path / "gbk.txt")): "gbk.txt is a file: a folder is needed",
    }.items():
        assert infer([*prompt, *arguments]) == 1, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and said in error
    assert infer(["-m", model, "--prompt-file", str(tmp_path / "empty.txt"), "--output", str(output)]) == 1
    assert "empty.txt holds no prompt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer(["-m", model])
    assert "give --prompt or --prompt-file" in capsys.readouterr().err
    assert not output.exists()


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(number, error): writing a picture of that number raises it; stop_at(None): no more."""
    real, at = pipelines.save_png, {}

    def save(picture, path, *arguments, **keywords):
        if path.stem == at.get("number"):
            raise at["error"]
        real(picture, path, *arguments, **keywords)

    monkeypatch.setattr(pipelines, "save_png", save)
    return lambda number, error=None: at.update(number=number, error=error)


def numbered(folder) -> dict[str, tuple[str, str, float]]:
    """Name -> (prompt, seed, time of writing)."""
    about = {path.name: (read_metadata(path), path.stat().st_mtime_ns) for path in sorted(folder.glob("0*.png"))}
    return {name: (text["prompt"], text["seed"], time) for name, (text, time) in about.items()}


def test_stopped_half_way_the_same_command_goes_on(model, tmp_path, capsys, stop_at):
    whole, output = tmp_path / "whole", tmp_path / "pictures"
    arguments = ["-m", model, "--prompt", "三只企鹅", "--prompt", "一只猫", "--num-images", "3", "--seed", "4"]
    assert infer([*arguments, "--output", str(whole)]) == 0
    stop_at("00003", OSError(28, "No space left on device", "00003.png"))
    assert infer([*arguments, "--batch-size", "2", "--output", str(output)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-3] == f"3 of 6 pictures are in {output}"
    assert errors[-1] == "error: [Errno 28] No space left on device: '00003.png'"
    before = numbered(output)
    assert list(before) == ["00000.png", "00001.png", "00002.png"]
    stop_at(None)
    (output / "00001.png").unlink()  # as if a hole were left
    assert infer([*arguments, "--output", str(output)]) == 0
    after = numbered(output)
    assert after["00000.png"] == before["00000.png"] and after["00002.png"] == before["00002.png"]
    assert [(prompt, seed) for prompt, seed, _ in after.values()] == [one[:2] for one in numbered(whole).values()]
    for name in after:
        one, other = (np.asarray(Image.open(folder / name), int) for folder in (whole, output))
        assert np.abs(one - other).max() <= 1  # drawn in other batches
    capsys.readouterr()
    assert infer([*arguments, "--output", str(output)]) == 0
    assert "all drawn before" in capsys.readouterr().out and numbered(output) == after


def test_killed_half_way_the_same_command_goes_on(model, tmp_path):
    """kill -9 while it draws: what is there is whole, and is not drawn again."""
    prompts, output = tmp_path / "prompts.txt", tmp_path / "pictures"
    prompts.write_text("".join(f"{number}只企鹅\n" for number in range(40)), encoding="utf-8")
    arguments = [
        "-m",
        model,
        "--prompt-file",
        str(prompts),
        "--batch-size",
        "1",
        "--steps",
        "9",
        "--output",
        str(output),
    ]
    process = subprocess.Popen([sys.executable, "-m", "ppvilg", "infer", *arguments], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(output.glob("0*.png"))) < 10:
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -9
    before = numbered(output)  # which reads every one of them
    assert 10 <= len(before) < 40
    assert infer(arguments) == 0
    after = numbered(output)
    assert len(after) == 40 and after.items() >= before.items()
    assert [prompt for prompt, _, _ in after.values()] == [f"{number}只企鹅" for number in range(40)]


def test_streamed_experts_are_read_once_for_several_batches(model, tmp_path, monkeypatch):
    prompts, reads, load = ["--prompt", "一只猫"] * 6, [], DygraphExperts.load
    monkeypatch.setattr(DygraphExperts, "load", lambda *given: reads.append(given[1]) or load(*given))
    monkeypatch.setattr(importlib.import_module("ppvilg.commands.infer"), "BATCHES_PER_TURN", 2)
    arguments = ["-m", model, *prompts, "--batch-size", "1", "--steps", "8"]
    assert infer([*arguments, "--max-resident-experts", "1", "--output", str(tmp_path / "streamed")]) == 0
    assert infer([*arguments, "--output", str(tmp_path / "plain")]) == 0
    assert reads == [3, 2, 1, 0] * 3  # six batches in three turns
    for name in numbered(tmp_path / "plain"):
        one, other = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("plain", "streamed"))
        assert np.array_equal(one, other)


def test_other_settings_never_take_the_numbers_of_an_unfinished_run(model, tmp_path, stop_at):
    first = ["-m", model, "--prompt", "三只企鹅", "--num-images", "3", "--output", str(tmp_path)]
    stop_at("00001", KeyboardInterrupt())
    assert infer([*first, "--batch-size", "1"]) == 130
    stop_at(None)
    assert infer([*first, "--guidance-scale", "2"]) == 0
    assert list(numbered(tmp_path)) == ["00000.png", "00003.png", "00004.png", "00005.png"]
    assert infer(first) == 0
    assert list(numbered(tmp_path)) == [f"{number:05d}.png" for number in range(6)]
    assert {path.name for path in tmp_path.glob("grid*")} == {"grid.png", "grid_2.png"}
    scales = [read_metadata(tmp_path / f"grid{end}.png")["guidance_scale"] for end in ("", "_2")]
    assert scales == ["7.5", "2.0"]


def test_another_model_under_the_same_name_is_another_run(model, tmp_path):
    import shutil

    copied = tmp_path / "model"
    for _ in range(2):
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(model, copied)  # with times of its own for folders alone
        for path in copied.rglob("*.safetensors"):
            path.touch()
        assert infer(["-m", str(copied), "--prompt", "三只企鹅", "--output", str(tmp_path / "out")]) == 0
    assert list(numbered(tmp_path / "out")) == ["00000.png", "00001.png"]


def test_pictures_are_read_as_in_training(model, tmp_path):
    """Upright, transparency on white, 16 bit scaled: with strength 0 the reconstruction has the picture's size."""
    phone = Image.new("RGB", (32, 16), (200, 30, 30))
    exif = Image.Exif()
    exif[0x112] = 6
    phone.save(tmp_path / "phone.jpg", exif=exif)
    arguments = ["-m", model, "--prompt", "三只企鹅", "--strength", "0", "--image", str(tmp_path / "phone.jpg")]
    assert infer([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "00000.png").size == (16, 32)


@pytest.mark.parametrize(
    ("count", "together", "columns"), [(1, 1, 1), (3, 1, 3), (16, 1, 4), (20, 1, 5), (6, 2, 2), (400, 4, 20)]
)
def test_columns_of_a_grid(count, together, columns):
    assert album.columns_of(count, together) == columns


def test_a_grid_of_many_pictures_is_made_of_smaller_copies(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (20, 10)).save(path)
    monkeypatch.setattr(album, "MAX_GRID_PIXELS", 200)
    assert {copy.size for copy in album.small_copies(paths)} == {(10, 5)}
    monkeypatch.setattr(album, "MAX_GRID_PIXELS", 800)
    assert {copy.size for copy in album.small_copies(paths)} == {(20, 10)}


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run_00000.json").write_text("{")
    with pytest.raises(ValueError, match="run_00000.json is damaged"):
        album.open_run(tmp_path, 3, {})
