"""FreeU (arXiv 2309.11497) of ppdiffusers with a Fourier filter that runs: the stock one fails on every Paddle 3."""

from __future__ import annotations

import numpy as np
import paddle
from ppdiffusers.utils import paddle_utils


def fourier_filter(x_in: paddle.Tensor, threshold: int, scale: float) -> paddle.Tensor:
    """Features (N, C, H, W) whose frequencies -threshold <= f < threshold along both sides are multiplied by scale."""
    wide = paddle.float64 if x_in.dtype == paddle.float64 else paddle.float32
    rows, columns = (np.abs(np.fft.fftfreq(side, 1 / side) + 0.5) < threshold for side in x_in.shape[2:])
    gain = paddle.to_tensor(np.where(np.outer(rows, columns), scale, 1.0)).cast(wide)  # (H, W)
    spectrum = paddle.fft.fft2(x_in.cast(wide)) * gain  # (N, C, H, W)
    return paddle.fft.ifft2(spectrum).real().cast(x_in.dtype)


def mend_freeu() -> None:
    """Gives ppdiffusers' FreeU this filter."""
    paddle_utils.fourier_filter = fourier_filter
