"""Draws training and validation timesteps, on the whole range or inside one expert's block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


class TimestepSampler:
    """Timesteps in [0, T); with `boundaries` [0, ..., T] also inside block k = [b_k, b_{k+1})."""

    def __init__(self, num_train_timesteps: int, boundaries: Sequence[int] | None = None):
        self.boundaries = [0, num_train_timesteps] if boundaries is None else list(boundaries)
        ascending = all(low < high for low, high in pairwise(self.boundaries))
        if not ascending or self.boundaries[0] != 0 or self.boundaries[-1] != num_train_timesteps:
            raise ValueError(f"boundaries must ascend from 0 to {num_train_timesteps}, got {self.boundaries}")

    def block(self, expert: int | None = None) -> tuple[int, int]:
        """(first timestep, one past the last) of an expert's block, or of everything for None."""
        if expert is None:
            return self.boundaries[0], self.boundaries[-1]
        if not 0 <= expert < len(self.boundaries) - 1:
            raise ValueError(f"expert must be from 0 to {len(self.boundaries) - 2}, got {expert}")
        return self.boundaries[expert], self.boundaries[expert + 1]

    def sample(self, n: int, rng: np.random.Generator, expert: int | None = None) -> np.ndarray:
        """`n` timesteps (int64), uniform over the block of `expert`, or over everything for None."""
        low, high = self.block(expert)
        return rng.integers(low, high, size=n, dtype=np.int64)

    def fixed(self, n: int, expert: int | None = None) -> np.ndarray:
        """`n` timesteps (int64) at the middles of `n` equal parts of the block: the same ones at every validation."""
        low, high = self.block(expert)
        return np.floor(low + (np.arange(n) + 0.5) * (high - low) / n).astype(np.int64)
