"""Folders of experts on disk: each a stock ppdiffusers UNet2DConditionModel, read, checked and written alone.

A model's folder has `config.json` and `expert_00/`, `expert_01/`, ...; see unet.py for what the model does with them.
"""

from __future__ import annotations

import inspect
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.configuration_utils import FrozenDict
from ppdiffusers.utils import CONFIG_NAME, PADDLE_SAFETENSORS_WEIGHTS_NAME
from safetensors.numpy import save_file

from ppvilg.files import refuse_pickles

from .attention import KeyWeightedAttention, named_attention
from .timesteps import use_whole_vectors
from .upsampling import use_tile_upsampling

_STOCK_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    if name != "self"
}


def expert_folder_name(index: int) -> str:
    """Name of an expert's folder inside the model folder: expert_00, expert_01, ..."""
    return f"expert_{index:02d}"


def as_plain(value):
    """Tuples and list-likes as lists, so that a config compares equal to its JSON."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_plain(item) for item in value]
    return value


def stock_config(config: Mapping) -> dict:
    """The whole config of a stock UNet: given values over stock defaults; ValueError names unknown keys."""
    given = {key: as_plain(value) for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - set(_STOCK_DEFAULTS))
    if unknown:
        raise ValueError(f"unet config has keys that UNet2DConditionModel does not know: {', '.join(unknown)}")
    return {**{key: as_plain(value) for key, value in _STOCK_DEFAULTS.items()}, **given}


def as_expert(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Gives a stock UNet key-weighted attention, tile upsampling and whole-vector timesteps; names and values stay."""
    for layer in named_attention(unet).values():
        layer.__class__ = KeyWeightedAttention
        layer.set_processor(layer.processor)
    use_tile_upsampling(unet)
    use_whole_vectors(unet)
    # a path on the machine that loaded the weights has no business in the files saved from here
    unet._internal_dict = FrozenDict({k: v for k, v in unet.config.items() if k != "_name_or_path"})
    return unet


def load_stock(folder: Path, **kwargs) -> UNet2DConditionModel:
    """A stock UNet folder as an expert; ValueError if any weight is missing or left over, or is a pickle."""
    refuse_pickles(folder)
    unet, info = UNet2DConditionModel.from_pretrained(str(folder), output_loading_info=True, **kwargs)
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            raise ValueError(f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}, the first is {info[kind][0]!r}")
    return as_expert(unet)


def expert_folder(folder: Path, index: int, num_experts: int) -> Path:
    """`folder/expert_XX`; ValueError for a number that the model has not, FileNotFoundError where it is missing."""
    if not 0 <= index < num_experts:
        raise ValueError(f"expert must be from 0 to {num_experts - 1}, got {index}")
    path = folder / expert_folder_name(index)
    if not (path / CONFIG_NAME).is_file():
        there = sorted(p.parent.name for p in folder.glob(f"expert_*/{CONFIG_NAME}"))
        raise FileNotFoundError(
            f"{path} is missing: the model has {num_experts} experts, {folder} holds "
            f"{', '.join(there) if there else 'none'}. Copy the expert there, or load others with experts=[...]"
        )
    return path


def check_same_config(path: Path, config: Mapping, expected: Mapping) -> None:
    """ValueError if the stock config of the expert at `path` differs from the model's."""
    theirs = stock_config(config)
    different = [f"{key}: {theirs[key]} instead of {value}" for key, value in expected.items()
                 if theirs[key] != as_plain(value)]
    if different:
        raise ValueError(f"{path} is an expert of another model ({'; '.join(different)})")


def drop_experts_from(folder: Path, num_experts: int) -> None:
    """Remove what a model with more experts has left."""
    for path in folder.glob("expert_*"):
        number = re.fullmatch(r"expert_(\d+)", path.name)
        if number and int(number[1]) >= num_experts:
            shutil.rmtree(path)


def existing_folder(folder) -> Path:
    if not (Path(folder) / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no {CONFIG_NAME}")
    return Path(folder)


def copy_weights(source: nn.Layer, target: nn.Layer, what: str) -> None:
    """Copies values into the parameters of `target`, which stay the same objects under the same Paddle names."""
    values = source.state_dict()
    missing, unexpected = target.set_state_dict({name: value.cast(target.dtype) for name, value in values.items()})
    if missing or unexpected:
        raise ValueError(f"{what}: weights do not fit (missing {missing}, unexpected {unexpected})")


def write_expert(expert: UNet2DConditionModel, folder: Path, dtype: str | None) -> None:
    """One expert as a stock ppdiffusers folder."""
    if dtype is None:
        dtype = "float16" if expert.dtype == paddle.float16 else "float32"
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16', 'float32' or None, got {dtype!r}")
    folder.mkdir(parents=True)
    expert.save_config(str(folder))
    weights = {name: np.ascontiguousarray(p.cast(dtype).numpy()) for name, p in expert.state_dict().items()}
    save_file(weights, str(folder / PADDLE_SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pd"})


class Staging:
    """A hidden folder inside `target` whose entries take their places there when the block ends without an error."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        self.target.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=self.target))
        return self.folder

    def __exit__(self, error_type, error, traceback) -> None:
        try:
            if error_type is None:
                for entry in sorted(self.folder.iterdir(), key=lambda path: path.is_file()):  # config.json last
                    place = self.target / entry.name
                    if place.is_dir():
                        place.rename(self.folder / f"{entry.name}.old")
                    entry.replace(place)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
