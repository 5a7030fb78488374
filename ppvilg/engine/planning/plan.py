"""What networks take before they are there: shapes without memory, work of a sample, traffic of a step.

Layers are built under Paddle's LazyGuard (parameters have shapes and no memory) and traced in a static program, whose
operators say their shapes. See memory.py for a rank's memory, and cluster.py for the time on many machines.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import paddle
from paddlenlp.transformers import ErnieConfig, ErnieModel
from paddlenlp.transformers.model_utils import no_init_weights
from ppdiffusers import AutoencoderKL, UNet2DConditionModel

from ppvilg.config import Recipe
from ppvilg.engine.builder import plain
from ppvilg.engine.parallel.layout import Axes
from ppvilg.files import digest_of, read_json
from ppvilg.models import PatchAutoencoderKL
from ppvilg.models.expert_files import stock_config

VOCABULARY = 40_000  # rows of ERNIE 3.0's embedding, where the recipe names a published tokenizer
_BLOCKS = ("ResnetBlock2D", "Transformer2DModel")  # what gradient checkpointing computes again
_traced: dict[str, Work] = {}  # by what decides it: a run asks several times
_shapes_of: dict[str, dict[str, tuple[int, ...]]] = {}  # by part and settings
_VIEWS = ("reshape", "flatten", "squeeze", "unsqueeze", "data", "parameter", "full", "full_int_array", "split", "shape",
          "shape64", "slice", "combine", "cast", "expand", "arange", "constant", "assign")  # no memory worth counting


# ---- shapes


PARTS = ("unet", "text_encoder", "vae")


def part_settings(recipe: Recipe, part: str) -> dict:
    """The settings of a part's class: the recipe's, or those beside published weights in a folder."""
    given = plain(recipe.model[part].config)
    folder = Path(recipe.model[part].pretrained or "")
    if given or not (folder / "config.json").is_file():
        return given
    settings = read_json(folder / "config.json")
    return stock_config(settings) if part == "unet" else {k: v for k, v in settings.items() if not k.startswith("_")}


def build_part(recipe: Recipe, part: str, settings: dict | None = None) -> paddle.nn.Layer:
    """A part's real layers without weights: one denoiser, the text encoder or the autoencoder.

    Call it under `paddle.LazyGuard` or in a static program, which allocate nothing. Where the recipe takes published
    weights, its `config` must say their sizes all the same. settings: instead of the recipe's config of this part.
    """
    settings = part_settings(recipe, part) if settings is None else settings
    if part == "unet":
        return UNet2DConditionModel(**settings)
    if part == "vae":
        kind = PatchAutoencoderKL if "patch_size" in settings else AutoencoderKL
        return kind(**_with_vae_defaults(settings))
    with no_init_weights(_enable=True):  # else it draws them, LazyGuard or not
        return ErnieModel(ErnieConfig(**{"vocab_size": VOCABULARY, **settings}))


def _with_vae_defaults(config: dict) -> dict:
    """Block types for every level, where the recipe gives the channels alone."""
    levels = len(config.get("block_out_channels", [64]))
    return {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": 2, **config}


def layer_shapes(recipe: Recipe) -> dict[str, dict[str, tuple[int, ...]]]:
    """{part: {parameter: shape}} without allocating one of them. RuntimeError if Paddle allocated all the same."""
    return {part: dict(_part_shapes(recipe, part)) for part in PARTS}


def _part_shapes(recipe: Recipe, part: str) -> dict[str, tuple[int, ...]]:
    key = digest_of([part, part_settings(recipe, part)])
    if key not in _shapes_of:
        with paddle.LazyGuard():
            layer = build_part(recipe, part)
        allocated = [name for name, p in layer.named_parameters() if p._is_initialized()]
        if allocated:
            raise RuntimeError(f"{part}: {len(allocated)} parameters were allocated, the first is {allocated[0]}")
        _shapes_of[key] = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    return _shapes_of[key]


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in shapes.values())


# ---- work


@dataclass
class Work:
    """Of one sample's forward pass: floating point operations, elements kept for the backward pass.

    kept: outputs of all operators but views and attention probabilities (fused attention keeps none).
    kept_with_recompute: those outside of the blocks that are computed again, the blocks' outputs, and one block's own.
    largest: what a forward pass alone has at once in its widest place: input, output and a norm's copy.
    kept_with_decoder: of the autoencoder, what training it keeps; all else here is of its encoder.
    """

    flops: float = 0.0
    kept: float = 0.0
    kept_with_recompute: float = 0.0
    largest: float = 0.0
    kept_with_decoder: float = 0.0


@contextlib.contextmanager
def _static_program() -> Iterator[paddle.static.Program]:
    program = paddle.static.Program()
    paddle.enable_static()
    try:
        with paddle.static.program_guard(program, paddle.static.Program()):
            yield program
    finally:
        paddle.disable_static()


def trace(recipe: Recipe, width: int, height: int) -> dict[str, Work]:
    """Work of every part on one sample of width x height pixels; nothing is allocated or computed."""
    return {part: trace_part(recipe, part, width, height) for part in PARTS}


def trace_part(recipe: Recipe, part: str, width: int, height: int, settings: dict | None = None) -> Work:
    """Work of one part, as `trace`; `settings` instead of the recipe's config of it. What layers raise passes through.

    Of the autoencoder the encoder is counted: training a denoiser only encodes.
    """
    settings = part_settings(recipe, part) if settings is None else settings
    key = digest_of([part, settings, width, height, plain(recipe.model.vae), recipe.model.tokenizer.max_length])
    if key not in _traced:
        _traced[key] = _trace_part(recipe, part, width, height, settings)
    return _traced[key]


def _trace_part(recipe: Recipe, part: str, width: int, height: int, settings: dict) -> Work:
    with _static_program() as program:
        layer = build_part(recipe, part, settings)
        marks = _watch_blocks(layer, program)
        if part == "unet":
            vae, levels = recipe.model.vae.config, len(settings.get("block_out_channels", (0,) * 4)) - 1
            factor = vae.get("patch_size", 1) * 2 ** (len(vae.get("block_out_channels", [64])) - 1)
            # sizes that the levels do not divide are somebody else's complaint
            sides = [max(side // factor >> levels, 1) << levels for side in (height, width)]
            channels, length = settings.get("in_channels", 4), recipe.model.tokenizer.max_length
            layer(paddle.static.data("latents", [1, channels, *sides]),
                  paddle.static.data("timesteps", [1], "int64"),
                  paddle.static.data("hidden", [1, length, settings.get("cross_attention_dim", 1280)]))
        elif part == "text_encoder":
            layer(paddle.static.data("ids", [1, recipe.model.tokenizer.max_length], "int64"))
        else:
            posterior = layer.encode(paddle.static.data("pixels", [1, 3, height, width])).latent_dist
            counted = _sum_up(program.global_block().ops, marks)
            layer.decode(posterior.mode())
            return replace(counted, kept_with_decoder=_sum_up(program.global_block().ops, marks).kept)
        return _sum_up(program.global_block().ops, marks)


def _watch_blocks(layer: paddle.nn.Layer, program) -> list[tuple[int, int]]:
    """Fills itself with (first, last) operator of every block that recompute covers, as the layer is traced."""
    marks, starts = [], []

    def size() -> int:
        return len(program.global_block().ops)

    for block in layer.sublayers():
        if type(block).__name__ in _BLOCKS:
            block.register_forward_pre_hook(lambda *_: starts.append(size()))
            block.register_forward_post_hook(lambda *_: marks.append((starts.pop(), size())))
    return marks


def _sum_up(operators, marks: list[tuple[int, int]]) -> Work:
    kept = [_kept(operator) for operator in operators]
    inside = [sum(kept[first:last]) for first, last in marks]
    outputs = sum(next((k for k in reversed(kept[first:last]) if k), 0.0) for first, last in marks)
    total = float(sum(kept))
    return Work(sum(_flops(operator) for operator in operators), total,
                total - sum(inside) + outputs + max(inside, default=0.0), 3.0 * max(kept, default=0.0))


def _shape(value) -> tuple[int, ...] | None:
    """Shape of a traced value, one sample where the batch is unknown; None for lists of values."""
    try:
        return tuple(1 if size < 0 else size for size in value.shape)
    except (ValueError, RuntimeError):  # Paddle refuses for anything but one dense tensor
        return None


def _kept(operator) -> float:
    name, attributes = operator.name().partition(".")[2], operator.attrs()
    shapes = [_shape(result) for result in operator.results()]
    if name in _VIEWS or not shapes or shapes[0] is None:
        return 0.0
    product = name == "matmul" and attributes.get("transpose_y")
    if "ttention" in attributes.get("struct_name", "") and len(shapes[0]) == 4:
        if product or name in ("softmax", "scale", "add"):
            return 0.0  # attention's scores and probabilities
    return float(sum(math.prod(shape) for shape in shapes if shape))


def _flops(operator) -> float:
    """Operations of convolutions and matrix products, two per multiplication; the rest is small beside them."""
    name = operator.name().partition(".")[2]
    if name not in ("matmul", "conv2d"):
        return 0.0
    out = _shape(operator.results()[0])
    one, two = (_shape(value) for value in operator.operands_source()[:2])
    if name == "conv2d":
        return 2.0 * math.prod(out) * math.prod(two[1:])
    return 2.0 * math.prod(out) * (one[-2] if operator.attrs().get("transpose_x") else one[-1])


# ---- traffic


@dataclass(frozen=True)
class Sent:
    """Bytes of one step in a group of `n`: `handed` over to collectives by a rank, `wire` sent by a rank on average."""

    kind: str
    group: str
    n: int
    handed: float
    wire: float


def ring_all_reduce(n: int) -> float:
    """Share of a tensor that each of n ranks sends."""
    return 2.0 * (n - 1) / n


def reduce_share(n: int) -> float:
    """Gloo: a ring of reduce-scatter, then all send their piece to the root; averaged over the ranks."""
    return (n - 1) / n + (n - 1) / n**2


def broadcast_share(n: int) -> float:
    """n - 1 copies travel, averaged over the ranks."""
    return (n - 1) / n


def step_traffic(elements: int, tensors: int, axes: Axes, expert_groups: bool, element_bytes: int = 4,
                 find_unused: bool = True, weight_bytes: int | None = None) -> list[Sent]:
    """What one optimizer step sends, for `elements` trained parameters in `tensors` tensors that all have gradients.

    Gradients travel in `element_bytes` each, weights in `weight_bytes` (as many, if None).

    Between expert groups nothing is sent; `axes` are the recipe's, of which a stage without groups uses all as data.
    """
    data, sharding = axes.data * (1 if expert_groups else axes.expert), axes.sharding
    group, size = data * sharding, float(elements * element_bytes)
    sent = []
    if find_unused and group > 1:
        sent.append(_all_reduce("agreement", "ranks", group, 4.0 * (tensors + 1)))
    if sharding > 1:
        sent.append(Sent("gradients", "sharding", sharding, size, size * reduce_share(sharding)))
        sent.append(_all_reduce("agreement", "sharding", sharding, 4.0))
        weights = float(elements * (weight_bytes or element_bytes))
        sent.append(Sent("weights", "sharding", sharding, weights, weights * broadcast_share(sharding)))
    if data > 1:
        sent.append(_all_reduce("gradients", "data", data, size / sharding))
    return sent


def _all_reduce(kind: str, group: str, n: int, size: float) -> Sent:
    return Sent(kind, group, n, size, size * ring_all_reduce(n))
