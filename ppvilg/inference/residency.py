"""Which experts are in memory: n experts where `max_resident` fit, each read just before the trajectory needs it.

The timesteps of a trajectory are known before its first step, and so is the order of its experts. While one expert
computes, a background thread reads the next; the expert that is needed last gives up its memory to it (Belady 1966).
`ResidentExperts` takes the place of `unet.experts`; routing, pipeline and denoising loop do not know.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import paddle
from paddle import nn

from ppvilg.models.unet import AbsentExpert, MoDEUNet2DConditionModel

from .expert_sources import DygraphExperts, Expert, ExpertSource, ExportedExperts
from .manifest import Manifest
from .options import BackendOptions
from .runtime import Backend, open_bundle


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

    def reload(self) -> None:
        """Reads the experts that are in memory again, in their places; none may be at work."""
        if self._coming is not None:
            self._settle()
        for index, expert in self._resident.items():
            self._resident[index] = self._reader.submit(self.source.load, index, expert).result()

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
    folder: str | os.PathLike, max_resident_experts: int, backend: Backend = None, threads: int | None = None
) -> MoDEUNet2DConditionModel:
    """The mixture of an export bundle with at most `max_resident_experts` of its experts in memory."""
    manifest, options = open_bundle(folder, backend, threads)
    return assemble_resident_unet(Path(folder), manifest, options, max_resident_experts)


def assemble_resident_unet(
    folder: Path, manifest: Manifest, options: BackendOptions, max_resident_experts: int
) -> MoDEUNet2DConditionModel:
    """As `resident_exported_unet`, of a bundle that was opened before."""
    model = MoDEUNet2DConditionModel(**manifest.components["unet"], experts=[])
    model.experts = ResidentExperts(ExportedExperts(folder, manifest, options), max_resident_experts)
    model.eval()
    return model
