"""The console script: the table of commands, its help, and the doors that lead to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ppvilg.commands import COMMANDS, main

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
