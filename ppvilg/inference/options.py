"""Back ends and how they are told to run: one frozen object, from Python and from the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Engine:
    """A library that runs graphs on one kind of device, and the precisions it computes in."""

    library: str  # its module in ppvilg.inference.engines
    device: str  # "cpu" or "gpu"
    precisions: tuple[str, ...] = ("float32",)


ENGINES = {
    "cpu": Engine("paddle_inference", "cpu"),
    "onednn": Engine("paddle_inference", "cpu", ("float32", "bfloat16")),
    "gpu": Engine("paddle_inference", "gpu", PRECISIONS),
    "onnxruntime": Engine("onnx_runtime", "cpu"),
    "onnxruntime_cuda": Engine("onnx_runtime", "gpu"),
    "onnxruntime_tensorrt": Engine("onnx_runtime", "gpu", PRECISIONS),
    "openvino": Engine("openvino", "cpu", ("float32", "bfloat16")),
}


def _full_name(engine: str, precision: str) -> str:
    return engine if precision == "float32" else f"{engine}_{precision}"


BACKENDS = tuple(_full_name(name, precision) for name, engine in ENGINES.items() for precision in engine.precisions)


@dataclass(frozen=True)
class BackendOptions:
    """A back end and its settings; what does not concern it is refused.

    backend: one of BACKENDS. device_id: number of the GPU. threads: of the CPU (None: OMP_NUM_THREADS, else all cores).
    memory_pool_mib: what Paddle Inference takes of a GPU's memory at the start. memory_limit_mib: what ONNX Runtime may
    take of it (None: all). cache_folder: where compiled graphs are kept (None: the user's cache folder). shape_ranges:
    for TensorRT, {input: (smallest, usual, largest) shape}; inputs of all parts together.

    Raises:
        ValueError: a value is out of its range, or the back end has no such setting.
    """

    backend: str = "onednn"
    device_id: int = 0
    threads: int | None = None
    memory_pool_mib: int = 256
    memory_limit_mib: int | None = None
    cache_folder: str | os.PathLike | None = None
    shape_ranges: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown backend {self.backend!r}, choose one of {', '.join(BACKENDS)}")
        for name, lowest in (("device_id", 0), ("threads", 1), ("memory_pool_mib", 1), ("memory_limit_mib", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= lowest):
                raise ValueError(f"{name} must be a whole number from {lowest}, got {value!r}")
        for each in fields(self)[1:]:
            value = getattr(self, each.name)
            default = {} if each.name == "shape_ranges" else each.default
            if value != default and not self._takes(each.name):
                raise ValueError(f"backend {self.backend!r} has no setting {each.name}, got {value!r}")
        for name, shapes in self.shape_ranges.items():
            ranks = {len(shape) for shape in shapes}
            if len(shapes) != 3 or len(ranks) != 1 or any(not a <= b <= c for a, b, c in zip(*shapes)):
                raise ValueError(f"shape_ranges[{name!r}] must be smallest, usual and largest shape, got {shapes!r}")

    def _takes(self, setting: str) -> bool:
        takers = {
            "device_id": self.device == "gpu",
            "threads": self.device == "cpu",
            "memory_pool_mib": self.engine == "gpu",
            "memory_limit_mib": self.engine.startswith("onnxruntime_"),
            "cache_folder": self.library == "openvino" or self.engine == "onnxruntime_tensorrt",
            "shape_ranges": self.engine == "onnxruntime_tensorrt",
        }
        return takers[setting]

    @property
    def precision(self) -> str:
        """What it computes in: "float32", "float16" or "bfloat16"."""
        return next((each for each in PRECISIONS if self.backend.endswith(f"_{each}")), "float32")

    @property
    def engine(self) -> str:
        """Its name in ENGINES: the back end without its precision."""
        return self.backend.removesuffix(f"_{self.precision}")

    @property
    def library(self) -> str:
        """The library that runs it."""
        return ENGINES[self.engine].library

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""
        return ENGINES[self.engine].device

    @property
    def num_threads(self) -> int:
        """Threads of the CPU."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        from_environment = int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))
        return self.threads or from_environment

    @property
    def cache(self) -> Path | None:
        """Folder for compiled graphs; None where none can be written, and each start compiles again."""
        return Path(self.cache_folder) if self.cache_folder is not None else user_cache_folder(self.library)


def as_options(backend: str | BackendOptions, threads: int | None = None) -> BackendOptions:
    """A back end's name as options; options as they are (`threads` then has to be among them)."""
    if isinstance(backend, BackendOptions):
        if threads is not None:
            raise ValueError("threads must be in the options of the back end when those are given")
        return backend
    options = BackendOptions(backend)
    return options if threads is None or options.device == "gpu" else BackendOptions(backend, threads=threads)


def parse_shape_range(text: str) -> tuple[str, list[list[int]]]:
    """`sample=1x4x64x64:2x4x64x64:4x4x64x64` as (input, [smallest, usual, largest])."""
    name, _, shapes = text.partition("=")
    if not name or not re.fullmatch(r"\d+(x\d+)*(:\d+(x\d+)*){2}", shapes):
        raise ValueError(f"a shape range is NAME=SMALLEST:USUAL:LARGEST with sizes joined by x, got {text!r}")
    return name, [[int(size) for size in shape.split("x")] for shape in shapes.split(":")]


def user_cache_folder(name: str) -> Path | None:
    """`name` in ppvilg's part of the user's cache folder, made if need be; None where none can be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "ppvilg" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
