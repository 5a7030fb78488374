"""MoDEUNet2DConditionModel: n stock UNets behind one routing function (ERNIE-ViLG 2.0, section 2.3).

On disk: `config.json` (n, boundaries, the UNet's own config) and `expert_00/`, `expert_01/`, ..., each a stock
ppdiffusers UNet2DConditionModel folder, so that one expert can be loaded, replaced or shared alone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from ppdiffusers import ModelMixin, UNet2DConditionModel
from ppdiffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from ppdiffusers.models.unet_2d_condition import UNet2DConditionOutput
from ppdiffusers.utils import CONFIG_NAME, PADDLE_SAFETENSORS_WEIGHTS_NAME
from safetensors.numpy import save_file

from ppvilg.files import refuse_pickles

from .attention import KeyWeightedAttnProcessor
from .mode import expert_index, uniform_boundaries, validate_boundaries
from .upsampling import use_tile_upsampling

_STOCK_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    if name != "self"
}


def expert_folder_name(index: int) -> str:
    """Name of an expert's folder inside the model folder: expert_00, expert_01, ..."""
    return f"expert_{index:02d}"


def _plain(value):
    """Tuples and list-likes as lists, so that a config compares equal to its JSON."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _stock_config(config: Mapping) -> dict:
    """The whole config of a stock UNet: given values over stock defaults; ValueError names unknown keys."""
    given = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - set(_STOCK_DEFAULTS))
    if unknown:
        raise ValueError(f"unet config has keys that UNet2DConditionModel does not know: {', '.join(unknown)}")
    return {**{key: _plain(value) for key, value in _STOCK_DEFAULTS.items()}, **given}


def _as_expert(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Gives a stock UNet key-weighted attention and tile upsampling; parameter names and values stay."""
    for layer in unet.sublayers():
        processor = getattr(layer, "processor", None)
        if processor is not None and not isinstance(processor, KeyWeightedAttnProcessor):
            layer.set_processor(KeyWeightedAttnProcessor(processor))
    use_tile_upsampling(unet)
    # a path on the machine that loaded the weights has no business in the files saved from here
    unet._internal_dict = FrozenDict({k: v for k, v in unet.config.items() if k != "_name_or_path"})
    return unet


def _load_stock(folder: Path, **kwargs) -> UNet2DConditionModel:
    """A stock UNet folder as an expert; ValueError if any weight is missing or left over, or is a pickle."""
    refuse_pickles(folder)
    unet, info = UNet2DConditionModel.from_pretrained(str(folder), output_loading_info=True, **kwargs)
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            raise ValueError(f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}, the first is {info[kind][0]!r}")
    return _as_expert(unet)


class AbsentExpert(nn.Layer):
    """Stands where an expert was not loaded; calling it says how to load it."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def forward(self, *args, **kwargs):
        raise RuntimeError(f"expert {self.index} is not loaded; load it with load_expert(folder, {self.index})")


class MoDEUNet2DConditionModel(ModelMixin, ConfigMixin):
    """n experts, stock UNet2DConditionModel each; expert k denoises the timesteps boundaries[k] <= t < boundaries[k+1].

    `unet` is the config of the stock UNet. `boundaries` is [0, ..., num_train_timesteps], uniform when None.
    `experts` lists the experts to build (all when None; the others stay absent until `load_expert`).
    """

    _supports_gradient_checkpointing = True
    ignore_for_config = ["experts"]

    @register_to_config
    def __init__(
        self,
        num_experts: int = 1,
        boundaries: Sequence[int] | None = None,
        num_train_timesteps: int = 1000,
        unet: Mapping | None = None,
        experts: Sequence[int] | None = None,
    ):
        super().__init__()
        if boundaries is None:
            boundaries = uniform_boundaries(num_experts, num_train_timesteps)
        boundaries = validate_boundaries(boundaries, num_experts, num_train_timesteps)
        unet = _stock_config(unet or {})
        self.register_to_config(boundaries=boundaries, unet=unet)
        present = range(num_experts) if experts is None else experts
        self.experts = nn.LayerList(
            _as_expert(UNet2DConditionModel(**unet)) if k in present else AbsentExpert(k) for k in range(num_experts)
        )

    @property
    def num_experts(self) -> int:
        """Number of experts n."""
        return self.config.num_experts

    @property
    def boundaries(self) -> list[int]:
        """[0, ..., num_train_timesteps]: expert k owns [boundaries[k], boundaries[k + 1])."""
        return list(self.config.boundaries)

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps T."""
        return self.config.num_train_timesteps

    @property
    def in_channels(self) -> int:
        """Latent channels the experts take."""
        return self.config.unet["in_channels"]

    @property
    def sample_size(self) -> int | list[int] | None:
        """Latent size the stock config names, None if it names none."""
        return self.config.unet["sample_size"]

    @property
    def dtype(self) -> paddle.dtype:
        """dtype the experts compute in, whether or not any is in memory."""
        return getattr(self.experts, "dtype", None) or super().dtype

    @property
    def loaded_experts(self) -> list[int]:
        """Numbers of the experts in memory."""
        return [k for k, expert in enumerate(self.experts) if not isinstance(expert, AbsentExpert)]

    def expecting(self, timesteps: Iterable) -> contextlib.AbstractContextManager:
        """A context in which calls will come at these timesteps, in this order.

        Experts that are not all in memory are read ahead by it (ppvilg.inference.residency); others need no plan.
        """
        if not hasattr(self.experts, "expecting"):
            return contextlib.nullcontext()
        return self.experts.expecting([expert_index(float(t), self.config.boundaries) for t in timesteps])

    def forward(
        self,
        sample: paddle.Tensor,
        timestep: int | float | np.ndarray | paddle.Tensor,
        encoder_hidden_states: paddle.Tensor,
        key_token_weights: paddle.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[paddle.Tensor]:
        """Denoises (N, C, h, w) at one timestep or at (N,) timesteps, each sample by the expert that owns it.

        encoder_hidden_states: (N, L, D); key_token_weights: (N, L) or None, scales the values of cross-attention.
        """
        index, timestep = self._route(timestep, sample.shape[0])
        if isinstance(index, int):
            output = self._denoise(index, sample, timestep, encoder_hidden_states, key_token_weights)
        else:
            output = self._denoise_mixed(index, sample, timestep, encoder_hidden_states, key_token_weights)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)  # (N, C, h, w)

    def _route(self, timestep, batch_size: int):
        """(expert or int64 array of experts (N,), timestep in the form a stock UNet takes)."""
        if isinstance(timestep, Real):
            # the stock UNet would cut a fractional timestep off to a whole one
            whole = float(timestep).is_integer()
            value = int(timestep) if whole else paddle.to_tensor([float(timestep)], dtype="float32")
            return expert_index(timestep, self.config.boundaries), value
        if not isinstance(timestep, paddle.Tensor):
            timestep = paddle.to_tensor(timestep)
        if timestep.size not in (1, batch_size):
            raise ValueError(
                f"timestep must be one number or one per sample ({batch_size}), got shape {timestep.shape}"
            )
        if self.config.num_experts == 1:
            return 0, timestep
        index = np.asarray(expert_index(timestep.numpy(), self.config.boundaries)).reshape(-1)
        return (int(index[0]), timestep) if (index == index[0]).all() else (index, timestep)

    def _denoise(self, index, sample, timestep, encoder_hidden_states, key_token_weights) -> paddle.Tensor:
        attention = None if key_token_weights is None else {"key_token_weights": key_token_weights}
        expert = self.experts[index]
        return expert(sample, timestep, encoder_hidden_states, cross_attention_kwargs=attention, return_dict=False)[
            0
        ]  # (N, C, h, w)

    def _denoise_mixed(self, index, sample, timestep, encoder_hidden_states, key_token_weights) -> paddle.Tensor:
        """Groups a batch by expert, runs each expert on its own samples, puts the outputs back in order."""
        outputs, order = [], []
        for k in np.unique(index):
            rows = np.flatnonzero(index == k)
            take = paddle.to_tensor(rows)
            outputs.append(
                self._denoise(
                    int(k),
                    paddle.gather(sample, take),
                    paddle.gather(timestep, take),
                    paddle.gather(encoder_hidden_states, take),
                    None if key_token_weights is None else paddle.gather(key_token_weights, take),
                )
            )
            order.append(rows)
        back = paddle.to_tensor(np.argsort(np.concatenate(order), kind="stable"))
        return paddle.gather(paddle.concat(outputs), back)  # (N, C, h, w)

    def _set_gradient_checkpointing(self, module, value=False):
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = value

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """AdamW groups: matrices and kernels decay, norms and biases (one-dimensional) do not.

        Paddle applies an optimizer's `grad_clip` to each group alone; for one norm over all parameters give it
        `parameters()` in one list and `decayed_parameter_names`.
        """
        trainable = [parameter for parameter in self.parameters() if not parameter.stop_gradient]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def decayed_parameter_names(self) -> set[str]:
        """Paddle names of the parameters that decay, for `AdamW(apply_decay_param_fun=names.__contains__)`."""
        return {parameter.name for parameter in self.parameters() if parameter.ndim > 1}

    @classmethod
    def from_base(
        cls,
        unet: UNet2DConditionModel | MoDEUNet2DConditionModel,
        num_experts: int,
        boundaries: Sequence[int] | None = None,
        num_train_timesteps: int = 1000,
    ) -> MoDEUNet2DConditionModel:
        """n experts as copies of one UNet; from a model with several experts, of the one that owns the block's middle.

        `num_train_timesteps` is read from a MoDE source. The result is in the source's train or eval mode.
        """
        several = isinstance(unet, MoDEUNet2DConditionModel)
        if several:
            num_train_timesteps = unet.num_train_timesteps
        config = unet.config.unet if several else unet.config
        model = cls(num_experts, boundaries, num_train_timesteps, config)
        for k, (low, high) in enumerate(pairwise(model.boundaries)):
            source = unet.experts[expert_index((low + high) // 2, unet.boundaries)] if several else unet
            _copy_weights(source, model.experts[k], f"expert {k}")
        if not unet.training:
            model.eval()
        return model

    @classmethod
    def from_stock(
        cls,
        folder,
        from_diffusers: bool = False,
        num_experts: int = 1,
        boundaries: Sequence[int] | None = None,
        num_train_timesteps: int = 1000,
        **kwargs,
    ) -> MoDEUNet2DConditionModel:
        """A stock UNet folder (PyTorch diffusers' names and layout with `from_diffusers`) as every expert."""
        folder = _existing(folder)
        unet = _load_stock(folder, from_diffusers=from_diffusers, **kwargs)
        return cls.from_base(unet, num_experts, boundaries, num_train_timesteps)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, experts: Sequence[int] | None = None, subfolder: str = "", **kwargs
    ) -> MoDEUNet2DConditionModel:
        """Loads a local folder in eval mode; `experts` limits which experts are read (the others: `load_expert`).

        Weights of any dtype become float32, or `paddle_dtype`. Further arguments go to the stock UNet's loader.
        FileNotFoundError names an expert that the folder lacks.
        """
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        model = cls.without_experts(folder)
        wanted = range(model.num_experts) if experts is None else experts
        for k in wanted:
            model._expert_folder(folder, k)  # all are looked for before any is read
        for k in wanted:
            model.load_expert(folder, k, **kwargs)
        model.eval()
        return model

    @classmethod
    def without_experts(cls, folder) -> MoDEUNet2DConditionModel:
        """The model of a local folder with no expert in memory yet."""
        folder = _existing(folder)
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        if config.get("_class_name") == UNet2DConditionModel.__name__:
            raise ValueError(f"{folder} holds a stock UNet2DConditionModel, load it with {cls.__name__}.from_stock")
        settings = {key: config[key] for key in ("num_experts", "boundaries", "num_train_timesteps", "unet")}
        return cls(**settings, experts=[])

    def new_expert(self) -> UNet2DConditionModel:
        """An untrained expert of this model's config, in eval mode and no part of the model."""
        expert = _as_expert(UNet2DConditionModel(**self.config.unet))
        expert.eval()
        return expert

    def check_expert_folder(self, folder, index: int) -> Path:
        """`folder/expert_XX`; FileNotFoundError if it is missing, ValueError if its config is not this model's."""
        path = self._expert_folder(Path(folder), index)
        self._check_expert_config(path, json.loads((path / CONFIG_NAME).read_text(encoding="utf-8")))
        return path

    def _check_expert_config(self, path: Path, config: Mapping) -> None:
        mine, theirs = self.config.unet, _stock_config(config)
        different = [f"{key}: {theirs[key]} instead of {mine[key]}" for key in mine if theirs[key] != _plain(mine[key])]
        if different:
            raise ValueError(f"{path} is an expert of another model ({'; '.join(different)})")

    def load_expert(self, folder, index: int, **kwargs) -> None:
        """Reads `folder/expert_XX` into expert `index`; parameters already there keep their identity."""
        if not isinstance(self.experts, nn.LayerList):
            raise ValueError(f"the experts are a {type(self.experts).__name__}, which reads its own: replace the files")
        path = self._expert_folder(Path(folder), index)
        loaded = _load_stock(path, **kwargs)
        self._check_expert_config(path, loaded.config)
        if isinstance(self.experts[index], AbsentExpert):
            self.experts[index] = loaded
        else:
            _copy_weights(loaded, self.experts[index], str(path))

    def save_pretrained(self, save_directory, dtype: str | None = None, is_main_process: bool = True) -> None:
        """Writes `config.json` and every expert as safetensors, in `dtype` ("float16", "float32", None as it is).

        Everything is written to a hidden folder first and renamed when whole: a full disk leaves the old files alone.
        """
        if not is_main_process:
            return
        absent = sorted(set(range(self.num_experts)) - set(self.loaded_experts))
        if absent:
            raise ValueError(f"experts {absent} are not loaded; save the others one by one with save_expert")
        with _Staging(Path(save_directory)) as staging:
            for k, expert in enumerate(self.experts):
                _write_expert(expert, staging / expert_folder_name(k), dtype)
            self.save_config(str(staging))
        for path in Path(save_directory).glob("expert_*"):
            number = re.fullmatch(r"expert_(\d+)", path.name)
            if number and int(number[1]) >= self.num_experts:
                shutil.rmtree(path)  # left by a model with more experts

    def save_expert(self, save_directory, index: int, dtype: str | None = None) -> None:
        """Writes or replaces `save_directory/expert_XX` alone."""
        if index not in self.loaded_experts:
            raise ValueError(f"expert {index} is not loaded (loaded: {self.loaded_experts})")
        with _Staging(Path(save_directory)) as staging:
            _write_expert(self.experts[index], staging / expert_folder_name(index), dtype)

    def _expert_folder(self, folder: Path, index: int) -> Path:
        if not 0 <= index < self.num_experts:
            raise ValueError(f"expert must be from 0 to {self.num_experts - 1}, got {index}")
        path = folder / expert_folder_name(index)
        if not (path / CONFIG_NAME).is_file():
            there = sorted(p.parent.name for p in folder.glob(f"expert_*/{CONFIG_NAME}"))
            raise FileNotFoundError(
                f"{path} is missing: the model has {self.num_experts} experts, {folder} holds "
                f"{', '.join(there) if there else 'none'}. Copy the expert there, or load others with experts=[...]"
            )
        return path


def _existing(folder) -> Path:
    if not (Path(folder) / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no {CONFIG_NAME}")
    return Path(folder)


def _copy_weights(source: nn.Layer, target: nn.Layer, what: str) -> None:
    """Copies values into the parameters of `target`, which stay the same objects under the same Paddle names."""
    values = source.state_dict()
    missing, unexpected = target.set_state_dict({name: value.cast(target.dtype) for name, value in values.items()})
    if missing or unexpected:
        raise ValueError(f"{what}: weights do not fit (missing {missing}, unexpected {unexpected})")


def _write_expert(expert: UNet2DConditionModel, folder: Path, dtype: str | None) -> None:
    """One expert as a stock ppdiffusers folder."""
    if dtype is None:
        dtype = "float16" if expert.dtype == paddle.float16 else "float32"
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16', 'float32' or None, got {dtype!r}")
    folder.mkdir(parents=True)
    expert.save_config(str(folder))
    weights = {name: np.ascontiguousarray(p.cast(dtype).numpy()) for name, p in expert.state_dict().items()}
    save_file(weights, str(folder / PADDLE_SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pd"})


class _Staging:
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
