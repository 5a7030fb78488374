"""Weights stored smaller than they compute: float16, or int8 with one scale per output channel.

The graph widens them to float32 in its first operations, which Paddle Inference computes once, when it loads the graph
(constant folding): files are smaller, speed and memory stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import paddle
from paddle import nn

SMALLEST = 256  # elements; what is smaller, and every vector, stays float32


@contextlib.contextmanager
def stored_weights(layer: nn.Layer, kind: str) -> Iterator[None]:
    """While the block runs, `layer` keeps its matrices and kernels as `kind` and widens them when it is called."""
    taken = []
    try:
        if kind != "float32":
            for sublayer in layer.sublayers(include_self=True):
                weight = sublayer._parameters.get("weight")
                if weight is not None and weight.ndim > 1 and weight.size >= SMALLEST:
                    taken.append((sublayer, weight, _take(sublayer, weight, kind)))
        yield
    finally:
        for sublayer, weight, hook in taken:
            hook.remove()
            del sublayer._buffers["stored"]
            sublayer._buffers.pop("scale", None)
            sublayer.__dict__.pop("weight", None)
            sublayer._parameters["weight"] = weight


def _take(sublayer: nn.Layer, weight: paddle.Tensor, kind: str):
    """Puts buffers and a hook in the place of a weight."""
    del sublayer._parameters["weight"]
    # For those who ask before the layer is called. The weight itself would be traced into the graph.
    sublayer.__dict__["weight"] = SimpleNamespace(dtype=weight.dtype, shape=weight.shape)
    if kind == "float16":
        sublayer.register_buffer("stored", weight.detach().cast("float16"))
    else:
        quantised, scale = quantise(weight.detach(), _output_axis(sublayer))
        sublayer.register_buffer("stored", quantised)
        sublayer.register_buffer("scale", scale)
    return sublayer.register_forward_pre_hook(_widen)


def _widen(sublayer: nn.Layer, inputs) -> None:
    weight = sublayer.stored.cast("float32")
    if "scale" in sublayer._buffers:
        weight = weight * sublayer.scale
    sublayer.__dict__["weight"] = weight


def _output_axis(sublayer: nn.Layer) -> int:
    """Linear keeps (in, out); convolutions (out, in, h, w) and embeddings (rows, features) have it first."""
    return 1 if isinstance(sublayer, nn.Linear) else 0


def quantise(weight: paddle.Tensor, axis: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    """int8 values in [-127, 127] and float32 scales, one per index of `axis` and broadcast over the others."""
    others = [i for i in range(weight.ndim) if i != axis]
    scale = weight.abs().max(axis=others, keepdim=True).clip(min=1e-12) / 127
    return (weight / scale).round().cast("int8"), scale
