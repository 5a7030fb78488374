"""Process-wide settings of Paddle that are worth having before the first tensor."""

from __future__ import annotations

import os
from pathlib import Path

STRIDE_FLAG = "FLAGS_use_stride_kernel"
MKL_CODE_PATH = "MKL_DEBUG_CPU_TYPE"


def use_avx2_on_amd(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Let Paddle's matrix library use AVX2 on AMD processors; returns whether this process asked for it.

    Paddle ships the MKL of 2019, which takes SSE code wherever the maker is not Intel, at a quarter of the speed. The
    variable is read at the first matrix product, so importing ppvilg before computing is early enough; a value in the
    environment wins. PyTorch and NumPy do not read it.
    """
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, where Paddle does not come with this library
        return False
    if MKL_CODE_PATH not in os.environ and "AuthenticAMD" in text and " avx2" in text:
        os.environ[MKL_CODE_PATH] = "5"  # the AVX2 path
        return True
    return False


def prepare_cpu() -> bool:
    """Turn Paddle's stride kernels off when this process computes on the CPU; returns whether they are off now.

    With them every reshape or transpose is a view that the next matmul copies; without, attention forward and backward
    takes less than half the time. Call it at the top of a program, before the first tensor is made: Paddle refuses
    strided tensors made earlier. GPUs keep Paddle's default, and FLAGS_use_stride_kernel in the environment wins.
    """
    import paddle

    if STRIDE_FLAG not in os.environ and paddle.get_device() == "cpu":
        paddle.set_flags({STRIDE_FLAG: False})
    return not paddle.get_flags([STRIDE_FLAG])[STRIDE_FLAG]
