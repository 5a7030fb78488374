"""The parts of a pipeline as static graphs with any batch size, height, width and text length."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec
from ppdiffusers import UNet2DConditionModel
from ppdiffusers.models.attention_processor import Attention

from ppvilg.inference.manifest import GRAPH, ONNX, Part, Port, stored
from ppvilg.models import use_tile_upsampling
from ppvilg.models.attention import QueryBlockAttnProcessor, query_blocks
from ppvilg.models.expert_files import expert_folder_name

from .onnx_graph import write_onnx
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
        self.whole_attention = False

    def forward(self, sample, timestep, encoder_hidden_states, key_token_weights):
        return self._trace(sample, timestep, encoder_hidden_states, key_token_weights)  # (N, C, h, w)

    # Traced as it runs, not rewritten: rewritten, the stock forward would decide on unknown sizes in the graph.
    @paddle.jit.not_to_static
    def _trace(self, sample, timestep, encoder_hidden_states, key_token_weights):
        with _any_size(self.unet), _queries_in_blocks({} if self.whole_attention else query_blocks_of(self.unet)):
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


def query_blocks_of(unet: UNet2DConditionModel) -> dict[Attention, int]:
    """The self-attention layers that take their queries in blocks under Paddle Inference, by the model's own size.

    A level of the UNet has multiples of 4 ** (levels below it) tokens whatever the size, as callers check.
    """
    levels, side = len(unet.config.block_out_channels), unet.config.sample_size
    height, width = (side or 1,) * 2 if side is None or isinstance(side, int) else side
    places = [*enumerate(unet.down_blocks), *((levels - 1 - i, block) for i, block in enumerate(unet.up_blocks))]
    if unet.mid_block is not None:
        places.append((levels - 1, unet.mid_block))
    found = {}
    for level, block in places:
        for attn in (layer for layer in block.sublayers() if isinstance(layer, Attention)):
            blocks = query_blocks(height * width // 4**level, attn.heads, 4 ** (levels - 1 - level))
            if blocks > 1 and QueryBlockAttnProcessor.fits(attn):
                found[attn] = blocks
    return found


@contextlib.contextmanager
def _queries_in_blocks(blocks: dict[Attention, int]) -> Iterator[None]:
    """Lets these layers take their queries in so many blocks."""
    processors = {attn: attn.processor for attn in blocks}
    for attn, count in blocks.items():
        attn.set_processor(QueryBlockAttnProcessor(attn.processor, count))
    try:
        yield
    finally:
        for attn, processor in processors.items():
            attn.set_processor(processor)


class _FourDimensionalGroupNorm(nn.GroupNorm):
    """A group norm of (N, C, L) that computes on (N, C, L, 1), which is all that paddle2onnx knows."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x.unsqueeze(-1)).squeeze(-1) if x.ndim == 3 else super().forward(x)


@contextlib.contextmanager
def _four_dimensional_norms(layer: nn.Layer) -> Iterator[None]:
    norms = [norm for norm in layer.sublayers() if type(norm) is nn.GroupNorm]
    for norm in norms:
        norm.__class__ = _FourDimensionalGroupNorm
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.GroupNorm


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


def write_part(plan: Plan, folder: Path, weights: str = "float32", formats: Sequence[str] = (GRAPH,)) -> Part:
    """Writes folder/<part>/ with weights stored as `weights`.

    formats: GRAPH for inference.json and .pdiparams, ONNX for model.onnx, or both. ValueError: the part has an operator
    that ONNX lacks.
    """
    place = folder / plan.name
    place.mkdir()
    plan.layer.eval()
    nbytes = sum(parameter.size * parameter.element_size() for parameter in plan.layer.parameters())
    if GRAPH in formats:
        _trace(plan, place, weights)
    if ONNX in formats:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            source = Path(name, plan.name)
            if GRAPH in formats and not (isinstance(plan.layer, _Expert) and query_blocks_of(plan.layer.unet)):
                shutil.copytree(place, source)
            else:
                source.mkdir()
                _trace(plan, source, weights, whole_attention=True)
            write_onnx(source, place, plan.inputs, plan.outputs)
    files = {file.name: stored(file) for file in sorted(place.iterdir())}
    return Part(files, plan.inputs, plan.outputs, nbytes)


def _trace(plan: Plan, place: Path, weights: str, whole_attention: bool = False) -> None:
    """Writes the static graph of a part; whole_attention: for engines that have an operator for it."""
    specs = [InputSpec(port.shape, port.dtype, port.name) for port in plan.inputs]
    plan.layer.whole_attention = whole_attention
    traced = paddle.jit.to_static(plan.layer, input_spec=specs, full_graph=True)
    try:
        with paddle.no_grad(), stored_weights(plan.layer, weights), _four_dimensional_norms(plan.layer):
            paddle.jit.save(traced, str((place / GRAPH).with_suffix("")))
    finally:
        traced.forward.rollback()  # or calls of the layer would run the graph from now on
