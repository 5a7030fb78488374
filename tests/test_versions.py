"""`import ppvilg` on a wrong set of packages: one message that names each of them and the command that mends all."""

from __future__ import annotations

import builtins
import importlib
import shlex
import sys
from importlib.metadata import PackageNotFoundError

import pytest

import ppvilg
from ppvilg import _versions
from ppvilg._versions import PADDLE, REQUIREMENTS, check_versions, find_problems, is_met, release

TESTED = {each.name: each.tested for each in (PADDLE, *REQUIREMENTS)}


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
        check_versions(metadata_of(changes))
    return str(caught.value)


def pip_arguments(message: str) -> list[str]:
    """What the suggested command gives to `pip install`."""
    (line,) = (line for line in message.splitlines() if " -m pip install " in line)
    words = shlex.split(line)
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    return words[4:]


def test_the_tested_set_and_what_is_installed_here_pass():
    check_versions(metadata_of({}))
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
    assert find_problems(metadata_of(gpu_only)) == []
    message = message_for({**gpu_only, "paddlepaddle-gpu": "2.6.2"})
    assert pip_arguments(message) == ["paddlepaddle-gpu>=3.2", "--extra-index-url", _versions.PADDLE_GPU_INDEX]
    assert "paddlepaddle: found" not in message


def test_one_message_and_one_command_for_all_problems():
    message = message_for({"paddlenlp": None, "huggingface_hub": "1.0.1", "protobuf": "7.35.0"})
    assert pip_arguments(message) == ["paddlenlp==2.8.1", "huggingface_hub>=0.23,<0.26", "protobuf>=3.20.2,<5"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.26.0", (0, 26)), ("3.3.0rc1", (3, 3)), ("2.13.0+cpu", (2, 13)), ("0.0.0", ()), ("unknown", ())],
)
def test_release_numbers(text, numbers):
    assert release(text) == numbers


def test_bounds_compare_by_number_and_a_development_build_passes():
    (hub,) = (each for each in REQUIREMENTS if each.name == "huggingface_hub")
    assert is_met(hub, "0.25.2") and is_met(hub, "0.23")
    assert not is_met(hub, "0.26") and not is_met(hub, "0.100.0") and not is_met(hub, "0.9")
    assert is_met(PADDLE, "0.0.0") and is_met(PADDLE, "3.10.0") and not is_met(PADDLE, "3.1.1")


@pytest.mark.parametrize("requirement", [PADDLE, *REQUIREMENTS], ids=lambda each: each.name)
def test_the_tested_version_is_one_that_setup_installs(requirement):
    assert is_met(requirement, requirement.tested)
    for bound in requirement.install.split(","):
        sign, version = bound[:2].rstrip("0123456789"), bound.lstrip("<>=")
        tested, other = release(requirement.tested), release(version)
        assert {"==": tested == other, ">=": tested >= other, "<": tested < other}[sign], bound


def test_import_reports_before_anything_heavy_is_imported(monkeypatch):
    """The package's own import raises the message, with no paddle import tried before it."""
    real_import, asked = builtins.__import__, []

    def watching_import(name, *arguments, **keywords):
        asked.append(name.split(".")[0])
        return real_import(name, *arguments, **keywords)

    wrong = metadata_of({"aistudio-sdk": "0.3.9"})
    monkeypatch.setattr(_versions, "check_versions", lambda: check_versions(wrong))
    monkeypatch.setattr(builtins, "__import__", watching_import)
    with pytest.raises(ImportError, match="aistudio-sdk: found 0.3.9"):
        importlib.reload(ppvilg)
    assert not {"paddle", "paddlenlp", "ppdiffusers"} & set(asked)
