"""What ppvilg needs installed, and one clear message when it is not. Standard library and packaging; setup.py reads it.

paddlenlp 2.8.1 asks for tool-helpers, which nothing here imports and which has builds for Linux on x86-64 up to Python
3.12 alone. Elsewhere paddlenlp and ppdiffusers are installed without what they ask for, and ppvilg asks for what they
really import.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NamedTuple

VERSION = "0.1.0"  # of ppvilg itself
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
DRAWING = (
    Requirement("paddlenlp", "==2.8.1", "2.8.1", "2.7.2", None, "2.6 has no aistudio_utils, which ppdiffusers imports"),
    Requirement("ppdiffusers", "==0.29.0", "0.29.0", "0.24", None, "0.19 does not import beside paddlenlp 2.8"),
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
        "paddlenlp imports it; 5 needs a huggingface_hub that ppdiffusers cannot use, 2.18 fails on current pyarrow",
    ),
    Requirement("jieba", "==0.42.1", "0.42.1", None, None, "prompts are tagged with it"),
    Requirement("pip", "", "26.1", None, None, "paddlenlp imports it, and a virtual environment of uv lacks it"),
    Requirement("setuptools", "", "84.2.1", None, None, "Paddle imports it, and asks for it from Python 3.12 on"),
)
TRAINING = (
    Requirement("visualdl", "==2.5.3", "2.5.3", None, None, "training logs go through it"),
    Requirement("protobuf", ">=3.20.2,<5", "4.25.9", "3.20.2", "7", "7 refuses VisualDL's boolean hyperparameters"),
)
REQUIREMENTS = DRAWING + TRAINING

# Installed without what they ask for where NOT_ALL_WHEELS holds; BEHIND_THEM is what they import there.
WITHOUT_DEPENDENCIES = ("paddlenlp", "ppdiffusers")
ALL_WHEELS = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.13'"
NOT_ALL_WHEELS = "sys_platform != 'linux' or platform_machine != 'x86_64' or python_version >= '3.13'"
BEHIND_THEM = (
    "colorama",
    "colorlog",
    "dill",
    "einops",
    "fastapi",
    "jinja2",
    "ligo-segments",
    "multiprocess",
    "opencv-python",
    "regex",
    "rich",
    "sentencepiece",
    "seqeval",
)
# tool-helpers wants a numpy before 2 on 3.12; these are the last releases that go with it.
WITH_NUMPY_1 = ("numpy<2", "opencv-python<4.12", "pandas<3", "pyarrow<26")


def install_requires() -> list[str]:
    """What setup.py asks for besides Paddle itself."""
    listed = []
    for each in REQUIREMENTS:
        marker = f"; {ALL_WHEELS}" if each.name in WITHOUT_DEPENDENCIES else ""
        listed.append(each.name + each.install + marker)
    listed += [f"{name}; {NOT_ALL_WHEELS}" for name in BEHIND_THEM]
    listed += [f"{name}; {ALL_WHEELS} and python_version == '3.12'" for name in WITH_NUMPY_1]
    return listed


def installed_apart() -> list[str]:
    """What is installed with `--no-deps` after all others on this Python and machine: nothing where all wheels are."""
    if _all_wheels():
        return []
    return [each.name + each.install for each in REQUIREMENTS if each.name in WITHOUT_DEPENDENCIES]


def is_met(requirement: Requirement, found: str) -> bool:
    """Whether `found` is in the range that is not known to fail; 0.0.0 marks a development build and passes."""
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(Version(found).base_version)  # 3.2.0rc1 counts as 3.2
    except InvalidVersion:  # a build that somebody made: it is theirs to know
        return True
    if release == Version("0"):
        return True
    high_enough = requirement.lowest is None or release >= Version(requirement.lowest)
    return high_enough and (requirement.below is None or release < Version(requirement.below))


def find_problems(
    requirements: Sequence[Requirement] = REQUIREMENTS, version_of: Callable[[str], str] = metadata.version
) -> list[Problem]:
    """Every requirement, and Paddle, that the installed packages do not meet, by their metadata alone."""

    def find(requirement: Requirement) -> Problem:
        try:
            return Problem(requirement, version_of(requirement.name))
        except metadata.PackageNotFoundError:
            return Problem(requirement, None)

    paddle = find(PADDLE_GPU)
    candidates = [paddle if paddle.found else find(PADDLE), *map(find, requirements)]
    return [each for each in candidates if each.found is None or not is_met(each.requirement, each.found)]


def describe(problems: list[Problem]) -> str:
    """One message for all problems: found, needed, tested, why, and the commands that mend them together."""
    lines = ["ppvilg cannot run with the packages that are installed here:"]
    for requirement, found in problems:
        lines.append(
            f"  {requirement.name}: found {found or 'nothing'}, needs {requirement.works},"
            f" tested {requirement.tested} ({requirement.failure})"
        )
    commands = _commands(problems)
    lines += [f"{'This command mends' if len(commands) == 1 else 'These commands mend'} it:"]
    lines += [f"  {shlex.join(command)}" for command in commands]
    if {requirement.name for requirement, _ in problems} & {PADDLE.name, PADDLE_GPU.name}:
        lines.append(
            f"For NVIDIA GPUs install {PADDLE_GPU.name}{PADDLE_GPU.install} (not {PADDLE.name}) from Paddle's own index"
            f" for your CUDA version, e.g. --extra-index-url {PADDLE_GPU_INDEX}"
        )
    return "\n".join(lines)


def _commands(problems: list[Problem]) -> list[list[str]]:
    apart = not _all_wheels()
    names = {requirement.name for requirement, _ in problems}
    pip = [sys.executable, "-m", "pip", "install"]
    if "pip" in names:  # then this environment is uv's
        pip = ["uv", "pip", "install", "--python", sys.executable]
    wanted: dict[bool, list[str]] = {False: [], True: []}
    for each, _ in problems:
        wanted[apart and each.name in WITHOUT_DEPENDENCIES].append(each.name + each.install)
    commands = []
    if wanted[False]:
        index = ["--extra-index-url", PADDLE_GPU_INDEX] if PADDLE_GPU.name in names else []
        commands.append([*pip, *wanted[False], *index])
    if wanted[True]:
        commands.append([*pip, "--no-deps", *wanted[True]])
    return commands


def _all_wheels() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)


def check_versions(
    requirements: Sequence[Requirement] = REQUIREMENTS, version_of: Callable[[str], str] = metadata.version
) -> None:
    """Raise ImportError naming every missing package and every version known to fail, and how to mend it."""
    problems = find_problems(requirements, version_of)
    if problems:
        raise ImportError(describe(problems))
