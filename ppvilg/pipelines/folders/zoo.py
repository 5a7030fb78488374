"""Models that come with the package, by name."""

from __future__ import annotations

import importlib.resources
import os
import warnings
from pathlib import Path

ZOO = {"emoji64": "one to three emoji on plain backgrounds, 64x64, 64x96 and 96x64 pixels, Chinese prompts"}
INDEX = "model_index.json"


def zoo_folder(name: str) -> Path:
    """Folder of a zoo model inside the installed package; ValueError with the list of names for any other name."""
    if name not in ZOO:
        raise ValueError(f"{name!r} is not in the zoo: {', '.join(ZOO)}")
    folder = Path(str(importlib.resources.files("ppvilg"))) / "zoo" / name
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"zoo model {name!r} is not installed: {folder / INDEX} is missing. Reinstall ppvilg")
    return folder


def resolve(name_or_folder: str | os.PathLike) -> Path:
    """The pipeline folder that a path or zoo name stands for; FileNotFoundError if it is neither.

    A local pipeline folder with the name of a zoo model wins, with a warning; `zoo_folder(name)` is then the way to
    the zoo's. A folder of that name without model_index.json is no pipeline and does not count.
    """
    folder, name = Path(name_or_folder), os.fspath(name_or_folder)
    if (folder / INDEX).is_file():
        if name in ZOO:
            warnings.warn(
                f"{name!r} is a folder here and a zoo model: taking the folder {folder.resolve()}. Write './{name}' "
                f"for the folder, or ppvilg.pipelines.zoo_folder({name!r}) for the zoo model",
                stacklevel=3,
            )
        return folder
    if name in ZOO:
        return zoo_folder(name)
    if folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a pipeline folder: it has no {INDEX}")
    raise FileNotFoundError(f"{name!r} is neither a folder nor a model of the zoo ({', '.join(ZOO)})")
