"""Where experts that take turns are read from: a model folder in dygraph, or an export bundle."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import paddle
from paddle import nn
from ppdiffusers.utils import PADDLE_SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from ppvilg.files import damage_of
from ppvilg.models.expert_files import expert_folder_name
from ppvilg.models.unet import MoDEUNet2DConditionModel

from .manifest import Manifest
from .options import BackendOptions
from .runtime import open_expert

_STORED = {"F32": np.float32, "F16": np.float16}  # dtypes of safetensors that experts are streamed from

Expert = Callable  # a stock UNet or what stands in for an exported one, with its call signature


class ExpertSource(Protocol):
    """Where experts are read from."""

    num_experts: int
    dtype: paddle.dtype  # the experts compute in it

    def load(self, index: int, retired: Expert | None) -> Expert:
        """Expert `index`; `retired` is one that is no longer needed, whose memory is to be used again or given back.

        Called from a background thread, one call at a time; must leave Paddle's random state alone.
        """

    def nbytes(self, index: int) -> int:
        """Bytes that the weights of expert `index` take in memory."""


class DygraphExperts:
    """Experts of a model folder, read tensor by tensor from memory-mapped safetensors into `count` standing UNets.

    The UNets are built here and never again, so memory does not grow when experts change places.

    Raises:
        FileNotFoundError: an expert's folder or its safetensors file is missing.
        ValueError: an expert's config or its tensors are not those of this model.
    """

    def __init__(self, folder: str | os.PathLike, count: int, paddle_dtype: paddle.dtype | str | None = None) -> None:
        model = MoDEUNet2DConditionModel.without_experts(folder)
        self.num_experts = model.num_experts
        self._files = [_WeightsFile(model.check_expert_folder(folder, k)) for k in range(self.num_experts)]
        self._idle = [model.new_expert() for _ in range(count)]
        self.template = self._idle[0]  # one of them, for its layers
        self.change: Callable[[int, nn.Layer], None] | None = None  # what is done to an expert that was read
        if paddle_dtype is not None:
            for expert in self._idle:
                expert.to(dtype=paddle_dtype)
        tensors = self._idle[0].state_dict()
        for file in self._files:
            file.check({name: list(tensor.shape) for name, tensor in tensors.items()})
        self.dtype = self._idle[0].dtype
        self._nbytes = sum(tensor.size * tensor.element_size() for tensor in tensors.values())
        self._direct = all(t.place.is_cpu_place() and t.dtype == paddle.float32 for t in tensors.values())

    def load(self, index: int, retired: nn.Layer | None) -> nn.Layer:
        """Expert `index` in the UNet that `retired` was, or in one that was not used yet."""
        expert = self._idle.pop() if retired is None else retired
        file = self._files[index]
        try:
            (file.copy_to if self._direct else file.set_on)(expert.state_dict())
            if self.change is not None:
                self.change(index, expert)
        except BaseException:
            self._idle.append(expert)
            raise
        return expert

    def nbytes(self, index: int) -> int:
        """Bytes of the weights of expert `index` in the dtype it computes in."""
        return self._nbytes


class ExportedExperts:
    """Experts of an export bundle; an expert that is retired gives its memory back first.

    Files are verified by their hashes when they are first read, and again when they were touched since.

    Raises:
        FileNotFoundError, ValueError: as `load_exported_expert`.
    """

    dtype = paddle.float32

    def __init__(self, folder: Path, manifest: Manifest, options: BackendOptions) -> None:
        self.folder, self.manifest, self.options = folder, manifest, options
        self.num_experts = manifest.components["unet"]["num_experts"]
        self._verified: dict[int, list] = {}

    def load(self, index: int, retired: nn.Layer | None) -> nn.Layer:
        """Expert `index` over a graph of its own."""
        if retired is not None:
            retired.graph = None
        state = self._file_state(index)
        checked = self._verified.get(index) == state
        expert = open_expert(self.folder, self.manifest, index, self.options, verified=checked)
        self._verified[index] = state
        return expert

    def nbytes(self, index: int) -> int:
        """Bytes of the weights of expert `index`."""
        return self.manifest.parts[expert_folder_name(index)].weight_bytes

    def _file_state(self, index: int) -> list:
        folder = self.folder / expert_folder_name(index)
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*"))]


class _Tensor(NamedTuple):
    """A tensor of a safetensors file, as its header has it; `start` counts from the end of the header."""

    dtype: str
    shape: list[int]
    start: int


class _WeightsFile:
    """The safetensors file of an expert's folder, its header read and its identity noted.

    Raises:
        FileNotFoundError: the folder has none. ValueError: it is damaged, or is not Paddle's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PADDLE_SAFETENSORS_WEIGHTS_NAME
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is missing: experts are streamed from safetensors, save the model as such"
            )
        self._identity = _identity(self.path.stat())
        try:
            with safe_open(str(self.path), framework="np") as weights:  # checks offsets and lengths, too
                kind = (weights.metadata() or {}).get("format", "pd")
        except SafetensorError:
            raise ValueError(damage_of(self.path)) from None
        if kind != "pd":
            raise ValueError(f"{self.path} has format {kind!r}, experts are streamed from Paddle's ('pd') only")
        with open(self.path, "rb") as content:  # 8 bytes that tell the header's length, the header, the numbers
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length))
        header.pop("__metadata__", None)
        self._numbers = 8 + length
        in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self._tensors = {
            name: _Tensor(each["dtype"], each["shape"], each["data_offsets"][0]) for name, each in in_order
        }

    def check(self, shapes: dict[str, list[int]]) -> None:
        """ValueError unless the file holds exactly these tensors."""
        found = self._tensors
        for name, tensor in found.items():
            if tensor.dtype not in _STORED:
                known = " and ".join(_STORED)
                raise ValueError(f"{self.path}: {name} is stored as {tensor.dtype}, experts are streamed from {known}")
        for what, names in (("lacks", shapes.keys() - found.keys()), ("has unknown", found.keys() - shapes.keys())):
            if names:
                raise ValueError(f"{self.path} {what} {len(names)} tensors, the first is {min(names)!r}")
        for name, shape in shapes.items():
            if found[name].shape != shape:
                raise ValueError(f"{self.path}: {name} has shape {found[name].shape}, the model needs {shape}")

    def set_on(self, parameters: dict[str, paddle.Tensor]) -> None:
        """Gives parameters on any device and of any dtype the values of the file; ValueError: it was changed."""
        with self._opened() as content:
            for name, parameter in parameters.items():
                value = paddle.to_tensor(self._values(content, name), place=parameter.place)
                parameter.set_value(value.cast(parameter.dtype))

    def copy_to(self, parameters: dict[str, paddle.Tensor]) -> None:
        """The same for float32 on the CPU, read to where the parameters are.

        With Paddle's own calls for each of some 300 tensors the denoiser, which computes meanwhile, waits longer.
        """
        with self._opened() as content:
            for name in self._tensors:
                parameter = parameters[name]
                memory = (ctypes.c_float * parameter.size).from_address(parameter.data_ptr())
                self._values(content, name, np.ctypeslib.as_array(memory))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, which must be the one whose header was checked, before and after it is read."""
        with open(self.path, "rb", buffering=0) as content:
            self._check_identity(content)
            yield content
            self._check_identity(content)

    def _check_identity(self, content: BinaryIO) -> None:
        if _identity(os.fstat(content.fileno())) != self._identity:
            raise ValueError(f"{self.path} was changed since the model was loaded: load the model again")

    def _values(self, content: BinaryIO, name: str, into: np.ndarray | None = None) -> np.ndarray:
        """The values of a tensor; `into` is a flat float32 array for them."""
        tensor = self._tensors[name]
        dtype = _STORED[tensor.dtype]
        direct = into is not None and into.dtype == dtype
        values = into if direct else np.empty(int(np.prod(tensor.shape)), dtype)
        content.seek(self._numbers + tensor.start)
        if content.readinto(values) != values.nbytes:
            raise ValueError(f"{self.path} ends within {name}: it was changed since the model was loaded")
        if into is None:
            return values.reshape(tensor.shape)
        if not direct:
            np.copyto(into, values)
        return into


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells that a file is still the one it was."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
