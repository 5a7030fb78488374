"""Suites by name, and their recipes: a flat YAML file and `key=value` overrides -> one typed dataclass.

To add a suite: a dataclass with `suite: str = "<name>"` and `output: str = MISSING`, a class that follows `Suite`, and
one line in SUITES. `-c` with `suite: <name>` in the file then runs it.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Recipe = TypeVar("Recipe")


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
    name, origin = _read(path).get("suite"), str(path)
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "suite":
            name, origin = value, f"-o {override}"
    if name is None:
        raise ValueError(f"{path}: no value for suite; write suite: and one of {', '.join(SUITES)}")
    if name not in SUITES:
        raise ValueError(f"{origin}: suite {name!r} is not one of {', '.join(SUITES)}")
    module = importlib.import_module(SUITES[name].module)
    return getattr(module, SUITES[name].suite)(load_recipe(getattr(module, SUITES[name].recipe), path, overrides))


def load_recipe(schema: type[Recipe], path: str | os.PathLike | None, overrides: Sequence[str] = ()) -> Recipe:
    """An instance of the dataclass `schema`, from its defaults, a YAML file and overrides, in this order.

    ValueError names the file or override and the key: not declared in `schema`, of the wrong type, without a value, or
    refused by the dataclass itself. FileNotFoundError: no such file.
    """
    config = OmegaConf.structured(schema)
    if path is not None:
        config = _merge(config, _read(path), str(path))
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise ValueError(f"override {override!r} is not of the form key=value")
        config = _merge(config, OmegaConf.from_dotlist([override]), f"-o {override}")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{path}: no value for {', '.join(missing)}; set it in the file or with -o {missing[0]}=...")
    return schema(**{field.name: OmegaConf.to_container(config)[field.name] for field in fields(schema)})


def _read(path: str | os.PathLike) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not OmegaConf.is_dict(node):
        raise ValueError(f"{path}: a recipe is a mapping of keys")
    return node


def _merge(config: Any, node: Any, origin: str) -> Any:
    _check_keys(config, node, origin, "")
    try:
        return OmegaConf.merge(config, node)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ValueError(f"{origin}: {key}: {str(error).splitlines()[0]}") from error


def _check_keys(declared: Any, given: Any, origin: str, prefix: str) -> None:
    known = list(declared.keys())
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"{origin}: unknown key {prefix + str(key)!r}; {hint}")
        children = [config._get_node(key) for config in (declared, given)]
        if all(OmegaConf.is_dict(child) for child in children):
            _check_keys(*children, origin, f"{prefix}{key}.")
