"""Files that models are kept in: settings as JSON, weights as safetensors. Whole and what they should be, or named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .reading import LFS_POINTER, damage_of, read_text

_SETTINGS = {"model_index.json", "config.json", "model_config.json", "scheduler_config.json", "tokenizer_config.json",
             "special_tokens_map.json", "added_tokens.json"}  # fmt: skip
# Weights under names that the libraries give them, whole or in pieces.
_WEIGHTS = ("*.safetensors", "*.pdparams", "*.bin", "*.index.json")


def read_json(path: str | os.PathLike) -> dict:
    """The object in a file of JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a Git LFS pointer, empty, no JSON or no object; it names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(damage_of(path))
    try:
        text = read_text(path)
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if not text or text.startswith(LFS_POINTER.decode()):
            raise ValueError(damage_of(path)) from None
        raise ValueError(f"{path} cannot be read as JSON ({error}): copy or download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings (a JSON object): copy or download it again")
    return content


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return size == 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            return False


def check_model_files(folder: str | os.PathLike, given: Iterable[str] = ()) -> None:
    """Every file of settings below a folder can be read, every file of weights is whole, and none is missing.

    given: components that are not read from the folder. FileNotFoundError and ValueError name the first file at fault.
    """
    folder, given = Path(folder), set(given)
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] in given or not path.is_file():
            continue
        if path.name in _SETTINGS or path.name.endswith(".index.json"):
            read_json(path)
        elif path.suffix == ".safetensors" and not is_whole(path):
            raise ValueError(damage_of(path))
        elif path.name == "vocab.txt":
            _check_vocabulary(path)
        if path.name == "config.json" and not _has_weights(path.parent):
            raise FileNotFoundError(f"{path.parent} holds no weights (.safetensors): copy or download them again")


def _check_vocabulary(path: Path) -> None:
    text = read_text(path)
    if not text.strip() or text.startswith(LFS_POINTER.decode()):
        raise ValueError(damage_of(path))


def _has_weights(folder: Path) -> bool:
    """Whether a network's folder has weights, itself or, of a mixture, in folders of experts."""
    patterns = [*_WEIGHTS, "expert_*/config.json"]
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
