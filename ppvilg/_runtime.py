"""Process-wide settings of Paddle that are worth having before the first tensor."""

from __future__ import annotations

import os

STRIDE_FLAG = "FLAGS_use_stride_kernel"


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
