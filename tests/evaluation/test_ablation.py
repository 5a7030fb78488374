"""The ablation: arms from one base by tiny training runs in this process, stopped and gone on; tables by hand."""

from __future__ import annotations

import json
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ppvilg.evaluation.ablation import suite as ablation
from ppvilg.evaluation.ablation import training
from ppvilg.evaluation.ablation.processes import run_process
from ppvilg.evaluation.ablation.recipe import Arm
from ppvilg.evaluation.ablation.tables import losses_of, table_of
from ppvilg.evaluation.suite import open_suite

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "evaluation" / "ablation.yml"
PROCESSES = str(ROOT / "ppvilg" / "evaluation" / "ablation" / "processes.py")
tiny = runpy.run_path(str(ROOT / "tests" / "engine" / "tiny.py"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data and recipe) of a world of coloured squares."""
    folder = tmp_path_factory.mktemp("world")
    training, validation = tiny["write_world"](folder)
    return training, validation, tiny["write_recipe"](folder / "recipe.yml")


@pytest.fixture
def processes(monkeypatch):
    """Commands that would have become processes, run in this one; `stop_at` makes the n-th training fail."""
    from ppvilg.config import load_config

    started = SimpleNamespace(commands=[], stop_at=None, trainings=[])
    train = tiny["load_tool"]("train")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # jobs run in threads here, which may not handle signals

    # It switches Paddle to static graphs for a moment, and with it every thread.
    monkeypatch.setattr("ppvilg.engine.run.rehearse_memory", lambda *_: None)

    def run(command, log, one_thread):
        started.commands.append(list(command))
        assert command[:3] == [sys.executable, "-m", "ppvilg"]
        if command[3] == "evaluate":
            try:
                open_suite(command[command.index("-c") + 1]).run()
            except ValueError as error:
                Path(log).write_text(f"error: {error}\n", encoding="utf-8")
                return 1
            return 0
        started.trainings.append(list(command))
        if started.stop_at == len(started.trainings):
            Path(log).write_text("stopped on purpose\n", encoding="utf-8")
            return 143
        overrides = [word for flag, word in zip(command, command[1:]) if flag == "-o"]
        train.train(load_config(command[command.index("-c") + 1], overrides))
        return 0

    monkeypatch.setattr(ablation, "run_process", run)
    monkeypatch.setattr(training, "run_process", run)
    return started


def overrides(world, output, **others) -> list[str]:
    small = dict(
        training=world[2],
        base="null",
        base_steps=4,
        steps=4,
        seeds="[1]",
        knowledge="[none,both]",
        experts="[1,2]",
        guidance_scales="[1.0,3.0]",
        prompts="{single: 4, pair: 3, count: 3}",
        num_inference_steps=2,
        reference_pictures=40,
        loss_scenes=12,
        loss_blocks=2,
        train_data=world[0],
        validation_data=world[1],
        scheduler="ddim",
        alignment="all",
        overrides="[train.vae.steps=2,train.vae.ema_every=1]",
    )
    return [f"{key}={value}" for key, value in {**small, "output": output, **others}.items()]


def test_arms_from_one_base(world, processes, tmp_path):
    """Stopped in its third training and run again: every arm once, on the same steps; then nothing is left to do."""
    processes.stop_at = 3
    options = overrides(world, tmp_path)
    with pytest.raises(ValueError, match=re.escape("ended with code 1: ")):
        open_suite(CONFIG, options).run()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/**/samples/*.png")}
    assert len(kept) in (20, 40)  # the first arm, and the third if it had begun
    report = open_suite(CONFIG, options).run()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    folders = [next(w for w in command if w.startswith("output=")) for command in processes.trainings]
    assert len(folders) == 5 and len(set(folders)) == 4  # a base, three arms, and again the one that was stopped

    assert len(report["cells"]) == 3 * 2
    for cell in report["cells"]:
        assert np.isfinite(cell["fid"]) and cell["fid"] > 0 and 0 <= cell["all"] <= cell["criteria"] <= 100
    assert [entry["knowledge"] for entry in report["results"]["knowledge"]] == ["none", "both"]
    assert [entry["experts"] for entry in report["results"]["experts"]] == [1, 2]
    assert report["results"]["knowledge"][0] == report["results"]["experts"][0]  # the same arm, trained once
    for arms in report["losses"].values():
        assert all(len(arm["loss"]) == 3 and arm["loss"][2]["mean"] > 0 for arm in arms)
        assert [change["mean"] for change in arms[0]["percent_change_to_first"]] == [0, 0, 0]
        assert all(change["mean"] != 0 for change in arms[1]["percent_change_to_first"])
    assert len(report["losses_of_base"]) == 2 and report["losses_of_base"] != [
        loss["mean"] for loss in report["losses"]["experts"][0]["loss"][:2]
    ]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "2 experts" in page and "text and vision" in page and "t = 0 to " in page
    assert "the base itself" in page
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"] == report["cells"]

    settings = {}
    for note in tmp_path.glob("arms/*/*/trained.json"):
        text = " ".join(json.loads(note.read_text(encoding="utf-8"))["overrides"])
        settings[note.parent.relative_to(tmp_path / "arms").as_posix()] = text
        assert "train.experts.steps=4" in text and "train.base.steps=0" in text
        assert not (note.parent / "checkpoints").exists() and (note.parent / "experts" / "model_index.json").is_file()
    both = settings["knowledge_both_experts_01/seed_1"]
    assert "knowledge.text.enabled=true" in both and "knowledge.vision.loss.enabled=true" in both and "seed=1" in both
    index = tmp_path / "arms" / "knowledge_none_experts_02" / "seed_1" / "experts" / "unet" / "config.json"
    assert json.loads(index.read_text(encoding="utf-8"))["num_experts"] == 2

    processes.commands.clear()
    assert open_suite(CONFIG, options).run()["cells"] == report["cells"] and not processes.commands
    for change, message in (
        ({"steps": 5}, "was trained with another overrides"),
        ({"base_steps": 5}, "was trained with another overrides"),
        ({"num_inference_steps": 3}, "holds pictures of another protocol"),
    ):
        with pytest.raises(ValueError, match=message):
            open_suite(CONFIG, overrides(world, tmp_path, **change)).run()


def test_arms_from_a_pipeline_folder(world, processes, tmp_path):
    """A pipeline is a base as it is: arms begin as its denoiser, and its latents are made once."""
    from ppvilg.config import load_config

    places = [f"data.train={world[0]}", f"data.validation={world[1]}", f"output={tmp_path / 'run'}"]
    tiny["load_tool"]("train").train(load_config(world[2], [*places, "train.experts.steps=0"]))
    pipeline = tmp_path / "run" / "base"
    options = overrides(world, tmp_path / "out", base=pipeline, knowledge="[none]", overrides="[]")
    report = open_suite(CONFIG, options).run()
    assert [entry["experts"] for entry in report["results"]["experts"]] == [1, 2] and len(processes.trainings) == 2
    assert len(list((tmp_path / "out" / "cache").iterdir())) == 2  # training and validation
    assert f"train.experts.start={pipeline}" in processes.trainings[0]
    (pipeline / "unet").rename(tmp_path / "unet")
    with pytest.raises(ValueError, match="base=.* lacks unet: give the output of a finished training run, or a pip"):
        open_suite(CONFIG, options).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knowledge": "[none,all]"}, "knowledge[1]='all': use none, text, vision or both"),
        ({"seeds": "[0,0]"}, "seeds=[0, 0]: needs values, each once"),
        ({"experts": "[0]"}, "experts[0]=0: must be at least 1"),
        ({"alignment": "taste"}, "alignment='taste': use all or criteria"),
        ({"parallel": 0}, "parallel=0: must be at least 1"),
        ({"prompts": "{single: -1}"}, "prompts.single=-1: must be at least 0"),
        ({"only": "knowledge_all/seed_0"}, "is not one of base, knowledge_none_experts_01/seed_1"),
        ({"base": "nowhere"}, "base=nowhere lacks base, tokenizer"),
    ],
)
def test_mistakes_in_the_recipe(world, processes, tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_suite(CONFIG, overrides(world, tmp_path, **change)).run()
    assert not processes.commands


def test_recipe_of_another_place(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe at .*nowhere.yml"):
        open_suite(CONFIG, overrides(world, tmp_path, training="nowhere.yml"))


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent died")
def test_jobs_end_with_the_run_that_started_them(tmp_path):
    """A run that is killed leaves no job behind that would hold its folder."""
    job = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (  # the module alone: its package would import Paddle
        f"import runpy, sys; from pathlib import Path; module = runpy.run_path({PROCESSES!r}); "
        f"module['run_process']([sys.executable, '-c', {job!r}], Path({str(tmp_path / 'log.txt')!r}), True)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "log.txt").exists() or not (tmp_path / "log.txt").read_text().strip():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        started = int((tmp_path / "log.txt").read_text())
    finally:
        run.kill()
        run.wait()
    while is_running(started):
        assert time.monotonic() < deadline, f"job {started} goes on without its run"
        time.sleep(0.1)
    assert run_process([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log.txt", False) == 7


def test_tables_by_hand():
    arms = [Arm("none", 1), Arm("both", 1)]
    recipe = SimpleNamespace(seeds=[0, 1], guidance_scales=[1.0, 2.0])
    numbers = {("none", 0): (10, 8), ("none", 1): (12, 6), ("both", 0): (7, 7), ("both", 1): (9, 5)}
    cells = [
        {
            "knowledge": name,
            "experts": 1,
            "seed": seed,
            "guidance_scale": scale,
            "fid": fid,
            "all": fid,
            "criteria": 0,
            "right": [int(name == "both"), seed],
        }
        for (name, seed), values in numbers.items()
        for scale, fid in zip(recipe.guidance_scales, values)
    ]
    none, both = table_of(arms, cells, recipe)
    assert [point["fid"]["mean"] for point in both["curve"]] == [8, 6]
    assert none["mean_over_scales"]["fid"]["values"] == [9, 9] and both["mean_over_scales"]["fid"]["mean"] == 7
    assert both["difference_to_first"]["fid"] == {"mean": -2.0, "interval": [-2.0, -2.0], "values": [-2.0, -2.0]}
    assert none["right"]["mean"] == 25 and both["right"]["mean"] == 75
    assert both["right_difference_to_first"]["mean"] == 50
    low, high = both["right_difference_to_first"]["interval"]
    assert -100 <= low < 50 < high == 100


def test_losses_by_hand():
    arms = [Arm("none", 1), Arm("none", 2)]
    numbers = {(1, 0): [1.0, 3.0], (1, 1): [2.0, 2.0], (2, 0): [0.5, 3.0], (2, 1): [1.0, 2.0]}
    measured = [
        {"knowledge": "none", "experts": experts, "seed": seed, "blocks": blocks}
        for (experts, seed), blocks in numbers.items()
    ]
    one, two = losses_of(arms, measured)
    assert [loss["values"] for loss in one["loss"]] == [[1, 2], [3, 2], [2, 2]]  # two blocks and their mean
    assert [change["values"] for change in two["percent_change_to_first"]] == [[-50, -50], [0, 0], [-12.5, -25]]
