"""MoDEUNet2DConditionModel: n stock UNets behind one routing function (ERNIE-ViLG 2.0, section 2.3).

On disk: `config.json` (n, boundaries, the UNet's own config) and `expert_00/`, `expert_01/`, ..., each a stock
ppdiffusers UNet2DConditionModel folder, so that one expert can be loaded, replaced or shared alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from ppdiffusers import ModelMixin, UNet2DConditionModel
from ppdiffusers.configuration_utils import ConfigMixin, register_to_config
from ppdiffusers.models.unet_2d_condition import UNet2DConditionOutput
from ppdiffusers.utils import CONFIG_NAME

from ppvilg.files import read_json

from .attention import named_attention, set_processors
from .expert_files import (
    Staging,
    as_expert,
    check_same_config,
    copy_weights,
    drop_experts_from,
    existing_folder,
    expert_folder,
    expert_folder_name,
    load_stock,
    stock_config,
    write_expert,
)
from .routing import block_origins, expert_index, uniform_boundaries, validate_boundaries


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
        unet = stock_config(unet or {})
        self.register_to_config(boundaries=boundaries, unet=unet)
        present = range(num_experts) if experts is None else experts
        self.experts = nn.LayerList(
            as_expert(UNet2DConditionModel(**unet)) if k in present else AbsentExpert(k) for k in range(num_experts)
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

    @property
    def attn_processors(self) -> dict:
        """Attention processors of the experts in memory by name."""
        return {name: layer.processor for name, layer in named_attention(self).items()}

    def set_attn_processor(self, processor) -> None:
        """One processor for all attention layers or a dict as `attn_processors`; key-token weights stay around it."""
        set_processors(self, processor)

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
        on_host = None if isinstance(timestep, paddle.Tensor) else np.asarray(timestep)
        timestep = timestep if on_host is None else paddle.to_tensor(on_host)
        if timestep.size not in (1, batch_size):
            raise ValueError(
                f"timestep must be one number or one per sample ({batch_size}), got shape {timestep.shape}"
            )
        if self.config.num_experts == 1:
            return 0, timestep
        values = timestep.numpy() if on_host is None else on_host  # a device would have to be waited for
        index = np.asarray(expert_index(values, self.config.boundaries)).reshape(-1)
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
        sources = list(unet.experts) if several else [unet]
        origins = block_origins(model.boundaries, unet.boundaries) if several else [0] * num_experts
        for k, origin in enumerate(origins):
            copy_weights(sources[origin], model.experts[k], f"expert {k}")
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
        folder = existing_folder(folder)
        unet = load_stock(folder, from_diffusers=from_diffusers, **kwargs)
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
            expert_folder(folder, k, model.num_experts)  # all are looked for before any is read
        for k in wanted:
            model.load_expert(folder, k, **kwargs)
        model.eval()
        return model

    @classmethod
    def without_experts(cls, folder) -> MoDEUNet2DConditionModel:
        """The model of a local folder with no expert in memory yet."""
        folder = existing_folder(folder)
        config = read_json(folder / CONFIG_NAME)
        if config.get("_class_name") == UNet2DConditionModel.__name__:
            raise ValueError(f"{folder} holds a stock UNet2DConditionModel, load it with {cls.__name__}.from_stock")
        settings = {key: config[key] for key in ("num_experts", "boundaries", "num_train_timesteps", "unet")}
        return cls(**settings, experts=[])

    def new_expert(self) -> UNet2DConditionModel:
        """An untrained expert of this model's config, in eval mode and no part of the model."""
        expert = as_expert(UNet2DConditionModel(**self.config.unet))
        expert.eval()
        return expert

    def check_expert_folder(self, folder, index: int) -> Path:
        """`folder/expert_XX`; FileNotFoundError if it is missing, ValueError if its config is not this model's."""
        path = expert_folder(Path(folder), index, self.num_experts)
        check_same_config(path, read_json(path / CONFIG_NAME), self.config.unet)
        return path

    def load_expert(self, folder, index: int, **kwargs) -> None:
        """Reads `folder/expert_XX` into expert `index`; parameters already there keep their identity."""
        if not isinstance(self.experts, nn.LayerList):
            raise ValueError(f"the experts are a {type(self.experts).__name__}, which reads its own: replace the files")
        path = expert_folder(Path(folder), index, self.num_experts)
        loaded = load_stock(path, **kwargs)
        check_same_config(path, loaded.config, self.config.unet)
        if isinstance(self.experts[index], AbsentExpert):
            self.experts[index] = loaded
        else:
            copy_weights(loaded, self.experts[index], str(path))

    def save_pretrained(self, save_directory, dtype: str | None = None, is_main_process: bool = True) -> None:
        """Writes `config.json` and every expert as safetensors, in `dtype` ("float16", "float32", None as it is).

        Everything is written to a hidden folder first and renamed when whole: a full disk leaves the old files alone.
        """
        if not is_main_process:
            return
        absent = sorted(set(range(self.num_experts)) - set(self.loaded_experts))
        if absent:
            raise ValueError(f"experts {absent} are not loaded; save the others one by one with save_expert")
        with Staging(Path(save_directory)) as staging:
            for k, expert in enumerate(self.experts):
                write_expert(expert, staging / expert_folder_name(k), dtype)
            self.save_config(str(staging))
        drop_experts_from(Path(save_directory), self.num_experts)

    def save_expert(self, save_directory, index: int, dtype: str | None = None) -> None:
        """Writes or replaces `save_directory/expert_XX` alone."""
        if index not in self.loaded_experts:
            raise ValueError(f"expert {index} is not loaded (loaded: {self.loaded_experts})")
        with Staging(Path(save_directory)) as staging:
            write_expert(self.experts[index], staging / expert_folder_name(index), dtype)
