"""Training as it is really started: other processes, killed, interrupted, several ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from engine_tiny import ROOT, differences, load_tool, newest

# Plain data parallelism: nothing random inside the networks, Adam's sign-like first steps made smooth, and no norms
# over so few numbers that they amplify rounding.
COMPARABLE = ("model.unet.config.norm_num_groups=1", "train.base.learning_rate=5e-4",
              "train.experts.learning_rate=5e-4", "model.text_encoder.config.hidden_dropout_prob=0.0",
              "model.text_encoder.config.attention_probs_dropout_prob=0.0", "train.base.epsilon=1e-3",
              "train.experts.epsilon=1e-3")


@pytest.fixture
def command(world):
    """command(output, "a.b=value", ...) -> arguments of tools/train.py."""

    def build(output, *overrides):
        places = [f"output={output}", f"data.train={world[0]}", f"data.validation={world[1]}"]
        options = [part for override in [*places, *overrides] for part in ("-o", override)]
        return [str(ROOT / "tools" / "train.py"), "-c", str(world[2]), *options]

    return build


def start(arguments, log):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment,
                            cwd=log.name.rsplit("/", 1)[0])


def test_killed_in_the_middle_the_same_command_goes_on(command, finished, tmp_path):
    output = tmp_path / "out"
    with open(tmp_path / "log.txt", "w+") as log:
        process = start(command(output), log)
        while process.poll() is None and not (output / "checkpoints" / "base" / "step_00000002").exists():
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
        assert not (output / "experts").exists()
        assert start(command(output), log).wait() == 0, (tmp_path / "log.txt").read_text()
    assert f"done: {output / 'experts'}" in (tmp_path / "log.txt").read_text()
    assert differences(output, finished) == []


def test_two_ranks_learn_what_one_does(command, make_run, finished, tmp_path):
    """The same batches, noise and timesteps cut in two: a few steps of base and experts."""
    one, two = tmp_path / "one", tmp_path / "two"
    for output in (one, two):
        for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
            shutil.copytree(finished / name, output / name)
    make_run(one, *COMPARABLE).run()
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(tmp_path / "ranks")]
    with open(tmp_path / "log.txt", "w+") as log:
        assert start([*launcher, *command(two, *COMPARABLE)], log).wait() == 0, (tmp_path / "log.txt").read_text()
    for stage in ("base", "experts"):
        single, double = newest(one, stage), newest(two, stage)
        assert single["progress"]["next_step"] == double["progress"]["next_step"]
        for part in ("net", "ema"):
            for name, value in single[part].items():
                np.testing.assert_allclose(double[part][name], value, rtol=0, atol=1e-5, err_msg=f"{stage} {name}")
    assert "step/s" not in (tmp_path / "ranks" / "workerlog.1").read_text(), "progress is shown by the main rank alone"


def test_shards_and_expert_groups_learn_what_one_process_does(command, make_run, finished, tmp_path):
    """Four ranks: base as data 2 x sharding 2, then expert 2 x sharding 2; the checkpoint goes on in one process."""
    forms = (*COMPARABLE, "model.num_experts=4", "train.experts.decay=constant")
    one, four = tmp_path / "one", tmp_path / "four"
    for output in (one, four):
        for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
            shutil.copytree(finished / name, output / name)
    make_run(one, *forms).run()
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", "4", "--log_dir", str(tmp_path / "ranks")]
    axes = ("distributed.expert=2", "distributed.sharding=2", f"train.experts.start={one / 'base'}")
    with open(tmp_path / "log.txt", "w+") as log:
        assert start([*launcher, *command(four, *forms, *axes)], log).wait() == 0, (tmp_path / "log.txt").read_text()

    assert_close(four, one, "base")
    assert_close(four, one, "experts")
    files = sorted(path.name for path in (four / "checkpoints" / "experts" / "step_00000007").glob("*.safetensors"))
    assert files == [f"{name}-{part:03d}.safetensors" for name in ("ema", "net", "optimizer") for part in range(4)]
    assert len(list((four / "experts" / "unet").glob("expert_*/*.safetensors"))) == 4
    for rank in range(4):
        note = json.loads((four / "logs" / f"traffic_experts_{rank:03d}.json").read_text())
        group = [rank // 2 * 2, rank // 2 * 2 + 1]
        assert note["steps_taken"] == (4 if rank < 2 else 3) and note["layout"]["ranks"] == group
        sent = {name: amount for name, amount in note["traffic"].items() if name.startswith(("gradients/", "weights/"))}
        assert sum(amount["bytes"] for amount in sent.values()) > 0
        assert all(set(amount["ranks"]) <= set(group) for amount in sent.values()), sent
    longer = "train.experts.steps=9"  # four ranks' checkpoint, one process
    for output in (one, four):
        make_run(output, *forms, longer, f"train.experts.start={one / 'base'}").run()
    assert_close(four, one, "experts")


# Two ranks of tools/train.py, twice, forked from one process that has imported the libraries; see parallel.py.
FORKED_RANKS = """
import shutil, sys
sys.path.insert(0, {folder!r})
import parallel, paddlenlp.transformers, ppdiffusers, visualdl
for number, arguments in enumerate({runs!r}):
    endpoints = [f"127.0.0.1:{{port}}" for port in parallel.free_ports(2)]
    ranks = [parallel.fork_rank(rank, endpoints, f"rank-{{number}}-{{rank}}.txt", arguments[1:]) for rank in range(2)]
    if any(parallel.World.wait_for(ranks)):
        sys.exit(1)
    if number == 0:
        shutil.copytree({finished!r}, {copied!r})
"""


def test_sharded_gradients_learn_what_one_process_does(command, make_run, finished, tmp_path):
    """Sharding stage 2 with recompute and two passes a step; its checkpoint goes on in one process and at stage 1."""
    forms = (*COMPARABLE, "train.base.accumulation=2", "train.experts.accumulation=2", "train.experts.decay=constant",
             "train.experts.log_every=1")
    one, two, back = tmp_path / "one", tmp_path / "two", tmp_path / "back"
    for output in (one, two):
        for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
            shutil.copytree(finished / name, output / name)
    make_run(one, *forms).run()
    start_base = f"train.experts.start={one / 'base'}"
    shards = ("distributed.sharding=2", "distributed.bucket_megabytes=0.02", start_base)
    runs = [command(two, *forms, *shards, "distributed.sharding_stage=2", "recompute=true"),
            command(back, *forms, *shards, "train.experts.steps=9")]
    script = FORKED_RANKS.format(folder=str(ROOT / "tests" / "benchmarks"), runs=runs, finished=str(two),
                                 copied=str(back))
    with open(tmp_path / "log.txt", "w+") as log:
        assert start(["-c", script], log).wait() == 0, [path.read_text() for path in tmp_path.glob("*.txt")]
    for stage, log_every in (("base", 2), ("experts", 1)):
        note = json.loads((two / "logs" / f"traffic_{stage}_000.json").read_text())
        assert note["traffic"]["agreement/sharding"]["calls"] > 7 * note["steps_taken"], "several buckets in every pass"
        ours, theirs = logged_losses(two, stage), logged_losses(one, stage)
        assert len(theirs) >= note["steps_taken"] // log_every
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert_close(two, one, stage)
    for output in (one, two):  # two: two ranks' checkpoint, one process
        make_run(output, *forms, start_base, "train.experts.steps=9").run()
    assert_close(two, one, "experts")
    assert_close(back, one, "experts")


def test_asked_to_stop_it_checkpoints_and_the_same_command_goes_on(command, finished, tmp_path):
    """SIGTERM to the ranks' processes, as schedulers send it: exit code 75 and a checkpoint of that very step."""
    output, slow = tmp_path / "out", ("train.base.checkpoint_every=1000", "train.base.steps=4000")
    for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
        shutil.copytree(finished / name, output / name)
    with open(tmp_path / "log.txt", "w+") as log:
        process = start(command(output, *slow), log)
        steps = output / "logs" / "base.jsonl"
        while process.poll() is None and not (steps.exists() and '"loss"' in steps.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75, (tmp_path / "log.txt").read_text()
    (folder,) = (output / "checkpoints" / "base").iterdir()
    step = int(folder.name.removeprefix("step_"))
    assert 0 < step < 4000 and step % 1000 and newest(output, "base")["progress"]["next_step"] == step
    assert f"stage base stopped after step {step}" in (tmp_path / "log.txt").read_text()


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

    store = CheckpointStore(output / "checkpoints" / stage, "")
    objects = store.load(store.folders()[-1].name)[1]
    return {f"{kind}/{name}": value for kind, arrays in objects.items() for name, value in arrays.items()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent death signal is Linux's")
def test_ranks_end_with_their_launcher():
    from ppvilg.engine import distributed

    read, write = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        rank = os.fork()
        if rank == 0:
            distributed._end_with_launcher()
            os.write(write, f"{os.getpid()}\n".encode())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    rank = int(os.read(read, 20))
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(rank):
        time.sleep(0.05)
    assert not _runs(rank)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- what the tool says


@pytest.fixture
def tool(monkeypatch, world, tmp_path):
    """tools/train.py with arguments for the tiny world; its `train` is for the test to replace."""
    module = load_tool("train")
    arguments = ["train.py", "-c", str(world[2]), "-o", f"output={tmp_path}", "-o", f"data.train={world[0]}"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_how_to_go_on(tool, monkeypatch, capfd, number):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(tool, "train", lambda recipe: signal.raise_signal(number))
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as left:
        tool.main()
    assert left.value.code == 128 + number
    assert "run the same command again" in capfd.readouterr().err


def test_wrong_recipes_end_with_one_line(tool, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "-o", "train.base.stepz=3"])
    with pytest.raises(SystemExit, match="error: -o train.base.stepz=3: unknown key train.base.stepz; did you mean"):
        tool.main()
