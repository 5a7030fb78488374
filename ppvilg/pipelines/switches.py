"""The stock switches of ppdiffusers' pipelines, on all three kinds of ours: each works, or refuses by its name.

plain: experts in memory, everything works that the machine has. streamed (max_resident_experts): what would have to
change experts that are not in memory refuses. exported: graphs are as they were exported, so what changes networks
refuses.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import paddle
from ppdiffusers.loaders import FromSingleFileMixin, IPAdapterMixin, LoraLoaderMixin, TextualInversionLoaderMixin
from ppdiffusers.utils.import_utils import is_ppxformers_available

from ppvilg.inference.options import as_options
from ppvilg.models import PatchAutoencoderKL
from ppvilg.models.freeu import mend_freeu

from .arguments import number, whole_number

_LOADERS = (LoraLoaderMixin, TextualInversionLoaderMixin, IPAdapterMixin, FromSingleFileMixin)
_NOT_HERE = {name for loader in _LOADERS for name in vars(loader) if not name.startswith("_")}
_ON_CPU = ("float32", "float64")  # dtypes that Paddle's networks compute in on a CPU


class Running(NamedTuple):
    """A drawing of a call that is under way."""

    pipeline: object
    thread: int
    drawing: object


_running: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # unet -> Running; copies of a pipeline share a unet


class StockSwitches:
    """Devices, dtypes, attention, VAE, FreeU and interruption of ErnieViLG2Pipeline."""

    @property
    def is_exported(self) -> bool:
        """Whether its networks are graphs of an export bundle."""
        return not isinstance(self.vae, paddle.nn.Layer)

    @property
    def is_streamed(self) -> bool:
        """Whether experts are read when they are needed (max_resident_experts)."""
        return hasattr(self.unet.experts, "expecting")

    # ---- where and in what the networks compute ----

    @property
    def device(self) -> str:
        """ "cpu" or "gpu:0"."""
        if self.is_exported:
            return "gpu:0" if as_options(self.vae.backend).device == "gpu" else "cpu"
        place = next(iter(self.vae.parameters())).place
        return "cpu" if place.is_cpu_place() else f"gpu:{place.gpu_device_id()}"

    @property
    def dtype(self) -> paddle.dtype:
        """dtype the denoiser computes in (the base class asks whichever component comes first, and ERNIE has none)."""
        return self.unet.dtype

    def to(self, *args, **kwargs):
        """As ppdiffusers' `to(device, dtype)`; ValueError where the networks cannot go there."""
        device, dtype = _target(args, kwargs)
        if device is not None and _same_device(device, self.device):
            device = None
        if dtype is not None and dtype == _name(self.dtype) and (self.is_exported or self.is_streamed):
            dtype = None
        if device is None and dtype is None:
            return self
        if self.is_exported:
            raise ValueError(f"to({device or dtype}): a bundle computes where and in what it was opened for")
        if self.is_streamed:
            raise ValueError(f"to({device or dtype}): streamed experts stay; give paddle_dtype to from_pretrained")
        target = device or self.device
        if device is not None and not paddle.is_compiled_with_cuda() and device != "cpu":
            raise ValueError(f"to({device!r}): this Paddle is for CPUs, install paddlepaddle-gpu")
        if dtype is not None and target == "cpu" and dtype not in _ON_CPU:
            raise ValueError(f"to({dtype}): Paddle computes in {' or '.join(_ON_CPU)} on a CPU, use a GPU for {dtype}")
        for layer in (self.vae, self.text_encoder, self.unet):
            layer.to(device=device, dtype=dtype)
        return self

    def __deepcopy__(self, memo: dict):
        """A pipeline with networks of its own; ValueError where they cannot be copied."""
        if self.is_exported or self.is_streamed:
            raise ValueError("a streamed or exported pipeline cannot be deep-copied: open it again, or use copy.copy")
        if merges_tokens(self.unet):
            raise ValueError("deepcopy: a copy of merged tokens' hooks would change this pipeline; remove_tome first")
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return copied

    # ---- attention ----

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: str | None = None) -> None:
        """Stock attention by one fused call, or as it was; key-token weights stay in force. ValueError: on a CPU."""
        self._need_experts("memory-efficient attention")
        if valid and not is_ppxformers_available():
            raise ValueError("memory-efficient attention: Paddle has it for GPUs alone, enable_attention_slicing works")
        super().set_use_memory_efficient_attention_xformers(valid, attention_op)

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """Attention in slices of heads, which needs less memory; None: in one piece. The same pictures."""
        self._need_experts("attention slicing")
        for expert in self.unet.experts:
            expert.set_attention_slice(slice_size)

    @property
    def attn_processors(self) -> dict:
        """Attention processors of all experts by name."""
        self._need_experts("attn_processors")
        return self.unet.attn_processors

    def set_attn_processor(self, processor) -> None:
        """One attention processor for all layers, or a dict as `attn_processors`; key-token weights stay around it."""
        self._need_experts("set_attn_processor")
        self.unet.set_attn_processor(processor)

    # ---- token merging ----

    def apply_tome(
        self,
        ratio: float = 0.5,
        max_downsample: int = 1,
        sx: int = 2,
        sy: int = 2,
        use_rand: bool = False,
        merge_attn: bool = True,
        merge_crossattn: bool = False,
        merge_mlp: bool = False,
    ) -> StockSwitches:
        """Token merging (arXiv 2303.17604) in every expert: less to compute, slightly other pictures.

        The share `ratio` of the tokens, below 1 - 1 / (sx * sy), is merged where latents are at most `max_downsample`
        times smaller than the model's. Without random choice, which stock switches on: a seed decides the picture.
        ValueError: use_rand=True, or a number that is none.
        """
        self._need_experts("apply_tome")
        if use_rand:
            raise ValueError("apply_tome(use_rand=True): seeds would no longer decide the pictures, leave use_rand out")
        number("ratio", ratio)
        for name, value in (("max_downsample", max_downsample), ("sx", sx), ("sy", sy)):
            whole_number(name, value)
        return super().apply_tome(ratio, max_downsample, sx, sy, False, merge_attn, merge_crossattn, merge_mlp)

    def remove_tome(self, only_return_self: bool = True):
        """No token merging."""
        self._need_experts("remove_tome")
        return super().remove_tome(only_return_self)

    # ---- VAE and FreeU ----

    def enable_vae_slicing(self) -> None:
        """Decodes picture by picture."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decodes all pictures at once."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decodes large pictures in overlapping tiles of the VAE's own size; not for PatchAutoencoderKL."""
        if isinstance(self.vae, PatchAutoencoderKL) or getattr(self.vae, "has_patches", False):
            raise ValueError("enable_vae_tiling is not for PatchAutoencoderKL, whose tiles would not fit its patches")
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decodes in one piece."""
        self.vae.disable_tiling()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (arXiv 2309.11497) in every expert."""
        self._need_experts("enable_freeu")
        mend_freeu()
        for expert in self.unet.experts:
            expert.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """No FreeU."""
        self._need_experts("disable_freeu")
        for expert in self.unet.experts:
            expert.disable_freeu()

    # ---- interruption ----

    @contextlib.contextmanager
    def running(self, drawings: Sequence) -> Iterator[None]:
        """Drawings that `_interrupt` ends while the block lasts."""
        mine = [Running(self, threading.get_ident(), drawing) for drawing in drawings]
        running = _running.setdefault(self.unet, [])
        running.extend(mine)
        try:
            yield
        finally:
            for entry in mine:
                running.remove(entry)

    @property
    def is_drawing(self) -> bool:
        """Whether a call of this pipeline, or of a copy with the same networks, is under way."""
        return bool(_running.get(self.unet))

    @property
    def interrupt(self) -> bool:
        """Whether a call of this pipeline was told to end, by `_interrupt = True`."""
        return any(entry.drawing.interrupted for entry in self._own())

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Ends this thread's call; set from a thread that has none, all calls. The next call begins anew."""
        running = self._own()
        for entry in [entry for entry in running if entry.thread == threading.get_ident()] or running:
            entry.drawing.interrupted = bool(value)

    def _own(self) -> list[Running]:
        return [entry for entry in list(_running.get(self.unet, [])) if entry.pipeline is self]

    # ---- what is not there ----

    def __getattr__(self, name: str):
        if name in _NOT_HERE:
            raise AttributeError(f"{type(self).__name__} has no {name}: this loader is made for Stable Diffusion")
        return super().__getattr__(name)

    def _need_experts(self, what: str) -> None:
        if self.is_exported:
            raise ValueError(f"{what}: the graphs of a bundle are as they were exported")
        if self.is_streamed:
            raise ValueError(f"{what}: not all experts are in memory; open the model without max_resident_experts")


def merges_tokens(unet) -> bool:
    """Whether `apply_tome` is in force: its blocks then share the size of the call that is running."""
    return bool(getattr(unet, "_tome_info", {}).get("hooks"))


def _target(args: tuple, kwargs: dict) -> tuple[str | None, str | None]:
    """(device, dtype) of the arguments of `to`, as names."""
    kwargs = dict(kwargs)
    kwargs.pop("silence_dtype_warnings", None)
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if kwargs or len(args) > 2:
        raise ValueError(f"to(device, dtype) takes no {', '.join(kwargs) or 'third argument'}")
    for argument in args:
        if isinstance(argument, paddle.dtype) or (isinstance(argument, str) and hasattr(paddle, argument)):
            dtype = argument
        elif argument is not None:
            device = argument
    return (None if device is None else _device_name(device)), (None if dtype is None else _name(dtype))


def _device_name(device) -> str:
    name = str(device).lower().removeprefix("place(").removesuffix(")").replace("cuda", "gpu")
    if name.partition(":")[0] not in ("cpu", "gpu"):
        raise ValueError(f"to({device!r}): devices are 'cpu', 'gpu' and 'gpu:N'")
    return name


def _same_device(name: str, device: str) -> bool:
    return name == device or (name == "gpu" and device == "gpu:0")


def _name(dtype) -> str:
    return str(dtype).rpartition(".")[2]
