"""What stands in for the components of a pipeline over exported graphs, with their call signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable

import paddle
from paddle import nn
from paddlenlp.transformers import ErnieConfig
from ppdiffusers import ModelMixin, UNet2DConditionModel  # noqa: F401
from ppdiffusers.configuration_utils import FrozenDict
from ppdiffusers.models.autoencoder_kl import AutoencoderKLOutput
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
    """An exported AutoencoderKL or PatchAutoencoderKL; the encoder is loaded when it is first asked for."""

    dtype = paddle.float32

    def __init__(self, open_encoder: Callable[[], Graph], decoder: Graph, config: dict, backend: str) -> None:
        self._open_encoder = open_encoder
        self.backend = backend
        self.decoder = decoder
        self.config = FrozenDict(config)

    @functools.cached_property
    def encoder(self) -> Graph:
        """Loaded on first use: text to image never needs it."""
        return self._open_encoder()

    def encode(self, x: paddle.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Posterior of latents (N, C, H/f, W/f) of pictures (N, 3, H, W) in [-1, 1]."""
        posterior = DiagonalGaussianDistribution(self.encoder(x.cast("float32"))[0])
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: paddle.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[paddle.Tensor]:
        """Pictures (N, 3, H, W) of unscaled latents (N, C, H/f, W/f)."""
        pixels = self.decoder(z.cast("float32"))[0]
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
