"""Weights that are in files: read, or said in one sentence what is wrong with them."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ppvilg.config import ConfigError
from ppvilg.files import damage_of, is_whole


def read_weights(key: str, place: str | Path, load: Callable):
    """Weights from files. ConfigError says what is wrong with them."""
    try:
        return load()
    except Exception as error:  # libraries answer missing and damaged files with many types of exception
        raise ConfigError(f"{key}={place}: {_reason(Path(place), error)}") from error


def _reason(folder: Path, error: Exception) -> str:
    """Why a folder of weights cannot be read: a damaged file in it, or what the library says."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*.safetensors")):
            if not is_whole(path):
                return damage_of(path)
        if not any(folder.glob("*.json")):
            return "there is no config.json in this folder: give the folder of one component"
    elif not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2):
        return "there is no such folder"
    return f"cannot be read ({sentence(error)}): give a folder of this component, or a name that can be downloaded"


def sentence(error: Exception) -> str:
    """The line of an error that says what is the matter; Paddle puts a stack above and a summary below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition("Error:")[2].strip() for line in lines if "Error:" in line]
    text = next(filter(None, told), None) or (lines[-1] if lines else "") or type(error).__name__
    return text.removesuffix("(at") if len(text) < 300 else f"{text[:300]} ..."
