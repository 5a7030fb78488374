"""The supervisor: starts again, leaves nobody behind, passes signals on to the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and a child subreaper")


def supervise(*arguments, **options):
    command = [sys.executable, "-m", "ppvilg.supervise", "--wait", "0", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)


def script(path: Path, source: str) -> list[str]:
    path.write_text(source, encoding="utf-8")
    return ["--", sys.executable, str(path)]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


FAILS_TWICE = """
import os, pathlib, signal, subprocess, sys
tries = pathlib.Path(sys.argv[0]).with_suffix(".tries")
count = len(tries.read_text()) if tries.exists() else 0
tries.write_text("x" * (count + 1))
if count < 2:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open(tries.with_suffix(".left"), "a") as file:
        file.write(f"{left.pid}\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_command_is_started_again_and_leaves_nobody(tmp_path):
    process = supervise(*script(tmp_path / "fails.py", FAILS_TWICE))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert (tmp_path / "fails.tries").read_text() == "xxx"
    assert errors.count("ended with -9") == 2
    left = [int(line) for line in (tmp_path / "fails.left").read_text().split()]
    assert len(left) == 2 and not any(map(runs, left))


def test_it_gives_up_with_the_last_exit_code(tmp_path):
    process = supervise("--restarts", 2, *script(tmp_path / "seven.py", "import sys; sys.exit(7)"))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 7 and errors.count("ended with 7") == 3 and "giving up" in errors


def test_a_command_that_checkpointed_is_not_started_again(tmp_path):
    process = supervise(*script(tmp_path / "stopped.py", "import sys; sys.exit(75)"))
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 75


# A launcher that would die of SIGTERM at once, with two ranks that take their leave.
LAUNCHER = """
import os, pathlib, subprocess, sys
if "PADDLE_TRAINER_ID" in os.environ:
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    pathlib.Path(f"{sys.argv[0]}.{os.environ['PADDLE_TRAINER_ID']}").touch()
    time.sleep(600)
ranks = [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "PADDLE_TRAINER_ID": str(rank)})
         for rank in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_the_ranks(tmp_path, number):
    process = supervise(*script(tmp_path / "launcher.py", LAUNCHER))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tmp_path.glob("launcher.py.?"))) < 2:
        time.sleep(0.02)
    os.kill(process.pid, number)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75, errors
    assert "asking 2 process(es)" in errors


def test_it_does_not_load_the_libraries():
    source = "import sys, ppvilg.supervise; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "ppvilg.supervise" in loaded.split()
    assert not {"paddle", "paddlenlp", "ppdiffusers", "numpy"} & set(loaded.split())


def test_a_process_that_is_gone_is_no_error_and_any_other_reason_is_one():
    from ppvilg import supervise

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    supervise._send(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    supervise._send(process.pid, signal.SIGKILL)
    assert not runs(process.pid)
    with pytest.raises(OSError, match="Invalid argument"):
        supervise._send(os.getpid(), 9999)
