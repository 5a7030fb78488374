"""Which back ends there are, and whether this machine has one."""

from __future__ import annotations

import os
from pathlib import Path

import paddle

BACKENDS = ("cpu", "onednn", "onednn_bfloat16", "gpu")
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # as /proc/cpuinfo calls them


def require_backend(backend: str) -> None:
    """ValueError, with what to do, unless this machine and this Paddle have the back end."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}, choose one of {', '.join(BACKENDS)}")
    if backend == "onednn_bfloat16" and not has_bfloat16_instructions():
        raise ValueError(
            f"backend {backend!r} needs a processor with {' or '.join(BFLOAT16_INSTRUCTIONS)}; without, it is many "
            "times slower than float32: use backend 'onednn'"
        )
    if backend == "gpu":
        if not paddle.is_compiled_with_cuda():
            raise ValueError(
                f"backend {backend!r} needs paddlepaddle-gpu, installed is paddlepaddle {paddle.__version__} for CPUs: "
                "install paddlepaddle-gpu from Paddle's index, or use backend 'onednn'"
            )
        if paddle.device.cuda.device_count() == 0:
            raise ValueError(f"backend {backend!r} needs an NVIDIA GPU and its driver: none was found")


def has_bfloat16_instructions(cpuinfo: str | os.PathLike = "/proc/cpuinfo") -> bool:
    """Whether this processor multiplies bfloat16 numbers by itself; False where that cannot be told."""
    try:
        words = Path(cpuinfo).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return any(name in words for name in BFLOAT16_INSTRUCTIONS)
