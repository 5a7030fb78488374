"""Recipes and prompts that come with ppvilg: `configs` of a clone, `ppvilg/configs` of an installed package."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """The folder of recipes that comes with this ppvilg."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_recipes() -> list[str]:
    """Names of the recipes in it, as they may be typed: `emoji64`, `evaluation/objects`."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yml"))


def find_shipped(name: str | os.PathLike, beside: str | os.PathLike = ".") -> Path:
    """The file of this name in the folder `beside`, else the one that comes with ppvilg, else the path as it was typed.

    `emoji64`, `emoji64.yml` and `configs/emoji64.yml` are the same recipe wherever ppvilg is installed; a file of the
    user's wins.
    """
    typed = Path(beside) / name
    if typed.is_file():
        return typed
    asked = Path(name)
    if not asked.is_absolute() and ".." not in asked.parts:
        inner = Path(*asked.parts[1:]) if asked.parts[:1] == ("configs",) else asked
        for candidate in (shipped_folder() / inner, shipped_folder() / f"{inner}.yml"):
            if candidate.is_file():
                return candidate
    return typed
