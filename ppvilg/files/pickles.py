"""Pickles run code when they are read; weights come in safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

PICKLE_SUFFIXES = (".pdparams", ".pdopt", ".bin", ".pkl", ".pickle", ".ckpt", ".pt", ".pth", ".joblib")
_TWINS = {"model_state": "model", "pytorch_model": "model"}  # names of pickles whose safetensors have another


def refuse_pickles(folder: str | os.PathLike) -> None:
    """ValueError if weights below `folder` are a pickle that a loader of ppdiffusers or PaddleNLP would read.

    They take the safetensors file of the same name where there is one, and the files that an index of shards names.
    """
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix in PICKLE_SUFFIXES:
            stems = file.stem, _TWINS.get(file.stem, file.stem)
            if not any(file.with_name(f"{stem}.safetensors").is_file() for stem in stems):
                raise ValueError(f"{file} is a pickle, which can run code when it is read: convert it to safetensors")
        elif file.name.endswith(".index.json"):
            shards = json.loads(file.read_text(encoding="utf-8")).get("weight_map", {}).values()
            foreign = sorted(name for name in set(shards) if not str(name).endswith(".safetensors"))
            if foreign:
                raise ValueError(f"{file} names {foreign[0]}, which is no safetensors file: convert it to safetensors")
