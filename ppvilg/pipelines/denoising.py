"""A batch of pictures on its way from noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import paddle

from .canvas import Canvas
from .noise import NoiseSource


class Conditioning(NamedTuple):
    """What the denoiser is told about the prompts."""

    hidden_states: paddle.Tensor  # (N, L, D)
    key_token_weights: paddle.Tensor  # (N, L)


@dataclass
class Drawing:
    """A batch of pictures between prompt and decoder; `step` of canvas.timesteps are done."""

    canvas: Canvas
    latents: paddle.Tensor  # (N, C, h, w), as noisy as canvas.timesteps[step]
    positive: Conditioning
    negative: Conditioning
    scales: list[float]
    noise: NoiseSource
    eta: float
    callback: Callable | None
    step: int = 0


@contextlib.contextmanager
def _evaluating(*layers) -> Iterator[None]:
    """Puts layers in evaluation mode, and what was training back into training."""
    layers = [layer for layer in layers if isinstance(layer, paddle.nn.Layer)]  # not what stands in for an exported one
    training = [sublayer for layer in layers for sublayer in layer.sublayers(include_self=True) if sublayer.training]
    for sublayer in training:
        sublayer.training = False
    try:
        yield
    finally:
        for sublayer in training:
            sublayer.training = True
