"""Which experts are in memory: n experts where `max_resident` fit, each read just before the trajectory needs it.

The timesteps of a trajectory are known before its first step, and so is the order of its experts. While one expert
computes, a background thread reads the next; the expert that is needed last gives up its memory to it (Belady 1966).
`ResidentExperts` takes the place of `unet.experts`; routing, pipeline and denoising loop do not know.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import paddle
from paddle import nn
from ppdiffusers.utils import PADDLE_SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from ppvilg.models.unet import AbsentExpert, MoDEUNet2DConditionModel, expert_folder_name

from .manifest import read_manifest
from .runtime import check_proven, check_readable, open_expert

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
        self._files = [_weights_file(model.check_expert_folder(folder, k)) for k in range(self.num_experts)]
        self._idle = [model.new_expert() for _ in range(count)]
        if paddle_dtype is not None:
            for expert in self._idle:
                expert.to(dtype=paddle_dtype)
        tensors = self._idle[0].state_dict()
        for file in self._files:
            _check_tensors(file, {name: list(tensor.shape) for name, tensor in tensors.items()})
        self.dtype = self._idle[0].dtype
        self._nbytes = sum(tensor.size * tensor.element_size() for tensor in tensors.values())
        self._direct = all(t.place.is_cpu_place() and t.dtype == paddle.float32 for t in tensors.values())

    def load(self, index: int, retired: nn.Layer | None) -> nn.Layer:
        """Expert `index` in the UNet that `retired` was, or in one that was not used yet."""
        expert = self._idle.pop() if retired is None else retired
        read = _copy_weights if self._direct else _set_weights
        try:
            read(self._files[index], expert.state_dict())
        except BaseException:
            self._idle.append(expert)
            raise
        return expert

    def nbytes(self, index: int) -> int:
        """Bytes of the weights of expert `index` in the dtype it computes in."""
        return self._nbytes


class ExportedExperts:
    """Experts of an export bundle under Paddle Inference; an expert that is retired gives its memory back first.

    Files are verified by their hashes when they are first read, and again when they were touched since.

    Raises:
        FileNotFoundError, ValueError: as `load_exported_expert`.
    """

    dtype = paddle.float32

    def __init__(self, folder: str | os.PathLike, backend: str = "onednn", threads: int | None = None) -> None:
        self.folder, self.backend, self.threads = Path(folder), backend, threads
        self.manifest = read_manifest(self.folder)
        check_readable(self.manifest, self.folder)
        check_proven(self.folder, self.manifest, backend)
        self.num_experts = self.manifest.components["unet"]["num_experts"]
        self._verified: dict[int, list] = {}

    def load(self, index: int, retired: nn.Layer | None) -> nn.Layer:
        """Expert `index` in a predictor of its own."""
        if retired is not None:
            retired.predictor = None
        state = self._file_state(index)
        checked = self._verified.get(index) == state
        expert = open_expert(self.folder, self.manifest, index, self.backend, self.threads, verified=checked)
        self._verified[index] = state
        return expert

    def nbytes(self, index: int) -> int:
        """Bytes of the weights of expert `index`."""
        return self.manifest.parts[expert_folder_name(index)].weight_bytes

    def _file_state(self, index: int) -> list:
        folder = self.folder / expert_folder_name(index)
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*"))]


@dataclass
class ResidencyRecord:
    """What one trajectory, or one queue of them, read and waited for."""

    visits: list[int] = field(default_factory=list)  # experts in the order in which the calls came to them
    loads: list[int] = field(default_factory=list)  # experts read, in order
    hits: int = 0  # visits that found their expert in memory
    stalls: int = 0  # visits that had to wait for it
    stall_seconds: float = 0.0
    load_seconds: float = 0.0  # of reading, most of it while another expert computed
    peak_experts: int = 0  # in memory at once, the one being read included
    peak_bytes: int = 0  # of their weights


class ResidentExperts(nn.Layer):
    """The experts of a mixture, of which at most `max_resident` are in memory; `experts[k]` waits until k is there.

    Inside `with experts.expecting(indices):` experts are read ahead and each at most once; without a plan they are
    read when they are asked for. `record` tells what the latest plan cost. One trajectory at a time.

    Raises:
        ValueError: max_resident is not from 1 to the number of experts.
    """

    def __init__(self, source: ExpertSource, max_resident: int) -> None:
        super().__init__()
        check_max_resident(max_resident, source.num_experts)
        self.source = source
        self.dtype = source.dtype
        self.max_resident = max_resident
        self.record = ResidencyRecord()
        self._resident: dict[int, Expert] = {}  # the least recently visited first
        self._current: int | None = None
        self._plan: list[int] = []
        self._position = -1  # of the current visit in the plan
        self._coming: tuple[int, Future] | None = None  # the expert being read
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert-reader")

    def __len__(self) -> int:
        return self.source.num_experts

    def __iter__(self) -> Iterator[nn.Layer]:
        """Experts in memory, and an AbsentExpert in the place of each other."""
        return iter([self._resident.get(k) or AbsentExpert(k) for k in range(len(self))])

    def __getitem__(self, index: int) -> Expert:
        if index != self._current:
            self._visit(index)
        return self._resident[index]

    @property
    def resident(self) -> list[int]:
        """Numbers of the experts in memory."""
        return sorted(self._resident)

    @contextlib.contextmanager
    def expecting(self, indices: Sequence[int]) -> Iterator[ResidencyRecord]:
        """Calls of these experts will come in this order; the first is read at once, in the background."""
        self._plan = [index for index, _ in groupby(indices)]
        self._position, self._current = -1, None
        self.record = ResidencyRecord()
        self._note_memory()
        self._read_ahead()
        try:
            yield self.record
        finally:
            self._plan, self._position, self._current = [], -1, None
            if self._coming is not None:  # the trajectory ended before its plan
                self._settle()  # if it failed, nobody came to it; the next visit will tell

    def _visit(self, index: int) -> None:
        """Makes `index` the current expert and starts reading the next one."""
        if index in self._plan[self._position + 1 :]:
            self._position = self._plan.index(index, self._position + 1)
        self._current = None
        if self._coming is not None and self._coming[1].done():
            self._settle(raising=self._coming[0] == index)
        self.record.visits.append(index)
        if index in self._resident:
            self.record.hits += 1
        else:
            self.record.stalls += 1
            started = time.perf_counter()
            self._wait_for(index)
            self.record.stall_seconds += time.perf_counter() - started
        self._resident[index] = self._resident.pop(index)
        self._current = index
        self._read_ahead()

    def _wait_for(self, index: int) -> None:
        if self._coming is not None and self._coming[0] != index:
            self._settle()  # its memory is not free before it is there
        if self._coming is None:
            self._start_reading(index)
        self._settle(raising=True)

    def _read_ahead(self) -> None:
        """Starts reading the next expert of the plan that is not there, unless all memory is needed before it."""
        missing = next((k for k in self._plan[self._position + 1 :] if k not in self._resident), None)
        if missing is None or self._coming is not None or (self.max_resident == 1 and self._current is not None):
            return
        if len(self._resident) < self.max_resident or self._next_use(self._victim()) > self._next_use(missing):
            self._start_reading(missing)

    def _start_reading(self, index: int) -> None:
        retired = self._resident.pop(self._victim()) if len(self._resident) == self.max_resident else None
        self._coming = index, self._reader.submit(self._read, index, retired)
        self.record.loads.append(index)
        self._note_memory(index)

    def _note_memory(self, *coming: int) -> None:
        held = [*self._resident, *coming]
        self.record.peak_experts = max(self.record.peak_experts, len(held))
        self.record.peak_bytes = max(self.record.peak_bytes, sum(map(self.source.nbytes, held)))

    def _read(self, index: int, retired: Expert | None) -> tuple[Expert, float]:
        started = time.perf_counter()
        return self.source.load(index, retired), time.perf_counter() - started

    def _settle(self, raising: bool = False) -> None:
        """Waits for the expert being read and puts it among the others; drops one that failed unless `raising`."""
        (index, future), self._coming = self._coming, None
        if future.exception() is None:
            self._resident[index], seconds = future.result()
            self.record.load_seconds += seconds
        elif raising:
            raise future.exception()

    def _victim(self) -> int:
        """The expert in memory, other than the current one, that is needed last."""
        return max((k for k in self._resident if k != self._current), key=self._next_use)

    def _next_use(self, index: int) -> float:
        """Visits until `index` is needed, if the plan comes again after its end (the next picture's will be alike)."""
        coming = self._plan[self._position + 1 :] + self._plan
        return coming.index(index) if index in coming else float("inf")


def check_max_resident(max_resident: int, num_experts: int) -> None:
    """ValueError unless max_resident is a whole number from 1 to num_experts."""
    whole = isinstance(max_resident, int) and not isinstance(max_resident, bool)
    if not whole or not 1 <= max_resident <= num_experts:
        raise ValueError(f"max_resident_experts must be a whole number from 1 to {num_experts}, got {max_resident!r}")


def load_resident_unet(
    folder: str | os.PathLike, max_resident_experts: int, paddle_dtype: paddle.dtype | str | None = None
) -> MoDEUNet2DConditionModel:
    """The MoDE model of a folder with at most `max_resident_experts` of its experts in memory, in eval mode."""
    model = MoDEUNet2DConditionModel.without_experts(folder)
    check_max_resident(max_resident_experts, model.num_experts)
    source = DygraphExperts(folder, max_resident_experts, paddle_dtype)
    model.experts = ResidentExperts(source, max_resident_experts)
    model.eval()
    return model


def resident_exported_unet(
    folder: str | os.PathLike, max_resident_experts: int, backend: str = "onednn", threads: int | None = None
) -> MoDEUNet2DConditionModel:
    """The mixture of an export bundle with at most `max_resident_experts` of its experts in memory."""
    source = ExportedExperts(folder, backend, threads)
    model = MoDEUNet2DConditionModel(**source.manifest.components["unet"], experts=[])
    model.experts = ResidentExperts(source, max_resident_experts)
    model.eval()
    return model


def _weights_file(folder: Path) -> Path:
    file = folder / PADDLE_SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: experts are streamed from safetensors, save the model as such")
    return file


def _set_weights(file: Path, parameters: dict[str, paddle.Tensor]) -> None:
    """Gives parameters on any device and of any dtype the values of a file."""
    with safe_open(str(file), framework="np") as weights:
        for name, parameter in parameters.items():
            value = paddle.to_tensor(weights.get_tensor(name), place=parameter.place)
            parameter.set_value(value.cast(parameter.dtype))


def _copy_weights(file: Path, parameters: dict[str, paddle.Tensor]) -> None:
    """The same for float32 on the CPU, read to where the parameters are. ValueError: the file ends early.

    With Paddle's own calls for each of some 300 tensors the denoiser, which computes at the same time, waits longer.
    A safetensors file is 8 bytes that tell the header's length, the header in JSON, and the numbers.
    """
    with open(file, "rb", buffering=0) as content:
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            parameter = parameters[name]
            memory = (ctypes.c_float * parameter.size).from_address(parameter.data_ptr())
            values = np.ctypeslib.as_array(memory)
            stored = values if entry["dtype"] == "F32" else np.empty(parameter.size, _STORED[entry["dtype"]])
            if content.readinto(stored) != stored.nbytes:
                raise ValueError(f"{file} ends within {name}: it was changed since the model was loaded")
            if stored is not values:
                np.copyto(values, stored)


def _check_tensors(file: Path, shapes: dict[str, list[int]]) -> None:
    """ValueError unless the file holds exactly these tensors; reads its header alone."""
    with safe_open(str(file), framework="np") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
        found = {name: each.get_shape() for name, each in slices.items()}
        kinds = {each.get_dtype(): name for name, each in slices.items()}
        kind = (weights.metadata() or {}).get("format", "pd")
    if kind != "pd":
        raise ValueError(f"{file} has format {kind!r}, experts are streamed from Paddle's ('pd') only")
    for dtype in kinds.keys() - _STORED.keys():
        known = " and ".join(_STORED)
        raise ValueError(f"{file}: {kinds[dtype]} is stored as {dtype}, experts are streamed from {known}")
    for what, names in (("lacks", shapes.keys() - found.keys()), ("has unknown", found.keys() - shapes.keys())):
        if names:
            raise ValueError(f"{file} {what} {len(names)} tensors, the first is {min(names)!r}")
    for name, shape in shapes.items():
        if list(found[name]) != shape:
            raise ValueError(f"{file}: {name} has shape {list(found[name])}, the model needs {shape}")
