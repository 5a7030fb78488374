"""What stands in for the components of a pipeline over exported graphs, with their call signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable

import paddle
from paddle import nn
from paddlenlp.transformers import ErnieConfig
from ppdiffusers import ModelMixin, UNet2DConditionModel  # noqa: F401
from ppdiffusers.configuration_utils import FrozenDict
from ppdiffusers.models.autoencoder_kl import AutoencoderKL, AutoencoderKLOutput
from ppdiffusers.models.unet_2d_condition import UNet2DConditionOutput
from ppdiffusers.models.vae import DecoderOutput, DiagonalGaussianDistribution

Graph = Callable[..., list[paddle.Tensor]]  # one part of a bundle: tensors in, tensors out, as the manifest has them


class ExportedExpert(nn.Layer):
    """One exported expert with the call signature of UNet2DConditionModel."""

    def __init__(self, graph: Graph, size_multiple: int) -> None:
        super().__init__()
        self.graph = graph
        self.size_multiple = size_multiple
        self.dtype = paddle.float32
        self.eval()

    def forward(
        self,
        sample: paddle.Tensor,
        timestep: int | float | paddle.Tensor,
        encoder_hidden_states: paddle.Tensor,
        class_labels: None = None,
        timestep_cond: None = None,
        attention_mask: None = None,
        cross_attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[paddle.Tensor]:
        """Denoises (N, C, h, w) at one or (N,) timesteps with text states (N, L, D).

        cross_attention_kwargs may have key_token_weights (N, L). ValueError for what the graph has no input for.
        """
        attention = dict(cross_attention_kwargs or {})
        weights = attention.pop("key_token_weights", None)
        if attention or class_labels is not None or timestep_cond is not None or attention_mask is not None:
            raise ValueError("an exported expert takes sample, timestep, text states and key_token_weights alone")
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"latents of {height}x{width} are no multiple of {self.size_multiple} on both sides")
        count, length = encoder_hidden_states.shape[:2]
        if weights is None:
            weights = paddle.ones([count, length], "float32")
        timestep = paddle.to_tensor(timestep).cast("float32").reshape([-1]).expand([count])  # (N,)
        inputs = (sample, timestep, encoder_hidden_states, weights)
        output = self.graph(*(tensor.cast("float32") for tensor in inputs))[0]  # (N, C, h, w)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)


class ExportedTextEncoder:
    """An exported ErnieModel: token ids (N, L) -> (states (N, L, D), pooled (N, D))."""

    def __init__(self, graph: Graph, config: dict) -> None:
        self.graph = graph
        self.config = ErnieConfig.from_dict(dict(config))

    def __call__(self, input_ids: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        return tuple(self.graph(input_ids.cast("int64")))


class ExportedAutoencoder:
    """An exported AutoencoderKL or PatchAutoencoderKL; the encoder is loaded when it is first asked for.

    Slices and tiles are the stock class's own, over graphs that hold the quantising convolutions too.
    """

    dtype = paddle.float32
    enable_tiling, disable_tiling = AutoencoderKL.enable_tiling, AutoencoderKL.disable_tiling
    enable_slicing, disable_slicing = AutoencoderKL.enable_slicing, AutoencoderKL.disable_slicing
    tiled_encode, tiled_decode = AutoencoderKL.tiled_encode, AutoencoderKL.tiled_decode
    blend_v, blend_h = AutoencoderKL.blend_v, AutoencoderKL.blend_h
    tile_overlap_factor = 0.25

    def __init__(self, open_encoder: Callable[[], Graph], decoder: Graph, config: dict, backend: str) -> None:
        self._open_encoder = open_encoder
        self._decoder = decoder
        self.backend = backend
        self.config = FrozenDict(config)
        self.use_slicing = self.use_tiling = False
        size = self.config.sample_size
        self.tile_sample_min_size = size if isinstance(size, int) else size[0]
        self.tile_latent_min_size = self.tile_sample_min_size // 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def has_patches(self) -> bool:
        """Whether this is a PatchAutoencoderKL."""
        return "patch_size" in self.config

    @functools.cached_property
    def _encoder(self) -> Graph:
        return self._open_encoder()  # on first use: text to image never needs it

    def encoder(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Mean and log variance (N, 2C, H/f, W/f) of pictures (N, 3, H, W)."""
        return self._encoder(pixels.cast("float32"))[0]

    def decoder(self, latents: paddle.Tensor) -> paddle.Tensor:
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        return self._decoder(latents.cast("float32"))[0]

    @staticmethod
    def quant_conv(moments: paddle.Tensor) -> paddle.Tensor:
        """The graph of the encoder has it already."""
        return moments

    post_quant_conv = quant_conv

    def encode(self, x: paddle.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Posterior of latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        if self.use_tiling and max(x.shape[-2:]) > self.tile_sample_min_size:
            return self.tiled_encode(x, return_dict=return_dict)
        slices = x.split(len(x)) if self.use_slicing else [x]
        posterior = DiagonalGaussianDistribution(paddle.concat([self.encoder(part) for part in slices]))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: paddle.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[paddle.Tensor]:
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        tiled = self.use_tiling and max(z.shape[-2:]) > self.tile_latent_min_size
        decode = (lambda part: self.tiled_decode(part).sample) if tiled else self.decoder
        slices = z.split(len(z)) if self.use_slicing else [z]
        pixels = paddle.concat([decode(part) for part in slices])
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
