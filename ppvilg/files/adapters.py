"""Files of adapters: where one is in a folder, and what it says of itself, read without Paddle."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .reading import damage_of

ADAPTER_ENTRY = "ppvilg_adapter"  # of a safetensors file's metadata, in adapters of this package
ADAPTER_NAMES = (
    "adapter.safetensors",
    "pytorch_lora_weights.safetensors",
    "paddle_lora_weights.safetensors",
    "adapter_model.safetensors",
)


def adapter_file(path: str | os.PathLike) -> Path:
    """The file itself, or the one in a folder. FileNotFoundError, ValueError: there is none, or more than one."""
    path = Path(path)
    if path.is_dir():
        there = [path / name for name in ADAPTER_NAMES if (path / name).is_file()]
        if len(there) != 1:
            found = f"holds {' and '.join(file.name for file in there)}" if there else "holds no adapter"
            raise FileNotFoundError(f"{path} {found}: give the path of one file, such as {path / ADAPTER_NAMES[0]}")
        return there[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give an adapter's safetensors file, or the folder that holds it")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pdparams"):
        raise ValueError(f"{path} is a pickle, which can run code: convert it to safetensors where it was made")
    return path


def adapter_entry(file: Path) -> dict:
    """What a file says of itself: settings, alphas, words; {} in one of another program. ValueError: it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as content:
            entry = json.loads((content.metadata() or {}).get(ADAPTER_ENTRY, "{}"))
    except SafetensorError:
        raise ValueError(damage_of(file)) from None
    except ValueError as error:
        raise ValueError(f"{file}: its entry {ADAPTER_ENTRY!r} cannot be read ({error}): copy the file again") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: its entry {ADAPTER_ENTRY!r} is no JSON object: copy the file again")
    return entry
