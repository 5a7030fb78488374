"""Key-token attention: the weights W_j of ERNIE-ViLG 2.0 (section 2.2) on stock attention processors.

softmax(Q K^T / sqrt(d)) diag(W) V = softmax(Q K^T / sqrt(d)) (W * V), so only the value rows are scaled and the
attention map is never touched: fused attention kernels and exported graphs keep working.
"""

from __future__ import annotations

import paddle
from ppdiffusers.models.attention_processor import Attention


class _ScaledValues:
    """An `Attention` seen by its processor, with value rows (N, L, D) multiplied by weights (N, L)."""

    def __init__(self, attention: Attention, weights: paddle.Tensor):
        self._attention = attention
        self._weights = weights

    def __getattr__(self, name: str):
        return getattr(self._attention, name)

    def to_v(self, hidden_states: paddle.Tensor, *args) -> paddle.Tensor:
        value = self._attention.to_v(hidden_states, *args)  # (N, L, D)
        return value * self._weights.unsqueeze(-1).cast(value.dtype)  # (N, L, D)


class KeyWeightedAttnProcessor:
    """A stock attention processor whose cross-attention values may be scaled per text token.

    `stock` is the processor the layer had before (on a CPU `AttnProcessor`); it does all the arithmetic, so without
    weights, and in self-attention, the result is the stock result bit for bit.
    """

    def __init__(self, stock):
        self.stock = stock

    def __call__(
        self,
        attn: Attention,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        attention_mask: paddle.Tensor | None = None,
        key_token_weights: paddle.Tensor | None = None,
        **kwargs,
    ) -> paddle.Tensor:
        """Attention of (N, S, D) over itself or over text (N, L, D_text); `key_token_weights` is (N, L) or None."""
        if encoder_hidden_states is not None and key_token_weights is not None:
            attn = _ScaledValues(attn, key_token_weights)
        return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
