"""The parts of a pipeline as static graphs with any batch size, height, width and text length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.models.attention_processor import Attention

from ppvilg.inference.manifest import GRAPH, WEIGHTS, Part, Port, stored
from ppvilg.models import use_tile_upsampling
from ppvilg.models.attention import QueryBlockAttnProcessor, query_blocks
from ppvilg.models.expert_files import expert_folder_name

from .weights import stored_weights


@dataclass(frozen=True)
class Plan:
    """One part to be exported: a layer whose forward is the graph, its inputs, and the names of its outputs."""

    name: str
    layer: nn.Layer
    inputs: list[Port]
    outputs: list[Port]


class _TextEncoder(nn.Layer):
    def __init__(self, model: nn.Layer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids)[:2]  # (N, L, D), (N, D)


class _Encoder(nn.Layer):
    def __init__(self, vae: nn.Layer) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels):
        return self.vae.encode(pixels).latent_dist.parameters  # (N, 2C, h, w): mean and log variance


class _Decoder(nn.Layer):
    def __init__(self, vae: nn.Layer) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents).sample  # (N, 3, H, W)


class _Expert(nn.Layer):
    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states, key_token_weights):
        return self._trace(sample, timestep, encoder_hidden_states, key_token_weights)  # (N, C, h, w)

    # Traced as it runs, not rewritten: rewritten, the stock forward would decide on unknown sizes in the graph.
    @paddle.jit.not_to_static
    def _trace(self, sample, timestep, encoder_hidden_states, key_token_weights):
        with _any_size(self.unet), _queries_in_blocks(self.unet):
            attention = {"key_token_weights": key_token_weights}
            return self.unet(
                sample, timestep, encoder_hidden_states, cross_attention_kwargs=attention, return_dict=False
            )[0]


@contextlib.contextmanager
def _any_size(unet: UNet2DConditionModel) -> Iterator[None]:
    """Lets the stock forward take unknown sizes (-1) for multiples of its downsampling, which callers check."""
    upsamplers, unet.num_upsamplers = unet.num_upsamplers, 0
    try:
        yield
    finally:
        unet.num_upsamplers = upsamplers


@contextlib.contextmanager
def _queries_in_blocks(unet: UNet2DConditionModel) -> Iterator[None]:
    """Lets self-attention over many tokens take its queries in blocks, by the model's own size.

    A level of the UNet has multiples of 4 ** (levels below it) tokens whatever the size, as callers check.
    """
    levels, side = len(unet.config.block_out_channels), unet.config.sample_size
    height, width = (side or 1,) * 2 if side is None or isinstance(side, int) else side
    places = [*enumerate(unet.down_blocks), *((levels - 1 - i, block) for i, block in enumerate(unet.up_blocks))]
    if unet.mid_block is not None:
        places.append((levels - 1, unet.mid_block))
    replaced = []
    for level, block in places:
        for attn in (layer for layer in block.sublayers() if isinstance(layer, Attention)):
            blocks = query_blocks(height * width // 4**level, attn.heads, 4 ** (levels - 1 - level))
            if blocks > 1 and QueryBlockAttnProcessor.fits(attn):
                replaced.append((attn, attn.processor))
                attn.set_processor(QueryBlockAttnProcessor(attn.processor, blocks))
    try:
        yield
    finally:
        for attn, processor in replaced:
            attn.set_processor(processor)


def expert_plan(unet: UNet2DConditionModel, index: int) -> Plan:
    """Expert `index`; the key-token weights are an input."""
    config = unet.config
    inputs = [
        Port("sample", [-1, config.in_channels, -1, -1], "float32"),
        Port("timestep", [-1], "float32"),
        Port("encoder_hidden_states", [-1, -1, config.cross_attention_dim], "float32"),
        Port("key_token_weights", [-1, -1], "float32"),
    ]
    outputs = [Port("prediction", [-1, config.out_channels, -1, -1], "float32")]
    return Plan(expert_folder_name(index), _Expert(unet), inputs, outputs)


def text_encoder_plan(model: nn.Layer) -> Plan:
    """ERNIE: ids to states and pooled state."""
    width = model.config.hidden_size
    outputs = [Port("last_hidden_state", [-1, -1, width], "float32"), Port("pooled", [-1, width], "float32")]
    return Plan("text_encoder", _TextEncoder(model), [Port("input_ids", [-1, -1], "int64")], outputs)


def autoencoder_plans(vae: nn.Layer) -> list[Plan]:
    """Encoder and decoder. Turns the upsampling of `vae` into its tile form, in place; its values stay."""
    use_tile_upsampling(vae)
    channels = vae.config.latent_channels
    pixels, latents = Port("pixels", [-1, 3, -1, -1], "float32"), Port("latents", [-1, channels, -1, -1], "float32")
    moments = Port("moments", [-1, 2 * channels, -1, -1], "float32")
    return [
        Plan("vae_encoder", _Encoder(vae), [pixels], [moments]),
        Plan("vae_decoder", _Decoder(vae), [latents], [pixels]),
    ]


def write_part(plan: Plan, folder: Path, weights: str = "float32") -> Part:
    """Writes folder/<part>/inference.json and .pdiparams, with weights stored as `weights`."""
    place = folder / plan.name
    place.mkdir()
    plan.layer.eval()
    specs = [InputSpec(port.shape, port.dtype, port.name) for port in plan.inputs]
    traced = paddle.jit.to_static(plan.layer, input_spec=specs, full_graph=True)
    nbytes = sum(parameter.size * parameter.element_size() for parameter in plan.layer.parameters())
    with paddle.no_grad(), stored_weights(plan.layer, weights):
        paddle.jit.save(traced, str((place / GRAPH).with_suffix("")))
    traced.forward.rollback()  # or calls of the layer would run the graph from now on
    return Part({name: stored(place / name) for name in (GRAPH, WEIGHTS)}, plan.inputs, plan.outputs, nbytes)
