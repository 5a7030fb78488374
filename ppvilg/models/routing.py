"""Mixture of denoising experts: which expert owns which timesteps (ERNIE-ViLG 2.0, section 2.3).

`boundaries` is [b_0 = 0, b_1, ..., b_n = T]: expert k owns the timesteps b_k <= t < b_{k+1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

import numpy as np
import paddle


def uniform_boundaries(num_experts: int, num_train_timesteps: int) -> list[int]:
    """Boundaries of `num_experts` blocks as equal as whole timesteps allow: [0, ..., T]."""
    if not 1 <= num_experts <= num_train_timesteps:
        raise ValueError(
            f"num_experts must be from 1 to num_train_timesteps ({num_train_timesteps}), got {num_experts}"
        )
    return [round(k * num_train_timesteps / num_experts) for k in range(num_experts + 1)]


def validate_boundaries(boundaries: Sequence[int], num_experts: int, num_train_timesteps: int) -> list[int]:
    """The boundaries as a list of int; ValueError names every gap, overlap or miscount."""
    values = list(boundaries)
    if any(not isinstance(value, (int, np.integer)) or isinstance(value, bool) for value in values):
        raise ValueError(f"boundaries must be whole timesteps, got {values}")
    values = [int(value) for value in values]
    faults = []
    if len(values) != num_experts + 1:
        faults.append(f"{num_experts} experts need {num_experts + 1} boundaries, got {len(values)}")
    if values and values[0] != 0:
        faults.append(f"gap: timesteps below {values[0]} belong to no expert (the first boundary must be 0)")
    if values and values[-1] < num_train_timesteps:
        faults.append(f"gap: timesteps {values[-1]} to {num_train_timesteps - 1} belong to no expert")
    if values and values[-1] > num_train_timesteps:
        faults.append(f"the last boundary {values[-1]} lies above num_train_timesteps = {num_train_timesteps}")
    for k, (low, high) in enumerate(pairwise(values)):
        if high == low:
            faults.append(f"expert {k} owns no timestep (boundaries {low}, {high})")
        elif high < low:
            faults.append(f"overlap: boundary {high} follows {low}, boundaries must ascend")
    if faults:
        raise ValueError(f"boundaries {values} do not cut [0, {num_train_timesteps}) into blocks: {'; '.join(faults)}")
    return values


def block_origins(boundaries: Sequence[int], source_boundaries: Sequence[int]) -> list[int]:
    """For every block, the expert of a source with other boundaries that owns the block's middle: whom to copy."""
    return [expert_index((low + high) // 2, source_boundaries) for low, high in pairwise(boundaries)]


def expert_index(timestep, boundaries: Sequence[int]):
    """The routing function: number of the expert that owns each timestep.

    A Python or numpy number gives an int, a numpy array an int64 array, a paddle tensor an int64 tensor of the same
    shape. Timesteps may be fractional (Euler schedulers). ValueError for timesteps outside [0, T).
    """
    if isinstance(timestep, paddle.Tensor):
        return paddle.to_tensor(np.asarray(expert_index(timestep.numpy(), boundaries), dtype=np.int64))
    values = np.asarray(timestep)
    outside = ~((values >= boundaries[0]) & (values < boundaries[-1]))
    if outside.any():
        raise ValueError(f"timestep {values[outside].flat[0]} lies outside [{boundaries[0]}, {boundaries[-1]})")
    index = np.searchsorted(np.asarray(boundaries), values, side="right").astype(np.int64) - 1
    return int(index) if isinstance(timestep, Real) else index
