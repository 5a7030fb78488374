"""Where the loop starts, and what inpainting keeps."""

from __future__ import annotations

from typing import NamedTuple

import paddle


class Canvas(NamedTuple):
    """Where the loop starts, and what inpainting keeps."""

    timesteps: list[paddle.Tensor]
    latents: paddle.Tensor  # (N, C, h, w), as noisy as timesteps[0]
    noise: paddle.Tensor | None = None  # (N, C, h, w)
    pixels: paddle.Tensor | None = None  # (N, 3, H, W) in [0, 1], the given picture
    known: paddle.Tensor | None = None  # (N, C, h, w), its latents
    mask: paddle.Tensor | None = None  # (N, 1, H, W), 1 = repaint
    latent_mask: paddle.Tensor | None = None  # (N, 1, h, w), 1 = repaint
