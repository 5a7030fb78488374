"""tools/*.sh with stand-ins for python and pip on PATH: what they choose, what they ask pip for, what they refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
# Answers what venv.sh asks an interpreter; its version and what pip is told are files beside it.
PYTHON = """#!/usr/bin/env bash
log=$FAKE_LOG
case "$*" in
    *version_info*) cat "$(dirname "$0")/version" ;;
    "-c import ensurepip, venv") [ ! -e "$(dirname "$0")/no-ensurepip" ] ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$(dirname "$0")/version" "$3/bin/" ;;
    "-m pip --version") [ ! -e "$(dirname "$0")/no-pip" ] ;;
    "-m ensurepip") rm "$(dirname "$0")/no-pip"; echo "ensurepip" >>"$log" ;;
    *installed_apart*) cat "$FAKE_APART" ;;
    "-m pip install"*) shift 3; echo "pip $* PIP_USER=${PIP_USER-unset}" >>"$log"; [ -z "${FAKE_PIP_FAILS:-}" ] ;;
    *find_problems*) exit "${FAKE_PROBLEMS:-0}" ;;
    *) echo "not expected: $*" >&2; exit 9 ;;
esac
"""


def write_python(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON)
    path.chmod(0o755)
    path.with_name("version").write_text(version + "\n")
    return path


@pytest.fixture
def clone(tmp_path):
    """A folder like a clone, with a space in its name."""
    folder = tmp_path / "a clone"
    shutil.copytree(TOOLS, folder / "tools")
    (folder / "ppvilg").mkdir()
    for name in ("setup.py", "ppvilg/_versions.py"):
        (folder / name).touch()
    (tmp_path / "apart").touch()
    return folder


@pytest.fixture
def run(clone, tmp_path):
    """run(NAME=value, ...): ensure_venv in that environment; (exit code, what it said, what pip was told)."""

    def start(command="source tools/venv.sh; ensure_venv cpu; echo python=$python", **variables):
        where = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "HOME": str(tmp_path / "home"),
            "FAKE_LOG": str(tmp_path / "log"),
            "FAKE_APART": str(tmp_path / "apart"),
        }
        (tmp_path / "log").write_text("")
        done = subprocess.run(
            ["bash", "-euc", command], cwd=clone, env={**where, **variables}, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout + done.stderr, (tmp_path / "log").read_text().splitlines()

    return start


def test_an_environment_is_made_once(run, tmp_path, clone):
    write_python(tmp_path / "bin" / "python3", "3.12")
    code, said, pip = run(PIP_USER="1")
    assert code == 0, said
    assert f"python={clone}/.venv/bin/python" in said
    assert pip == ["pip -qq --disable-pip-version-check --no-user -e .[cpu] PIP_USER=unset"]
    assert run()[2] == []
    (clone / "setup.py").write_text("# changed")
    assert len(run()[2]) == 1


def test_the_environment_may_have_another_name(run, tmp_path, clone):
    write_python(tmp_path / "bin" / "python3", "3.12")
    absolute = tmp_path / "big" / "disk"
    for name, folder in ((".venv-other", clone / ".venv-other"), (str(absolute), absolute)):
        code, said, _ = run(VENV=name)
        assert code == 0 and f"python={folder}/bin/python" in said and not (clone / ".venv").exists(), said


def test_packages_without_their_own_requirements_come_last(run, tmp_path):
    write_python(tmp_path / "bin" / "python3", "3.13")
    (tmp_path / "apart").write_text("paddlenlp==2.8.1 ppdiffusers==0.29.0\n")
    pip = run()[2]
    assert len(pip) == 2 and " --no-deps paddlenlp==2.8.1 ppdiffusers==0.29.0 " in pip[1]


def test_a_path_with_a_space_may_be_given(run, tmp_path):
    write_python(tmp_path / "bin" / "python3", "3.9")
    given = write_python(tmp_path / "my python" / "python3", "3.11")
    assert run(PYTHON=str(given))[0] == 0


def test_pyenv_is_searched(run, tmp_path):
    write_python(tmp_path / "bin" / "python3", "3.14")
    write_python(tmp_path / "home" / ".pyenv" / "versions" / "3.11.7" / "bin" / "python", "3.11")
    for name in ("python3.10", "python3.11", "python3.12", "python3.13"):
        write_python(tmp_path / "bin" / name, "3.14")
    assert run()[0] == 0


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PYTHON": "/none/python"}, "error: PYTHON=/none/python does not run"),
        ({}, "error: no Python 3.10 to 3.13 found"),
    ],
)
def test_no_python_that_fits(run, tmp_path, variables, said):
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        write_python(tmp_path / "bin" / name, "3.9")
    code, output, pip = run(**variables)
    assert code == 1 and said in output and not pip


def test_a_wrong_version_is_named(run, tmp_path):
    given = write_python(tmp_path / "bin" / "python3", "3.9")
    code, said, _ = run(PYTHON=str(given))
    assert code == 1 and f"PYTHON={given} is Python 3.9; Python 3.10 to 3.13 is needed" in said


@pytest.mark.parametrize("version", ["pypy 3.11", "3.13t", "3.14"])
def test_paddle_has_no_build_for_others(run, tmp_path, version):
    given = write_python(tmp_path / "bin" / "python3", version)
    code, said, _ = run(PYTHON=str(given))
    assert code == 1 and f"PYTHON={given} is Python {version}; Python 3.10 to 3.13 is needed" in said


def test_a_python_that_makes_no_environments_is_the_last_choice(run, tmp_path):
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        write_python(tmp_path / "bin" / name, "3.12")
    (tmp_path / "bin" / "no-ensurepip").touch()
    code, said, pip = run()
    assert code == 1 and "error: python3 cannot make virtual environments; on Debian" in said and not pip
    write_python(tmp_path / "home" / ".pyenv" / "versions" / "3.11.7" / "bin" / "python", "3.11")
    assert run()[0] == 0


@pytest.mark.parametrize("broken", ["link", "windows"])
def test_an_environment_that_does_not_run_is_told(run, tmp_path, clone, broken):
    """Its Python was removed, or it was made elsewhere: nobody's files are thrown away."""
    write_python(tmp_path / "bin" / "python3", "3.12")
    (clone / ".venv" / "bin").mkdir(parents=True)
    if broken == "link":
        (clone / ".venv" / "bin" / "python").symlink_to(tmp_path / "removed")
    else:
        (clone / ".venv" / "pyvenv.cfg").touch()
    code, said, pip = run()
    assert code == 1 and f"error: {clone}/.venv/bin/python does not run" in said and not pip


def test_variables_of_other_pythons_do_not_count(run, tmp_path):
    path = write_python(tmp_path / "bin" / "python3", "3.12")
    path.write_text(PYTHON.replace("log=", '[ -z "${PYTHONPATH-}${PYTHONHOME-}" ] || exit 7\nlog=', 1))
    code, said, _ = run("source tools/venv.sh; find_python; ensure_venv cpu", PYTHONPATH="/none", PYTHONHOME="/none")
    assert code == 0, said


def test_an_environment_of_another_python_is_left_alone(run, tmp_path, clone):
    write_python(clone / ".venv" / "bin" / "python", "3.9")
    code, said, pip = run()
    assert code == 1 and ".venv is of Python 3.9, 3.10 to 3.13 is needed" in said and not pip
    write_python(clone / ".venv" / "bin" / "python", "3.11")
    given = write_python(tmp_path / "bin" / "python3", "3.12")
    code, said, pip = run(PYTHON=str(given))
    assert code == 1 and ".venv is of Python 3.11 and PYTHON of 3.12" in said and not pip


def test_an_environment_without_pip_gets_it_and_keeps_the_rest(run, clone):
    write_python(clone / ".venv" / "bin" / "python", "3.11")
    (clone / ".venv" / "bin" / "no-pip").touch()
    (clone / ".venv" / "theirs").touch()
    code, said, log = run()
    assert code == 0, said
    assert log[0] == "ensurepip" and (clone / ".venv" / "theirs").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"https_proxy": "socks5://127.0.0.1:1"}, "https_proxy names a SOCKS proxy, which pip cannot use"),
        ({"https_proxy": "http://user:secret@127.0.0.1:1"}, "A proxy is set by https_proxy"),
        ({}, "run this script again\n"),
    ],
)
def test_a_failure_of_pip_says_what_may_be_the_matter(run, tmp_path, clone, variables, said):
    write_python(tmp_path / "bin" / "python3", "3.11")
    code, output, _ = run(FAKE_PIP_FAILS="1", **variables)
    assert code == 1 and said in output and "secret" not in output
    assert not list((clone / ".venv").glob("installed-*"))


def test_packages_that_do_not_fit_are_told(run, tmp_path, clone):
    write_python(tmp_path / "bin" / "python3", "3.11")
    code, output, _ = run(FAKE_PROBLEMS="1")
    assert code == 1 and "does not fit together" in output and not list((clone / ".venv").glob("installed-*"))


def test_a_small_disk_is_found_before_pip(run, tmp_path):
    write_python(tmp_path / "bin" / "python3", "3.11")
    df = tmp_path / "bin" / "df"
    df.write_text("#!/bin/sh\necho Filesystem; echo /dev/a 1 1 204800 1% /\n")
    df.chmod(0o755)
    code, output, pip = run()
    assert code == 1 and "has 200 MB free, the environment needs about 2600" in output and not pip
    df.write_text("#!/bin/sh\necho Filesystem; echo /dev/a 1 1 $([ $3 = /tmp ] && echo 409600 || echo 9999999) 1% /\n")
    for temporary in ("/tmp", "/none"):
        code, output, pip = run(TMPDIR=temporary)
        assert code == 1 and "/tmp has 400 MB free, pip needs about" in output and "TMPDIR" in output and not pip


def test_cores_are_counted_whatever_openmp_is_told(run):
    count = len(os.sched_getaffinity(0))
    assert run("source tools/venv.sh; cores", OMP_NUM_THREADS="1")[1].strip() == str(count)


@pytest.mark.parametrize("form", ["linked", "cdpath", "elsewhere"])
def test_scripts_find_the_clone(clone, tmp_path, form):
    """quickstart.sh goes to the root of the clone first: there is no Python, so it ends behind that."""
    script, variables = clone / "tools" / "quickstart.sh", {"PATH": "/usr/bin:/bin", "PYTHON": "/none/python"}
    if form == "linked":
        (tmp_path / "start").symlink_to(script)
        script = tmp_path / "start"
    if form == "cdpath":
        (tmp_path / "tools").mkdir()
        variables["CDPATH"] = str(tmp_path)
    at = clone if form == "cdpath" else tmp_path
    typed = "tools/quickstart.sh" if form == "cdpath" else str(script)
    done = subprocess.run(["bash", typed], cwd=at, env=variables, capture_output=True, text=True)
    assert "PYTHON=/none/python does not run" in done.stderr and "No such file" not in done.stderr


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_another_shell_is_told_so(clone, name):
    dash = shutil.which("dash")
    if dash is None:
        pytest.skip("dash is not installed")
    done = subprocess.run([dash, str(clone / "tools" / name)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: this is a script for bash: bash ")
