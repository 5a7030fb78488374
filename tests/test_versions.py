"""A wrong set of packages: one message that names each and the commands that mend all, where they are needed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ppvilg
from ppvilg import _versions
from ppvilg._versions import DRAWING, PADDLE, REQUIREMENTS, check_versions, find_problems, install_requires, is_met

ROOT = Path(__file__).resolve().parents[1]

TESTED = {each.name: each.tested for each in (PADDLE, *REQUIREMENTS)}


@pytest.fixture(autouse=True)
def together(monkeypatch):
    """Messages as where every wheel is, whatever Python the tests run on."""
    monkeypatch.setattr(_versions, "_all_wheels", lambda: True)


def metadata_of(changes: dict[str, str | None]):
    """A stand-in for importlib.metadata.version: the tested set with `changes` (None = not installed)."""
    installed = {**TESTED, **changes}

    def version(name: str) -> str:
        if installed.get(name) is None:
            raise PackageNotFoundError(name)
        return installed[name]

    return version


def message_for(changes: dict[str, str | None]) -> str:
    with pytest.raises(ImportError) as caught:
        check_versions(REQUIREMENTS, metadata_of(changes))
    return str(caught.value)


def pip_arguments(message: str) -> list[str]:
    """What the suggested command gives to `pip install`."""
    (line,) = (line for line in message.splitlines() if " -m pip install " in line)
    words = shlex.split(line)
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    return words[4:]


@pytest.mark.parametrize(
    "command",
    [
        "infer --prompt 一只猫",
        "evaluate -c evaluation/objects",
        "export -m emoji64 --output exported",
        "prove exported",
        "train-detector -c evaluation/detector",
        "serve",
    ],
)
def test_every_command_says_what_is_missing(monkeypatch, tmp_path, capsys, command):
    """In a new environment of Python 3.13 that pip alone filled; before the libraries say what they miss."""
    from ppvilg import _versions, commands

    monkeypatch.chdir(tmp_path)
    version_of = metadata_of({"paddlenlp": None, "setuptools": None})
    monkeypatch.setattr(_versions, "find_problems", lambda requirements, _: find_problems(requirements, version_of))
    assert commands.main(command.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ppvilg cannot run with the packages that are installed here:")
    assert "paddlenlp==2.8.1" in said and "setuptools" in said and not list(tmp_path.iterdir())


def test_the_tested_set_and_what_is_installed_here_pass():
    check_versions(REQUIREMENTS, metadata_of({}))
    check_versions()


@pytest.mark.parametrize(
    ("name", "found", "mended_by"),
    [
        ("paddlepaddle", "2.6.2", "paddlepaddle==3.3.1"),
        ("paddlenlp", "2.6.1", "paddlenlp==2.8.1"),
        ("ppdiffusers", "0.19.4", "ppdiffusers==0.29.0"),
        ("huggingface_hub", "0.22.2", "huggingface_hub>=0.23,<0.26"),
        ("huggingface_hub", "0.26.0", "huggingface_hub>=0.23,<0.26"),
        ("huggingface_hub", "1.0.1", "huggingface_hub>=0.23,<0.26"),
        ("aistudio-sdk", "0.3.0", "aistudio-sdk>=0.1.3,<0.3"),
        ("datasets", "2.18.0", "datasets>=2.21,<4"),
        ("datasets", "5.2.0", "datasets>=2.21,<4"),
        ("protobuf", "7.35.0", "protobuf>=3.20.2,<5"),
        ("visualdl", None, "visualdl==2.5.3"),
        ("jieba", None, "jieba==0.42.1"),
    ],
)
def test_each_known_failure(name, found, mended_by):
    message = message_for({name: found})
    tested = TESTED[name]
    (line,) = (line for line in message.splitlines() if line.startswith(f"  {name}: "))
    assert f"found {found or 'nothing'}" in line
    assert f"tested {tested}" in line
    assert pip_arguments(message) == [mended_by]


def test_no_paddle_at_all_says_how_to_install_either():
    message = message_for({"paddlepaddle": None})
    assert "paddlepaddle: found nothing" in message
    assert pip_arguments(message) == ["paddlepaddle==3.3.1"]
    assert "paddlepaddle-gpu>=3.2" in message
    assert _versions.PADDLE_GPU_INDEX in message


def test_paddle_for_gpus_counts_and_is_mended_from_its_own_index():
    gpu_only = {"paddlepaddle": None, "paddlepaddle-gpu": "3.2.1"}
    assert find_problems(REQUIREMENTS, metadata_of(gpu_only)) == []
    message = message_for({**gpu_only, "paddlepaddle-gpu": "2.6.2"})
    assert pip_arguments(message) == ["paddlepaddle-gpu>=3.2", "--extra-index-url", _versions.PADDLE_GPU_INDEX]
    assert "paddlepaddle: found" not in message


def test_one_message_and_one_command_for_all_problems():
    message = message_for({"paddlenlp": None, "huggingface_hub": "1.0.1", "protobuf": "7.35.0"})
    assert pip_arguments(message) == ["paddlenlp==2.8.1", "huggingface_hub>=0.23,<0.26", "protobuf>=3.20.2,<5"]


def test_bounds_compare_by_number_and_a_development_build_passes():
    (hub,) = (each for each in REQUIREMENTS if each.name == "huggingface_hub")
    assert is_met(hub, "0.25.2") and is_met(hub, "0.23")
    assert not is_met(hub, "0.26") and not is_met(hub, "0.100.0") and not is_met(hub, "0.9")
    assert is_met(PADDLE, "0.0.0") and is_met(PADDLE, "3.10.0") and not is_met(PADDLE, "3.1.1")
    assert is_met(PADDLE, "3.2.0rc1") and is_met(PADDLE, "3.3.0+cpu") and is_met(PADDLE, "our-own-build")


@pytest.mark.parametrize("requirement", [PADDLE, *REQUIREMENTS], ids=lambda each: each.name)
def test_the_tested_version_is_one_that_setup_installs(requirement):
    assert is_met(requirement, requirement.tested)
    assert SpecifierSet(requirement.install).contains(requirement.tested)


@pytest.fixture
def apart(together, monkeypatch):
    """As on Python 3.13, where paddlenlp and ppdiffusers are installed without what they ask for."""
    monkeypatch.setattr(_versions, "_all_wheels", lambda: False)


def commands_of(message: str) -> list[list[str]]:
    return [shlex.split(line) for line in message.splitlines() if " pip install " in line]


def test_on_later_pythons_paddlenlp_comes_without_what_it_asks_for(apart):
    message = message_for({"paddlenlp": None, "ppdiffusers": None, "jieba": None})
    pip = [sys.executable, "-m", "pip", "install"]
    assert "These commands mend it:" in message
    assert commands_of(message) == [
        [*pip, "jieba==0.42.1"],
        [*pip, "--no-deps", "paddlenlp==2.8.1", "ppdiffusers==0.29.0"],
    ]


def test_an_environment_of_uv_is_mended_by_uv():
    uv = ["uv", "pip", "install", "--python", sys.executable]
    assert commands_of(message_for({"pip": None, "jieba": None})) == [[*uv, "jieba==0.42.1", "pip"]]


def test_drawing_needs_nothing_that_only_training_needs():
    check_versions(DRAWING, metadata_of({"visualdl": None, "protobuf": "7.35.0"}))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize(
    "platform", [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
)
def test_setup_asks_for_paddlenlp_exactly_where_what_it_asks_for_exists(python, platform):
    where = {"python_version": python, "sys_platform": platform[0], "platform_machine": platform[1]}
    listed = [Requirement(each) for each in install_requires()]
    names = {each.name for each in listed if each.marker is None or each.marker.evaluate(where)}
    all_wheels = platform == ("linux", "x86_64") and python != "3.13"
    assert ("paddlenlp" in names, "ppdiffusers" in names) == (all_wheels, all_wheels)
    assert ("sentencepiece" in names) == (not all_wheels)
    assert ("pandas" in names) == (all_wheels and python == "3.12")
    assert {"pip", "jieba", "datasets", "visualdl"} <= names


WRONG = """
import sys
from importlib import metadata
real = metadata.version
def version(name):
    if name == "aistudio-sdk":
        return "0.3.9"
    return real(name)
metadata.version = version
import ppvilg, ppvilg.data, ppvilg.config
print("light")
heavy = {"paddle", "paddlenlp", "ppdiffusers"}
for room in ("models", "pipelines", "diffusion", "inference", "engine"):
    try:
        __import__(f"ppvilg.{room}")
    except ImportError as error:
        assert "aistudio-sdk: found 0.3.9" in str(error), error
        print(room)
    assert not heavy & set(sys.modules)
"""


def test_rooms_that_compute_report_before_anything_heavy_is_imported_and_others_work():
    done = subprocess.run([sys.executable, "-c", WRONG], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["light", "models", "pipelines", "diffusion", "inference", "engine"]


def test_the_version_is_that_of_the_module_that_setup_reads():
    assert ppvilg.__version__ == _versions.VERSION
