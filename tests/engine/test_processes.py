"""Training as it is really started: other processes, killed, interrupted, asked to stop."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

import pytest
from engine_tiny import differences, load_tool, newest, start

from ppvilg import commands


def test_killed_in_the_middle_the_same_command_goes_on(command, finished, tmp_path):
    output = tmp_path / "out"
    for name in ("vae", "cache", "tokenizer", "checkpoints/vae"):
        shutil.copytree(finished / name, output / name)
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

    # Called rather than raised: pytest's faulthandler gives handlers a stack that is too small on some processors.
    monkeypatch.setattr(tool, "train", lambda *_: signal.getsignal(number)(number, None))
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as left:
        tool.main()
    assert left.value.code == 128 + number
    assert "run the same command again" in capfd.readouterr().err


def test_wrong_recipes_end_with_one_line(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "-o", "train.base.stepz=3"])
    assert commands.main(["train", *sys.argv[1:]]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: -o train.base.stepz=3: unknown key train.base.stepz; did you mean")
