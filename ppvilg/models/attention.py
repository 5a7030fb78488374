"""Key-token attention: the weights W_j of ERNIE-ViLG 2.0 (section 2.2) on stock attention processors.

softmax(Q K^T / sqrt(d)) diag(W) V = softmax(Q K^T / sqrt(d)) (W * V), so only the value rows are scaled and the
attention map is never touched: fused attention kernels and exported graphs keep working.
"""

from __future__ import annotations

import paddle
from paddle import nn
from ppdiffusers.models.attention_processor import Attention

MAP_BYTES = 4 * 2**20  # of attention maps that a block of queries writes, so that they stay in a processor's cache


class _ScaledValues:
    """An `Attention` seen by its processor, with value rows (N, L, D) multiplied by weights (N, L)."""

    def __init__(self, attention: Attention, weights: paddle.Tensor):
        self._attention = attention
        self._weights = weights

    def __getattr__(self, name: str):
        return getattr(self._attention, name)

    def to_v(self, hidden_states: paddle.Tensor, *args) -> paddle.Tensor:
        value = self._attention.to_v(hidden_states, *args)  # (N, L, D)
        # at least in float32: bfloat16 holds no number between 1 and 1.0078, so that 1 + w_a would be one of them
        wide = paddle.float64 if value.dtype == paddle.float64 else paddle.float32
        scaled = value.cast(wide) * self._weights.cast(wide).unsqueeze(-1)  # (N, L, D)
        return scaled.cast(value.dtype)


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


def with_key_weights(processor):
    """A processor inside a KeyWeightedAttnProcessor, unless it takes the weights itself."""
    if isinstance(processor, (KeyWeightedAttnProcessor, QueryBlockAttnProcessor)):
        return processor
    return KeyWeightedAttnProcessor(processor)


class KeyWeightedAttention(Attention):
    """A stock `Attention` that keeps key-token weights whichever processor it is given, by whichever stock switch.

    An existing layer becomes one by its `__class__`; parameters and names stay.
    """

    def set_processor(self, processor, _remove_lora: bool = False) -> None:
        """Sets the processor that does the arithmetic."""
        super().set_processor(with_key_weights(processor), _remove_lora)


def named_attention(model: nn.Layer) -> dict[str, Attention]:
    """Attention layers of a model by the names that stock `attn_processors` have."""
    return {f"{name}.processor": layer for name, layer in model.named_sublayers() if isinstance(layer, Attention)}


def set_processors(model: nn.Layer, processor) -> None:
    """One processor for all attention layers, or a dict named as `named_attention`; ValueError: other names."""
    layers = named_attention(model)
    if isinstance(processor, dict) and processor.keys() != layers.keys():
        wrong = min(processor.keys() ^ layers.keys())
        raise ValueError(f"processors must be named as the {len(layers)} attention layers, {wrong!r} is not in both")
    for name, layer in layers.items():
        layer.set_processor(processor[name] if isinstance(processor, dict) else processor)


class _SharedContext:
    """An `Attention` seen by its processor, whose keys and values are computed once for all blocks of queries."""

    def __init__(self, attention: Attention, context: paddle.Tensor):
        self._attention = attention
        self._key, self._value = attention.to_k(context), attention.to_v(context)  # (N, L, D)
        self._by_head: dict[int, paddle.Tensor] = {}

    def __getattr__(self, name: str):
        return getattr(self._attention, name)

    def to_k(self, hidden_states: paddle.Tensor, *args) -> paddle.Tensor:
        return self._key

    def to_v(self, hidden_states: paddle.Tensor, *args) -> paddle.Tensor:
        return self._value

    def head_to_batch_dim(self, tensor: paddle.Tensor, *args, **kwargs) -> paddle.Tensor:
        if tensor is not self._key and tensor is not self._value:
            return self._attention.head_to_batch_dim(tensor, *args, **kwargs)
        if id(tensor) not in self._by_head:
            self._by_head[id(tensor)] = self._attention.head_to_batch_dim(tensor, *args, **kwargs)
        return self._by_head[id(tensor)]  # (N, heads, L, D / heads)


class QueryBlockAttnProcessor:
    """A processor whose queries of self-attention come in `blocks` equal parts: the same result from small maps.

    For a CPU, where no fused kernel does it: a map of 4096 x 4096 for eight heads is 512 MiB that are written, read by
    the softmax, written and read again. Only for layers that it `fits`. ValueError: blocks is below 1.
    """

    def __init__(self, inner, blocks: int):
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        self.inner = inner
        self.blocks = blocks

    @staticmethod
    def fits(attn: Attention) -> bool:
        """Whether the layer's queries are independent of each other: no norm, residual or reshape in its processor."""
        return not any((attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.residual_connection))

    def __call__(
        self,
        attn: Attention,
        hidden_states: paddle.Tensor,
        encoder_hidden_states: paddle.Tensor | None = None,
        attention_mask: paddle.Tensor | None = None,
        key_token_weights: paddle.Tensor | None = None,
        **kwargs,
    ) -> paddle.Tensor:
        """Attention of (N, S, D), S a multiple of `blocks`, over itself; over text (N, L, D_text) in one piece."""
        if encoder_hidden_states is not None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, key_token_weights, **kwargs)
        shared = _SharedContext(attn, hidden_states)
        parts = hidden_states.reshape([0, self.blocks, -1, hidden_states.shape[-1]]).unbind(1)  # blocks x (N, S / b, D)
        done = [self.inner(shared, part, hidden_states, attention_mask, **kwargs) for part in parts]
        return paddle.concat(done, axis=1)  # (N, S, D)


def query_blocks(tokens: int, heads: int, multiple: int) -> int:
    """How many blocks keep the float32 maps of one picture below MAP_BYTES; a power of two that divides `multiple`.

    tokens: of the layer at the model's own size; multiple: divides the tokens at every size.
    """
    blocks = 1
    while 4 * heads * tokens * tokens / blocks > MAP_BYTES and multiple % (2 * blocks) == 0:
        blocks *= 2
    return blocks
