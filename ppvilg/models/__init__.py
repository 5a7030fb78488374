"""Mixture of denoising experts over stock ppdiffusers UNets, with key-weighted cross-attention."""

import ppvilg._needs_paddle  # noqa: F401

from .attention import KeyWeightedAttnProcessor
from .autoencoder import PatchAutoencoderKL, vae_scale_factor
from .bias import use_matmul_bias_gradients
from .routing import block_origins, expert_index, uniform_boundaries, validate_boundaries
from .unet import MoDEUNet2DConditionModel
from .upsampling import TileUpsample2D, use_tile_upsampling

__all__ = [
    "KeyWeightedAttnProcessor",
    "MoDEUNet2DConditionModel",
    "PatchAutoencoderKL",
    "TileUpsample2D",
    "block_origins",
    "expert_index",
    "uniform_boundaries",
    "use_matmul_bias_gradients",
    "use_tile_upsampling",
    "vae_scale_factor",
    "validate_boundaries",
]
