"""Models that come with the package, by name, and the function that writes such a release folder."""

from __future__ import annotations

import importlib.resources
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppvilg.files import damage_of

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


def check_weights(folder: Path, given: Mapping) -> None:
    """ValueError names the first weight file of a pipeline folder that is a Git LFS pointer, empty or cut off.

    given: components that are not read from the folder.
    """
    for file in sorted(folder.rglob("*.safetensors")):
        if file.relative_to(folder).parts[0] not in given and not _is_whole(file):
            raise ValueError(damage_of(file))


def _is_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with open(file, "rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        size = file.stat().st_size
        if len(start) < 8 or 8 + length > size:
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


def forget_paths(folder: Path) -> None:
    """Removes from the JSON files of a pipeline folder or bundle where the libraries say parts were loaded from."""
    patterns = ("model_index.json", "*/config.json", "*/tokenizer_config.json")
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        content = json.loads(file.read_text(encoding="utf-8"))
        if any(content.pop(key, None) is not None for key in ("_name_or_path", "special_tokens_map_file")):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_fp16(pipeline, folder: str | os.PathLike) -> int:
    """Saves a pipeline with every weight in float16 safetensors; returns the bytes of the weight files.

    The files load to float32. ValueError names a weight that float16 cannot hold. The pipeline itself stays as it is.
    """
    folder = Path(folder)
    pipeline.save_pretrained(folder)
    files = sorted(folder.rglob("*.safetensors"))
    for file in files:
        _cast_file(file, np.float16)
    return sum(file.stat().st_size for file in files)


def _cast_file(file: Path, dtype: type) -> None:
    """Rewrites a safetensors file with its float32 weights in `dtype`, keeping its metadata."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(str(file), framework="np") as opened:
        metadata = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, value in weights.items():
        if value.dtype == np.float32:
            largest = np.abs(value).max(initial=0)
            if not largest <= np.finfo(dtype).max:
                raise ValueError(f"{file}: {name} reaches {largest:.3g}, more than {dtype.__name__} holds")
            weights[name] = value.astype(dtype)
    whole = file.with_suffix(".tmp")
    save_file(weights, str(whole), metadata=metadata)
    whole.replace(file)
