"""What has to be equal for two numbers to be comparable: settings, versions and hashes, written beside every result."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ppvilg import __version__
from ppvilg.files import write_whole

from ..drawing.folder import read_json

PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "ppdiffusers", "numpy", "scipy", "Pillow")
RESULTS, REPORT = "results.json", "report.html"


def about(suite: str, recipe: Any, hashes: Mapping[str, str | None]) -> dict:
    """The head of results.json: suite, recipe (a dataclass), versions of what computed it, hashes of what it read."""
    versions = {"ppvilg": __version__, "python": platform.python_version()}
    versions |= {name: version for name, version in installed(PACKAGES).items() if version is not None}
    return {"suite": suite, "protocol": asdict(recipe), "versions": versions, "hashes": dict(hashes)}


def installed(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of the packages that are installed under these names."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def differences(found: Mapping, wanted: Mapping) -> str:
    """What differs between two protocols, `key found, not wanted; ...`; empty when nothing does."""
    found, wanted = (json.loads(json.dumps(dict(each))) for each in (found, wanted))
    different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    return "; ".join(f"{key} {found.get(key)!r}, not {wanted.get(key)!r}" for key in different)


def open_output(output: str | os.PathLike, suite: str) -> Path:
    """The folder of a suite's results, made if need be; ValueError when it holds results of another suite."""
    output = Path(output)
    results = output / RESULTS
    if results.is_file():
        try:
            other = read_json(results, "suite")["suite"]
        except ValueError as error:
            warnings.warn(f"{error}: it is written anew", stacklevel=3)
            other = suite
        if other != suite:
            raise ValueError(f"{output} holds results of the suite {other!r}, not {suite!r}; choose another output")
    output.mkdir(parents=True, exist_ok=True)
    return output


def write_results(output: Path, report: Mapping) -> None:
    """results.json, whole or not at all."""
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(output / RESULTS, text + "\n")
