"""Several ranks against one process: data parallel, sharded, in expert groups; and checkpoints carried between them.

All of them share one reference, and all are forked from one process that has imported the libraries; the launcher
itself starts them in tests/benchmarks/parallel.py --launcher.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from engine_tiny import ROOT, start
from PIL import Image

# Nothing random inside the networks, Adam's sign-like first steps made smooth, and no norms over so few numbers that
# they amplify rounding.
FORMS = ("model.unet.config.norm_num_groups=1", "model.text_encoder.config.hidden_dropout_prob=0.0",
         "model.text_encoder.config.attention_probs_dropout_prob=0.0", "model.num_experts=4",
         *(f"train.{stage}.{setting}" for stage in ("base", "experts")
           for setting in ("learning_rate=5e-4", "epsilon=1e-3", "decay=constant", "log_every=1")),
         "sample.prompts=[红色的车]")
LONGER = "train.experts.steps=9"
SHARDS = ("distributed.sharding=2", "distributed.bucket_megabytes=0.02")

# [number of ranks, arguments of tools/train.py, folder to copy first or null, its copy] one after the other, all but
# the first once the base that they share is there; see parallel.py for how ranks are forked.
FORKED_RANKS = """
import json, os, shutil, sys, time
sys.path.insert(0, {folder!r})
import parallel, paddlenlp.transformers, ppdiffusers, visualdl
for number, (count, arguments, source, copy) in enumerate(json.loads({runs!r})):
    while number and not os.path.isdir({base!r}):
        time.sleep(0.05)
    if source:
        shutil.copytree(source, copy)
    endpoints = [f"127.0.0.1:{{port}}" for port in parallel.free_ports(count)]
    logs = [f"rank-{{number}}-{{rank}}.txt" for rank in range(count)]
    if any(parallel.World.wait_for([parallel.fork_rank(rank, endpoints, logs[rank], arguments[1:])
                                    for rank in range(count)])):
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def outputs(command, make_run, finished, tmp_path_factory):
    """Outputs after 7 steps of stage experts: `one` process, `two` ranks, `groups` of experts on four ranks, two
    `shards` of gradients; and `back` of two shards that went on from a copy of `shards` to step 9.
    """
    root = tmp_path_factory.mktemp("ranks")
    found = SimpleNamespace(**{name: root / name for name in ("one", "two", "groups", "shards", "back")}, root=root)
    for output in (found.one, found.two, found.groups, found.shards):
        for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
            shutil.copytree(finished / name, output / name)
    with open(root / "forked.txt", "w+") as forked:
        same_base = f"train.experts.start={found.one / 'base'}"
        accumulated = ("train.base.accumulation=2", "train.experts.accumulation=2")
        runs = [
            (2, command(found.two, *FORMS), None, None),
            (4, command(found.groups, *FORMS, same_base, "distributed.expert=2", "distributed.sharding=2"), None, None),
            (2, command(found.shards, *FORMS, same_base, *SHARDS, *accumulated, "distributed.sharding_stage=2",
                        "recompute=true"), None, None),
            (2, command(found.back, *FORMS, same_base, *SHARDS, *accumulated, LONGER), str(found.shards),
             str(found.back)),
        ]
        script = FORKED_RANKS.format(folder=str(ROOT / "tests" / "benchmarks"), runs=json.dumps(runs),
                                     base=str(found.one / "base"))  # fmt: skip
        by_fork = start(["-c", script], forked)
        try:
            make_run(found.one, *FORMS).run()
            code = by_fork.wait()
        finally:
            by_fork.kill()
    assert code == 0, "".join(path.read_text() for path in root.rglob("*.txt"))
    return found


@pytest.fixture(scope="module")
def gone_on(outputs, make_run, tmp_path_factory):
    """continued(name, "a.b=value", ...) -> a copy of an output that one process took on to step 9."""
    folder, made = tmp_path_factory.mktemp("gone_on"), {}

    def go_on(name, *overrides):
        if name not in made:
            made[name] = folder / name
            shutil.copytree(getattr(outputs, name), made[name])
            start_base = f"train.experts.start={outputs.one / 'base'}"
            make_run(made[name], *FORMS, start_base, LONGER, "sample.prompts=[]", *overrides).run()
        return made[name]

    return go_on


@pytest.mark.parametrize("name", ["two", "groups", "shards"])
@pytest.mark.parametrize("stage", ["base", "experts"])
def test_ranks_learn_what_one_process_does(outputs, name, stage):
    """The same batches, noise and timesteps cut into parts; a few steps of base and experts."""
    assert_close(getattr(outputs, name), outputs.one, stage)
    if name != "groups":  # where a step is that of one group, and its loss is logged later
        ours, theirs = logged_losses(getattr(outputs, name), stage), logged_losses(outputs.one, stage)
        assert len(theirs) >= 4
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("name", ["two", "groups", "shards"])
@pytest.mark.parametrize("stage", ["base", "experts"])
def test_ranks_draw_what_one_process_does(outputs, name, stage):
    """One rank where it has all experts, all of them where a group has a part."""
    folders = [output / "logs" / "samples" for output in (outputs.one, getattr(outputs, name))]
    drawn = [sorted(folder.glob(f"{stage}_*.png")) for folder in folders]
    assert drawn[0] and [path.name for path in drawn[0]] == [path.name for path in drawn[1]]
    for one, other in zip(*drawn):
        pictures = [np.asarray(Image.open(path), int) for path in (one, other)]
        assert pictures[0].std() > 1 and np.abs(pictures[0] - pictures[1]).max() <= 2


def test_progress_is_shown_by_the_main_rank_alone(outputs):
    logs = [(outputs.root / f"rank-0-{rank}.txt").read_text() for rank in range(2)]
    assert "step/s" not in logs[1] and "step/s" in logs[0]


def test_every_expert_group_keeps_to_itself(outputs):
    output = outputs.groups
    files = sorted(path.name for path in (output / "checkpoints" / "experts" / "step_00000007").glob("*.safetensors"))
    assert files == [f"{name}-{part:03d}.safetensors" for name in ("ema", "net", "optimizer") for part in range(4)]
    assert len(list((output / "experts" / "unet").glob("expert_*/*.safetensors"))) == 4
    for rank in range(4):
        note = json.loads((output / "logs" / f"traffic_experts_{rank:03d}.json").read_text())
        group = [rank // 2 * 2, rank // 2 * 2 + 1]
        assert note["steps_taken"] == (4 if rank < 2 else 3) and note["layout"]["ranks"] == group
        sent = {name: amount for name, amount in note["traffic"].items() if name.startswith(("gradients/", "weights/"))}
        assert sum(amount["bytes"] for amount in sent.values()) > 0
        assert all(set(amount["ranks"]) <= set(group) for amount in sent.values()), sent


def test_gradients_are_sent_during_the_backward_pass(outputs):
    for stage in ("base", "experts"):
        note = json.loads((outputs.shards / "logs" / f"traffic_{stage}_000.json").read_text())
        assert note["traffic"]["agreement/sharding"]["calls"] > 7 * note["steps_taken"], "several buckets in every pass"


@pytest.mark.parametrize("name", ["groups", "shards", "back"])
def test_checkpoints_of_ranks_go_on_elsewhere(outputs, gone_on, name):
    """Those of four ranks and of two shards in one process, and those of stage 2 at stage 1."""
    output = outputs.back if name == "back" else gone_on(name, *(
        ["train.base.accumulation=2", "train.experts.accumulation=2"] if name == "shards" else []))
    assert_close(output, gone_on("one"), "experts")


def logged_losses(output, stage) -> list[float]:
    lines = map(json.loads, (output / "logs" / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def assert_close(one, other, stage):
    left, right = everything(one, stage), everything(other, stage)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if not name.startswith("optimizer"):
            np.testing.assert_allclose(value, right[name], rtol=0, atol=1e-5, err_msg=f"{stage} {name}")


def everything(output, stage) -> dict[str, np.ndarray]:
    from ppvilg.engine import CheckpointStore

    store = CheckpointStore(output / "checkpoints" / stage)
    objects = store.load(store.folders()[-1].name)[1]
    return {f"{kind}/{name}": value for kind, arrays in objects.items() for name, value in arrays.items()}
