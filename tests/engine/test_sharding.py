"""Sharding stage 2: gradients go to their owners during the backward pass, and the result is that of one process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import paddle
import pytest
from engine_tiny import ROOT

SCRIPT = Path(__file__).with_name("sharding_rank.py")
_specification = importlib.util.spec_from_file_location("sharding_rank", SCRIPT)
rank_script = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(rank_script)
LAYER = 4 * (rank_script.WIDTH**2 + rank_script.WIDTH)  # bytes


def start_ranks(output: Path, ranks: int, expert: int, sharding: int, ways: list[str]) -> list[list[dict]]:
    """What every rank noted, by way."""
    output.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(ranks), str(expert), str(sharding), str(output), *ways]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=output,
                          env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    return [[dict(np.load(output / f"{number}-{rank}.npz")) for rank in range(ranks)] for number in range(len(ways))]


@pytest.fixture(scope="module")
def one_process():
    """Case -> what one process notes."""
    return {case: rank_script.train(1, True, *case.split(":"))
            for case in ("plain", "unused", "crossed", "unused:lion", "unused:adafactor")}


ONE_ROW = ["groups:1:1:unused", "groups:2:1:unused", "groups:1:0:plain", "groups:2:0:plain", "groups:2:1:plain",
           "groups:2:1:crossed"]
TWO_ROWS = ["world:2:1:unused", "world:2:1:crossed"]
OTHERS = [f"{way}:unused:{name}" for way in ("groups:1:1", "world:2:1") for name in ("lion", "adafactor")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Way -> what four ranks note: two groups of two shards each, or one world of data 2 x sharding 2."""
    ways = [*ONE_ROW, *TWO_ROWS, *OTHERS]
    return dict(zip(ways, start_ranks(tmp_path_factory.mktemp("ranks") / "out", 4, 2, 2, ways)))


def assert_same(found: dict, expected: dict) -> None:
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5, atol=0)
    assert len(set(expected["loss"])) == rank_script.STEPS, "it learns"
    names = [name for name in expected if name.startswith("weight/")]
    assert len(names) == 2 * (rank_script.DEPTH + 2)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("way", [*ONE_ROW, *TWO_ROWS, *OTHERS])
def test_shards_learn_what_one_process_does(ranks, one_process, way):
    """Two passes a step; also with a layer that some ranks do not use, and with another order on each of them."""
    for found in ranks[way]:
        assert_same(found, one_process[":".join(way.split(":")[3:])])


@pytest.mark.parametrize("way, apart", [("groups:2:0:plain", 0), ("groups:2:1:plain", 0), ("groups:2:1:unused", LAYER)])
def test_a_rank_holds_its_own_gradients_and_a_bucket(ranks, way, apart):
    """A bucket is full with the weight that fills it; what only this rank has waits `apart` until all are done."""
    weight, everything = 4 * rank_script.WIDTH**2, (rank_script.DEPTH + 2) * LAYER
    for found, stage_one in zip(ranks[way], ranks["groups:1:1:unused"]):
        assert found["owned"][0] == everything / 2
        assert found["held"].max() < everything / 2 + rank_script.BUCKET + weight + apart
        assert found["after"].max() <= everything / 2 and found["after"].min() > 0.4 * everything
        assert stage_one["held"].max() >= (rank_script.DEPTH + 1) * LAYER, "stage 1 holds all of them"


def test_every_pass_sends_every_gradient_once(ranks):
    """In case plain one layer more is used in even steps than in odd ones; no message is padded."""
    used = LAYER * sum(rank_script.DEPTH + (step % 2 == 0) for step in range(rank_script.STEPS))
    for stage, compare, passes in ((1, 0, 1), (2, 0, rank_script.PASSES), (2, 1, rank_script.PASSES)):
        for found in ranks[f"groups:{stage}:{compare}:plain"]:
            assert found["gradients"] == passes * used and found["weights"] == used


def test_what_a_collective_raises_during_the_backward_pass_is_told():
    """Paddle turns an exception of a hook into a SystemError without its reason."""
    from ppvilg.engine.parallel.sharding import GradientShardingOptimizer, _hook

    def lost(finished):
        raise RuntimeError("the link is gone")

    optimizer, layer = GradientShardingOptimizer.__new__(GradientShardingOptimizer), paddle.nn.Linear(2, 2)
    optimizer.__dict__.update(_origin_parameter_list=layer.parameters(), _waiting={}, _enough=1, _failure=None,
                              _round=lost)
    for number, parameter in enumerate(layer.parameters()):
        parameter._register_backward_hook(_hook(weakref.ref(optimizer), number))
    layer(paddle.ones([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="the link is gone"):
        optimizer.finish_pass(last=True)
