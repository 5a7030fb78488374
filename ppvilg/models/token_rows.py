"""Rows of new tokens at the end of a text encoder's token embedding: trained alone, or put in and taken out."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F


class LearnedRows(nn.Layer):
    """A token embedding that stays as it is, followed by rows that are trained.

    base: Embedding of V tokens, whose gradient is off from now on. rows: (k, D) of the tokens V to V + k - 1.
    """

    def __init__(self, base: nn.Embedding, rows: np.ndarray) -> None:
        super().__init__()
        self.base = base
        self.base.weight.stop_gradient = True
        self.rows = self.create_parameter(
            list(rows.shape), dtype=base.weight.dtype, default_initializer=nn.initializer.Assign(rows)
        )

    @property
    def weight(self) -> paddle.Tensor:
        """Of the base, (V, D)."""
        return self.base.weight

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Token ids (N, L) to embeddings (N, L, D)."""
        count = self.base.weight.shape[0]
        old = self.base(ids.clip(max=count - 1))  # (N, L, D)
        new = F.embedding((ids - count).clip(min=0), self.rows)  # (N, L, D)
        return paddle.where((ids >= count).unsqueeze(-1), new, old)  # (N, L, D)


def append_rows(text_encoder: nn.Layer, rows: np.ndarray) -> None:
    """Puts rows (k, D) behind those of the token embedding of a paddlenlp model."""
    weight = text_encoder.get_input_embeddings().weight
    new = paddle.to_tensor(np.asarray(rows, np.float32), place=weight.place).cast(weight.dtype)
    _set_table(text_encoder, paddle.concat([weight.detach(), new]))  # (V + k, D)


def drop_rows(text_encoder: nn.Layer, count: int) -> None:
    """Takes the last `count` rows of the token embedding away; the others stay, bit for bit."""
    weight = text_encoder.get_input_embeddings().weight
    _set_table(text_encoder, weight.detach()[: weight.shape[0] - count].clone())


def _set_table(text_encoder: nn.Layer, table: paddle.Tensor) -> None:
    embedding = text_encoder.get_input_embeddings()
    weight = paddle.base.framework.EagerParamBase.from_tensor(table, trainable=not embedding.weight.stop_gradient)
    embedding.weight = weight
    embedding._num_embeddings = text_encoder.config.vocab_size = len(table)
