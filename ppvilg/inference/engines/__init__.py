"""The libraries that run a graph: one module each, with `require` (is it here?) and `Graph` (tensors in, tensors out).

A module imports its library only when it is used: onnxruntime and openvino are extras.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from ..options import BackendOptions

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # as /proc/cpuinfo calls them


def engine_module(options: BackendOptions) -> ModuleType:
    """The module of a back end's library."""
    return importlib.import_module(f"{__name__}.{options.library}")


def require_backend(options: BackendOptions) -> None:
    """ValueError, with what to do, unless this machine has the back end."""
    if options.device == "cpu" and options.precision == "bfloat16" and not has_bfloat16_instructions():
        raise ValueError(
            f"backend {options.backend!r} needs a processor with {' or '.join(BFLOAT16_INSTRUCTIONS)}; without, it is "
            f"many times slower than float32: use backend {options.engine!r}"
        )
    engine_module(options).require(options)


def require_package(name: str, extra: str, backend: str) -> None:
    """ValueError with the pip command unless a package is installed."""
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"backend {backend!r} needs {name}, which is not installed: pip install 'ppvilg[{extra}]'")


def has_bfloat16_instructions(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> bool:
    """Whether this processor multiplies bfloat16 numbers by itself; False where that cannot be told."""
    try:
        words = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return any(name in words for name in BFLOAT16_INSTRUCTIONS)
