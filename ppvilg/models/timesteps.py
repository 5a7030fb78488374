"""Timestep embeddings of a row that do not depend on how many rows there are."""

from __future__ import annotations

import paddle
from paddle import nn
from ppdiffusers.models.embeddings import Timesteps

VECTOR = 16  # numbers that the widest processors take at once


class WholeVectorTimesteps(Timesteps):
    """`Timesteps` whose sines are all computed in whole vectors.

    Paddle computes the numbers left over after the last whole vector by another function, which differs in the last
    bit; which numbers these are depends on the batch. Exported graphs, whose engines have their own arithmetic, keep
    the stock form.
    """

    def forward(self, timesteps: paddle.Tensor) -> paddle.Tensor:
        """(N,) -> (N, num_channels)."""
        if (self.num_channels // 2) % VECTOR == 0 or not paddle.in_dynamic_mode():
            return super().forward(timesteps)
        count = timesteps.shape[0]
        padding = timesteps[:1].expand([-count % VECTOR])
        return super().forward(paddle.concat([timesteps, padding]))[:count]


def use_whole_vectors(model: nn.Layer) -> None:
    """Turns every stock `Timesteps` inside `model` into a `WholeVectorTimesteps`."""
    for layer in model.sublayers():
        if type(layer) is Timesteps:
            layer.__class__ = WholeVectorTimesteps
