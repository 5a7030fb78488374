"""Suites by name.

To add a suite: a frozen dataclass with `suite: str = "<name>"` and `output: str = MISSING`, a class that follows
`Suite`, and one line in SUITES. `-c` with `suite: <name>` in the file then runs it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from omegaconf import OmegaConf

from ppvilg.config import ConfigError, load, read_with_bases


class Suite(Protocol):
    """One evaluation: everything it writes goes into `output`; run again to go on after a stop."""

    output: Path

    def run(self) -> dict:
        """Draw what is missing, measure, write results.json and report.html; returns what results.json holds."""

    def summary(self, report: dict) -> str:
        """What `run` returned, as Markdown for the terminal."""


class SuiteClasses(NamedTuple):
    """Where a suite is: imported when it is asked for."""

    module: str
    recipe: str
    suite: str


SUITES = {
    "objects": SuiteClasses("ppvilg.evaluation.suites.objects", "ObjectsRecipe", "ObjectsSuite"),
    "lesson": SuiteClasses("ppvilg.evaluation.suites.lesson", "LessonRecipe", "LessonSuite"),
    "vilg300": SuiteClasses("ppvilg.evaluation.suites.vilg300", "ViLG300Recipe", "ViLG300Suite"),
    "ablation": SuiteClasses("ppvilg.evaluation.ablation.suite", "AblationRecipe", "AblationSuite"),
    "fid": SuiteClasses("ppvilg.evaluation.suites.fid", "FidRecipe", "FidSuite"),
    "clipscore": SuiteClasses("ppvilg.evaluation.suites.clip_score", "ClipScoreRecipe", "ClipScoreSuite"),
    "side_by_side": SuiteClasses("ppvilg.evaluation.human.side_by_side", "SideBySideRecipe", "SideBySideSuite"),
}


def open_suite(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Suite:
    """The suite that the key `suite` of a recipe names, ready to run.

    ValueError names the file or override and the key at fault, before anything heavy; FileNotFoundError: no such file.
    """
    files = [(file, OmegaConf.to_container(node)) for file, node in read_with_bases(Path(path))]
    named = [(file, content["suite"]) for file, content in files if content.get("suite") is not None]
    named += [(f"-o {each}", each.partition("=")[2]) for each in overrides if each.startswith("suite=")]
    if not named:
        raise ConfigError(f"{path}: no value for suite; write suite: and one of {', '.join(SUITES)}")
    origin, name = named[-1]
    if not isinstance(name, str) or name not in SUITES:
        raise ConfigError(f"{origin}: suite {name!r} is not one of {', '.join(SUITES)}")
    module = importlib.import_module(SUITES[name].module)
    return getattr(module, SUITES[name].suite)(load(getattr(module, SUITES[name].recipe), path, overrides))
