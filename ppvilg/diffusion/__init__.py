"""What is trained: timesteps to draw and the loss terms of one step."""

import ppvilg._needs_paddle  # noqa: F401

from .loss import DenoisingLoss, min_snr_weights
from .timesteps import TimestepSampler

__all__ = ["DenoisingLoss", "TimestepSampler", "min_snr_weights"]
