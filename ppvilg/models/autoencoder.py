"""Autoencoders: the stock AutoencoderKL, and one that works on small patches of pixels."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from ppdiffusers import AutoencoderKL, ModelMixin  # noqa: F401  (ModelMixin: how ppdiffusers recognises a component)
from ppdiffusers.configuration_utils import register_to_config
from ppdiffusers.models.autoencoder_kl import AutoencoderKLOutput
from ppdiffusers.models.vae import DiagonalGaussianDistribution

_INITIAL_LOG_VARIANCE = -6.0  # of the posterior: a code that starts good should not start drowned in noise


class PatchAutoencoderKL(AutoencoderKL):
    """AutoencoderKL on folded pixels: patch_size x patch_size pixels become channels before it and pixels after it.

    Takes and gives (N, 3, H, W) like the stock class; inside, in_channels = out_channels = 3 * patch_size^2. Levels at
    full resolution are what a small autoencoder spends most of its time on; a CPU trains this one five times as fast.
    linear_shortcut adds a linear map of each patch to its latent and one back to patch, which start as the principal
    components of the data (`initialize_shortcut`), so that the networks only have to learn what a linear code misses.

    Raises:
        ValueError: in_channels or out_channels do not fit patch_size; linear_shortcut with more than one level.
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
        linear_shortcut: bool = False,
    ):
        folded = 3 * patch_size**2
        if in_channels != folded or out_channels != folded:
            raise ValueError(
                f"in_channels={in_channels}, out_channels={out_channels}: patch_size={patch_size} needs both {folded}"
            )
        if linear_shortcut and len(block_out_channels) > 1:
            raise ValueError(f"linear_shortcut needs one level, block_out_channels={block_out_channels} has more")
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
        if linear_shortcut:
            self.shortcut_encode = nn.Conv2D(folded, latent_channels, 1)
            self.shortcut_decode = nn.Conv2D(latent_channels, folded, 1)

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
        """Settings for `__init__` from a saved config, without those that the stock class put there for itself."""
        stock = cls._get_init_keys(AutoencoderKL) - cls._get_init_keys(cls)
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k not in stock}, **kwargs)

    @paddle.no_grad()
    def initialize_shortcut(self, pictures: np.ndarray) -> None:
        """Start as the principal components of `pictures`, float (N, 3, H, W) in [-1, 1]; the networks add nothing yet.

        Component k is divided by the fourth root of its variance: half way between keeping and levelling the variances,
        so that fine detail weighs more in a denoiser's loss than its few pixels' worth.
        """
        channels = self.config.latent_channels
        folded = F.pixel_unshuffle(paddle.to_tensor(pictures), self.config.patch_size).numpy()
        patches = folded.transpose(0, 2, 3, 1).reshape(-1, folded.shape[1]).astype(np.float64)  # (n, 3 p^2)
        mean = patches.mean(axis=0)
        variances, basis = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
        variances, basis = variances[::-1][:channels], basis[:, ::-1][:, :channels]  # largest first
        scale = np.maximum(variances, 1e-8) ** 0.25
        _set(self.shortcut_encode, (basis / scale).T, -mean @ basis / scale)
        _set(self.shortcut_decode, basis * scale, mean)
        _set(self.decoder.conv_out, None, None)
        _set(self.quant_conv, None, np.concatenate([np.zeros(channels), np.full(channels, _INITIAL_LOG_VARIANCE)]))

    def encode(self, x: paddle.Tensor, return_dict: bool = True):
        """Posterior of latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        folded = _fold(x, self.config.patch_size)  # (N, 3 p^2, H/p, W/p)
        if not self.config.linear_shortcut:
            return super().encode(folded, return_dict=return_dict)
        mean, log_variance = self.quant_conv(self.encoder(folded)).chunk(2, axis=1)  # (N, C, H/f, W/f) each
        moments = paddle.concat([mean + self.shortcut_encode(folded), log_variance], axis=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: paddle.Tensor, return_dict: bool = True):
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        decoded = super().decode(z, return_dict=return_dict)
        folded = decoded.sample if return_dict else decoded[0]  # (N, 3 p^2, H/p, W/p)
        if self.config.linear_shortcut:
            folded = folded + self.shortcut_decode(z)
        pixels = F.pixel_shuffle(folded, self.config.patch_size)  # (N, 3, H, W)
        if not return_dict:
            return (pixels,)
        decoded.sample = pixels
        return decoded


def _fold(x: paddle.Tensor, size: int) -> paddle.Tensor:
    """`F.pixel_unshuffle`, which cannot be exported for any height and width: (N, C, H, W) -> (N, C s^2, H/s, W/s)."""
    count, channels, height, width = x.shape
    x = x.reshape([count, channels, height // size, size, width // size, size]).transpose([0, 1, 3, 5, 2, 4])
    return x.reshape([count, channels * size * size, height // size, width // size])


def _set(layer: nn.Conv2D, weight: np.ndarray | None, bias: np.ndarray | None) -> None:
    """Fill a convolution; None is zero."""
    for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
        value = np.zeros(parameter.shape) if value is None else value.reshape(parameter.shape)
        parameter.set_value(paddle.to_tensor(np.ascontiguousarray(value).astype(np.float32)))


def vae_scale_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent cell along one side."""
    return 2 ** (len(vae.config.block_out_channels) - 1) * vae.config.get("patch_size", 1)
