"""What `ppvilg check` says of a machine: good, refused or wrong, and why; the long way is tried by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ppvilg.commands.check import line
from ppvilg.commands.check.cases import LOSS_TOLERANCE, Outcome, Workshop, cases, compare, settings_precision
from ppvilg.commands.check.machine import last_line
from ppvilg.config import load_config
from ppvilg.data import open_source

CPU = {"device": "cpu", "gpus": [], "float16": False, "bfloat16": False,
       "backends": {"cpu": None, "gpu": "this Paddle has no CUDA"}}  # fmt: skip


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path / "made", CPU, seconds=20.0)


def test_its_world_is_a_data_set_and_its_recipe_a_recipe(shop):
    recipe = load_config(shop.recipe, [f"output={shop.folder / 'out'}"])
    source = open_source(recipe.data.train)
    assert len(source) == 16 and source.read(3).objects[0].label == "方块"
    assert recipe.model.num_experts == 2 and all(recipe.train[stage].steps for stage in ("vae", "base", "experts"))


def test_losses_are_compared_with_those_in_float32():
    assert compare([1.0, 2.0], [1.0, 2.0004], 1e-3).verdict == "good"
    assert compare([1.0, 2.1], [1.0, 2.0], LOSS_TOLERANCE["float16"]) == Outcome(
        "wrong", "losses within 5 % of float32 (allowed: 2 %)")  # fmt: skip
    assert compare([1.0, np.nan], [1.0, 2.0], 0.1) == Outcome("wrong", "2 losses for 2, of which 1 are numbers")
    assert compare([1.0], [1.0, 2.0], 0.1).verdict == "wrong"
    assert settings_precision(("precision.level=O1", "precision.dtype=bfloat16")) == "bfloat16"


def test_what_a_machine_cannot_do_is_refused_and_not_tried(shop):
    outcomes = {name: case for name, case in cases(CPU) if "O1" in name or "O2" in name or name == "run on gpu"}
    assert len(outcomes) == 5
    for name, case in outcomes.items():
        assert case(shop).verdict == "refused", name
    assert outcomes["run on gpu"](shop).reason == "this Paddle has no CUDA"
    one_gpu = Workshop(shop.folder / "gpu", CPU | {"device": "gpu:0", "gpus": ["A100"]}, 20.0)
    found = dict(cases(one_gpu.machine))
    assert found["train on two ranks"](one_gpu) == Outcome("refused", "two ranks need two GPUs, and here is 1")
    assert found["train O2 float16"](one_gpu).reason == "Paddle says that this GPU has no float16"


@pytest.mark.parametrize("code, said", [
    ("import os; os.abort()", "SIGABRT"),
    ("import sys; sys.exit('error: no kernel')", "no kernel"),
    ("raise RuntimeError('out of shape')", "out of shape"),
    ("import sys; sys.exit(3)", "exit code 3"),
])  # fmt: skip
def test_a_process_that_dies_is_wrong_and_says_why(shop, code, said):
    assert said in shop.run("dies", sys.executable, "-c", code)
    assert shop.run("lives", sys.executable, "-c", "print(1)") is None


def test_what_hangs_is_ended(shop):
    shop.seconds = 0.5
    assert shop.run("hangs", sys.executable, "-c", "import time; time.sleep(60)") == "was not done after 0.5 seconds"


def test_rows_and_messages():
    assert line("draw", Outcome("good", "one picture")) == f"{'draw':<36}{'good':<9}one picture"
    assert last_line("Traceback\n  a\nValueError: the reason\n") == "the reason" and last_line("") == ""
