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
    """What to install of a package, what was tested, and outside which [lowest, below) it is known to fail, and how."""

    name: str
    install: str
    tested: str
    lowest: str | None
    below: str | None
    failure: str

    @property
    def works(self) -> str:
        """The range that is not known to fail, e.g. `>=0.23,<0.26`."""
        bounds = (f">={self.lowest}" if self.lowest else "", f"<{self.below}" if self.below else "")
        return ",".join(filter(None, bounds)) or "any version"


class Problem(NamedTuple):
    """One requirement that is not met; `found` is None when the package is missing."""

    requirement: Requirement
    found: str | None


OLD_PADDLE = "2.x lacks what ppdiffusers uses (paddle.float8_e4m3fn), and support begins at 3.2"
PADDLE = Requirement("paddlepaddle", "==3.3.1", "3.3.1", "3.2", None, OLD_PADDLE)
PADDLE_GPU = Requirement("paddlepaddle-gpu", ">=3.2", "3.3.1", "3.2", None, OLD_PADDLE)

# Seen one at a time beside the tested versions of the others. `install` is narrower where only one series was tested.
REQUIREMENTS = (
    Requirement("paddlenlp", "==2.8.1", "2.8.1", "2.7.2", None, "2.6 has no aistudio_utils, which ppdiffusers imports"),
    Requirement("ppdiffusers", "==0.29.0", "0.29.0", "0.24", None, "0.19 does not import beside paddlenlp 2.8"),
    Requirement("visualdl", "==2.5.3", "2.5.3", None, None, "training logs go through it"),
    Requirement(
        "huggingface_hub",
        ">=0.23,<0.26",
        "0.25.2",
        "0.23",
        "0.26",
        "0.26 removed cached_download and 0.22 lacks _chmod_and_move, which ppdiffusers imports",
    ),
    Requirement("aistudio-sdk", ">=0.1.3,<0.3", "0.2.6", None, "0.3", "0.3 has no hub.download, which paddlenlp needs"),
    Requirement(
        "datasets",
        ">=2.21,<4",
        "3.6.0",
        "2.21",
        "5",
        "5 needs a huggingface_hub that ppdiffusers cannot use, 2.18 fails on current pyarrow",
    ),
    Requirement("protobuf", ">=3.20.2,<5", "4.25.9", "3.20.2", "7", "7 refuses VisualDL's boolean hyperparameters"),
    Requirement("jieba", "==0.42.1", "0.42.1", None, None, "prompts are tagged with it"),
)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the head of a version without trailing zeros: `3.3.0rc1` -> (3, 3), `0.0.0` -> ()."""
    head = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in head.group().split(".")] if head else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_met(requirement: Requirement, found: str) -> bool:
    """Whether `found` is in the range that is not known to fail; 0.0.0 marks a development build and passes."""
    numbers = release(found)
    if not numbers:
        return True
    high_enough = requirement.lowest is None or numbers >= release(requirement.lowest)
    return high_enough and (requirement.below is None or numbers < release(requirement.below))


def find_problems(version_of: Callable[[str], str] = metadata.version) -> list[Problem]:
    """Every requirement that the installed packages do not meet, by their metadata alone (nothing is imported)."""

    def find(requirement: Requirement) -> Problem:
        try:
            return Problem(requirement, version_of(requirement.name))
        except metadata.PackageNotFoundError:
            return Problem(requirement, None)

    paddle = find(PADDLE_GPU)
    candidates = [paddle if paddle.found else find(PADDLE), *map(find, REQUIREMENTS)]
    return [each for each in candidates if each.found is None or not is_met(each.requirement, each.found)]


def describe(problems: list[Problem]) -> str:
    """One message for all problems: found, needed, tested, why, and the pip command that mends them together."""
    lines = ["ppvilg cannot run with the packages that are installed here:"]
    for requirement, found in problems:
        lines.append(
            f"  {requirement.name}: found {found or 'nothing'}, needs {requirement.works},"
            f" tested {requirement.tested} ({requirement.failure})"
        )
    names = {requirement.name for requirement, _ in problems}
    command = [sys.executable, "-m", "pip", "install", *(each.name + each.install for each, _ in problems)]
    if PADDLE_GPU.name in names:
        command += ["--extra-index-url", PADDLE_GPU_INDEX]
    lines += ["This command mends it:", "  " + shlex.join(command)]
    if names & {PADDLE.name, PADDLE_GPU.name}:
        lines.append(
            f"For NVIDIA GPUs install {PADDLE_GPU.name}{PADDLE_GPU.install} (not {PADDLE.name}) from Paddle's own index"
            f" for your CUDA version, e.g. --extra-index-url {PADDLE_GPU_INDEX}"
        )
    return "\n".join(lines)


def check_versions(version_of: Callable[[str], str] = metadata.version) -> None:
    """Raise ImportError naming every missing package and every version known to fail, and how to mend it."""
    problems = find_problems(version_of)
    if problems:
        raise ImportError(describe(problems))
