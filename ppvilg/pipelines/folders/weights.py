"""The files of a pipeline folder: weights that are whole, float16 releases, and JSON that names no place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np


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
