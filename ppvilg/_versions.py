"""What ppvilg needs installed, and one clear message when it is not. Standard library only; setup.py reads it too."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

PADDLE_GPU_INDEX = "https://www.paddlepaddle.org.cn/packages/stable/cu126/"


class Requirement(NamedTuple):
    """A package that breaks ppvilg outside [lowest, below); `reason` says how it was seen to break."""

    name: str
    tested: str
    reason: str
    lowest: str | None = None
    below: str | None = None

    @property
    def specifier(self) -> str:
        """The range as pip writes it, e.g. `>=0.19.2,<0.26`."""
        bounds = [f">={self.lowest}"] if self.lowest else []
        return ",".join(bounds + ([f"<{self.below}"] if self.below else []))


class Problem(NamedTuple):
    """One requirement that is not met; `found` is None when the package is missing."""

    requirement: Requirement
    found: str | None


PADDLE_REASON = "compiled parts of older releases fail to import beside current wheels"
PADDLE = Requirement("paddlepaddle", "3.3.1", PADDLE_REASON, lowest="3.2")
PADDLE_GPU = Requirement("paddlepaddle-gpu", "3.3.1", PADDLE_REASON, lowest="3.2")

REQUIREMENTS = (
    Requirement("paddlenlp", "2.8.1", "the ERNIE text encoder of this series is the tested one", "2.8.1", "2.9"),
    Requirement("ppdiffusers", "0.29.0", "the UNet and pipelines of this series are the tested ones", "0.29.0", "0.30"),
    Requirement("visualdl", "2.5.3", "older releases need protobuf 3", "2.5.3", "3"),
    Requirement("huggingface_hub", "0.25.2", "paddlenlp imports names that 0.26 removed", "0.22", "0.26"),
    Requirement("aistudio-sdk", "0.2.6", "paddlenlp imports aistudio_sdk.hub.download, gone in 0.3", "0.1.3", "0.3"),
    Requirement("datasets", "3.6.0", "paddlenlp imports names that 4 removed", "2.0", "4"),
    Requirement("protobuf", "4.25.9", "visualdl add_hparams fails on 5 and later", "3.20.2", "5"),
    Requirement("jieba", "0.42.1", "the part-of-speech tags of this release are the trained ones", "0.42.1", "0.43"),
)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the head of a version: `3.3.0rc1` -> (3, 3), trailing zeros dropped."""
    head = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in head.group().split(".")] if head else [0]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_met(requirement: Requirement, found: str) -> bool:
    """Whether `found` is in the range; 0.0.0 marks a build from Paddle's development branch and passes."""
    numbers = release(found)
    if not numbers:
        return True
    high_enough = requirement.lowest is None or numbers >= release(requirement.lowest)
    return high_enough and (requirement.below is None or numbers < release(requirement.below))


def _find(name: str, version_of: Callable[[str], str]) -> str | None:
    try:
        return version_of(name)
    except metadata.PackageNotFoundError:
        return None


def find_problems(version_of: Callable[[str], str] = metadata.version) -> list[Problem]:
    """Every requirement that the installed packages do not meet, by their metadata alone (nothing is imported)."""
    gpu = _find(PADDLE_GPU.name, version_of)
    paddle = Problem(PADDLE_GPU, gpu) if gpu is not None else Problem(PADDLE, _find(PADDLE.name, version_of))
    candidates = [paddle] + [Problem(requirement, _find(requirement.name, version_of)) for requirement in REQUIREMENTS]
    return [each for each in candidates if each.found is None or not is_met(each.requirement, each.found)]


def describe(problems: list[Problem]) -> str:
    """One message for all problems: found, needed, tested, why, and the pip command that mends them together."""
    lines = ["ppvilg cannot run with the packages installed here:"]
    for requirement, found in problems:
        lines.append(
            f"  {requirement.name}: found {found or 'nothing'}, needs {requirement.specifier}"
            f" (tested with {requirement.tested}): {requirement.reason}"
        )
    wanted = [f"{requirement.name}{requirement.specifier}" for requirement, _ in problems]
    command = [sys.executable, "-m", "pip", "install", *wanted]
    names = {requirement.name for requirement, _ in problems}
    if PADDLE_GPU.name in names:
        command += ["--extra-index-url", PADDLE_GPU_INDEX]
    lines += ["This command mends it:", "  " + shlex.join(command)]
    if PADDLE.name in names:
        lines.append(
            f"For an NVIDIA GPU, put {PADDLE_GPU.name}{PADDLE_GPU.specifier} in its place and add"
            f" --extra-index-url {PADDLE_GPU_INDEX} (choose the index of your CUDA version)."
        )
    return "\n".join(lines)


def check_versions(version_of: Callable[[str], str] = metadata.version) -> None:
    """Raise ImportError naming every installed or missing package that is known to fail, and how to mend it."""
    problems = find_problems(version_of)
    if problems:
        raise ImportError(describe(problems))
