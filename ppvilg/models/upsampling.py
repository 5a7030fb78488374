"""Nearest upsampling by tiling: the values of `interpolate(scale_factor=2)`, faster and exportable everywhere."""

from __future__ import annotations

import paddle
from paddle import nn
from ppdiffusers.models.resnet import Upsample2D


class TileUpsample2D(Upsample2D):
    """`Upsample2D` that doubles height and width by `tile` (oneDNN and ONNX cannot lower nearest `interpolate`)."""

    def forward(self, hidden_states: paddle.Tensor, output_size=None, scale: float = 1.0) -> paddle.Tensor:
        """(N, C, h, w) -> (N, C_out, 2h, 2w); an explicit `output_size` goes the stock way."""
        if output_size is not None or self.use_conv_transpose or self.data_format != "NCHW":
            return Upsample2D.forward(self, hidden_states, output_size, scale)
        x = hidden_states.unsqueeze(3).unsqueeze(5)  # (N, C, h, 1, w, 1)
        x = paddle.tile(x, [1, 1, 1, 2, 1, 2]).flatten(2, 3).flatten(3, 4)  # (N, C, 2h, 2w)
        if not self.use_conv:
            return x
        return self.conv(x) if self.name == "conv" else self.Conv2d_0(x)


def use_tile_upsampling(model: nn.Layer) -> None:
    """Turns every stock `Upsample2D` inside `model` into a `TileUpsample2D`; weights and names stay."""
    for layer in model.sublayers():
        if type(layer) is Upsample2D:
            layer.__class__ = TileUpsample2D
