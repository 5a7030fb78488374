"""Draws training and validation timesteps, on the whole range or inside one expert's block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.stats import norm

WEIGHTING_SCHEMES = ("none", "logit_normal")


class TimestepSampler:
    """Timesteps in [0, T); with `boundaries` [0, ..., T] also inside block k = [b_k, b_{k+1}).

    weighting_scheme: "none" draws them uniformly, "logit_normal" with logit(t / T) ~ N(logit_mean, logit_std^2), of
    which a block keeps its part (Esser et al. 2024, section 3.1). A mean above 0 favours noisy timesteps, where what
    stands where is decided.
    """

    def __init__(
        self,
        num_train_timesteps: int,
        boundaries: Sequence[int] | None = None,
        weighting_scheme: str = "none",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
    ):
        if weighting_scheme not in WEIGHTING_SCHEMES:
            raise ValueError(f"weighting_scheme must be one of {WEIGHTING_SCHEMES}, got {weighting_scheme!r}")
        if not logit_std > 0:
            raise ValueError(f"logit_std must be positive, got {logit_std}")
        self.boundaries = [0, num_train_timesteps] if boundaries is None else list(boundaries)
        ascending = all(low < high for low, high in pairwise(self.boundaries))
        if not ascending or self.boundaries[0] != 0 or self.boundaries[-1] != num_train_timesteps:
            raise ValueError(f"boundaries must ascend from 0 to {num_train_timesteps}, got {self.boundaries}")
        self.cumulated = None  # (T + 1,) float64, share of the draws below each timestep; None: uniform
        if weighting_scheme == "logit_normal":
            edges = np.arange(1, num_train_timesteps) / num_train_timesteps
            inner = norm.cdf((np.log(edges / (1.0 - edges)) - logit_mean) / logit_std)
            self.cumulated = np.concatenate([[0.0], inner, [1.0]])

    def block(self, expert: int | None = None) -> tuple[int, int]:
        """(first timestep, one past the last) of an expert's block, or of everything for None."""
        if expert is None:
            return self.boundaries[0], self.boundaries[-1]
        if not 0 <= expert < len(self.boundaries) - 1:
            raise ValueError(f"expert must be from 0 to {len(self.boundaries) - 2}, got {expert}")
        return self.boundaries[expert], self.boundaries[expert + 1]

    def sample(self, n: int, rng: np.random.Generator, expert: int | None = None) -> np.ndarray:
        """`n` timesteps (int64) of the block of `expert`, or of everything for None."""
        low, high = self.block(expert)
        if self.cumulated is not None:
            heights = rng.uniform(self.cumulated[low], self.cumulated[high], size=n)
            drawn = np.searchsorted(self.cumulated, heights, side="right") - 1
            return np.clip(drawn, low, high - 1).astype(np.int64)  # rounding of the last height
        return rng.integers(low, high, size=n, dtype=np.int64)

    def fixed(self, n: int, expert: int | None = None) -> np.ndarray:
        """`n` timesteps (int64) at the middles of `n` equal parts of the block: the same ones at every validation."""
        low, high = self.block(expert)
        return np.floor(low + (np.arange(n) + 0.5) * (high - low) / n).astype(np.int64)
