"""The console script: the table of commands, its help, and the doors that lead to it."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ppvilg.commands import COMMANDS, SHOW_TRACEBACK, Command, main

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def test_help_lists_every_command_in_one_line(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.endswith(command.help) and len(line) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ppvilg {name} ")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["infr"], "no command 'infr'; did you mean infer?"),
        (["draw"], "there are infer, "),
        ([], "the following arguments are required: COMMAND"),
        (["prepare", "--ouptut", "x"], "ppvilg prepare: error:"),
    ],
)
def test_mistakes_are_said_in_one_line(typed, said, capsys):
    with pytest.raises(SystemExit) as left:
        main(typed)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_doors_from_outside_lead_to_the_same_commands(tmp_path):
    """tools/*.py from another folder and without an install, `python -m` of the package and of the evaluation."""
    doors = [[str(ROOT / "tools" / name)] for name in TOOLS]
    doors += [["-m", "ppvilg", "infer"], ["-m", "ppvilg.evaluation"], ["-m", "ppvilg.supervise"]]
    started = [
        subprocess.Popen(
            [sys.executable, *door, "--help"],
            cwd=ROOT if door[0] == "-m" else tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for door in doors
    ]
    for door, process in zip(doors, started):
        assert process.communicate(timeout=120)[0].startswith("usage: ppvilg "), door
        assert process.returncode == 0, door


@pytest.fixture
def failing(monkeypatch):
    """failing(error): the command `infer` raises it."""
    module = types.ModuleType("ppvilg.commands.failing")
    monkeypatch.setitem(sys.modules, "ppvilg.commands.failing", module)
    monkeypatch.setitem(COMMANDS, "infer", Command("ppvilg.commands.failing", ""))

    def fail(error: BaseException) -> None:
        def main(argv):
            raise error

        module.main = main

    return fail


PADDLE_OUT_OF_MEMORY = "\n\n----\nC++ Traceback\n----\n\nResourceExhaustedError: \n\nOut of memory. 145 GB\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("--steps 0: must be at least 1"), 1, "error: --steps 0: must be at least 1"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "No such file or directory: 'a.txt'"),
        (OSError(28, "No space left on device", "a.png"), 1, "No space left on device: 'a.png'"),
        (ImportError("visualdl: found nothing"), 1, "error: visualdl: found nothing"),
        (MemoryError(PADDLE_OUT_OF_MEMORY), 1, "error: out of memory (ResourceExhaustedError:"),
        (MemoryError(), 1, "error: out of memory (MemoryError)"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_went_wrong_is_one_sentence_and_an_exit_code(failing, capsys, monkeypatch, error, code, said):
    failing(error)
    monkeypatch.delenv(SHOW_TRACEBACK, raising=False)
    assert main(["infer"]) == code
    errors = capsys.readouterr().err
    assert said in errors and "Traceback" not in errors and errors.count("\n") == 1


def test_the_environment_can_ask_for_the_traceback(failing, monkeypatch):
    failing(ValueError("wrong"))
    monkeypatch.setenv(SHOW_TRACEBACK, "1")
    with pytest.raises(ValueError, match="wrong"):
        main(["infer"])


def test_a_faulty_command_is_not_hidden(failing):
    failing(AttributeError("a mistake of ours"))
    with pytest.raises(AttributeError):
        main(["infer"])


ECHO = """
import sys, types
from ppvilg import commands
module = types.ModuleType("echo")
module.main = lambda argv: print(*argv, sys.getfilesystemencoding())
sys.modules["echo"] = module
commands.COMMANDS["echo"] = commands.Command("echo", "")
commands.start("echo")
"""


def test_chinese_arguments_survive_a_locale_without_utf8(tmp_path):
    script = tmp_path / "échо.py"
    script.write_text(ECHO, encoding="utf-8")
    where = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "白色背景上的一只猫"]
    done = subprocess.run(command, env=where, capture_output=True, check=True)
    assert done.stdout.decode("utf-8") == "白色背景上的一只猫 utf-8\n"
