"""What a recipe takes before it is started: shapes without memory, work, memory, traffic and time per step.

Layers are built under Paddle's LazyGuard (parameters have shapes and no memory) and traced in a static program, whose
operators say their shapes. The rest is arithmetic with stated assumptions (`Cluster`), checked against ranks that
really run by tests/benchmarks/plan.py.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import paddle
from paddlenlp.transformers import ErnieConfig, ErnieModel
from paddlenlp.transformers.model_utils import no_init_weights
from ppdiffusers import AutoencoderKL, UNet2DConditionModel

from ppvilg.config import Recipe
from ppvilg.engine.builder import plain
from ppvilg.engine.parallel.layout import Axes
from ppvilg.models import PatchAutoencoderKL

VOCABULARY = 40_000  # rows of ERNIE 3.0's embedding, where the recipe names a published tokenizer
_BLOCKS = ("ResnetBlock2D", "Transformer2DModel")  # what gradient checkpointing computes again
_VIEWS = ("reshape", "flatten", "squeeze", "unsqueeze", "data", "parameter", "full", "full_int_array", "split", "shape",
          "shape64", "slice", "combine", "cast", "expand", "arange", "constant", "assign")  # no memory worth counting


# ---- shapes


PARTS = ("unet", "text_encoder", "vae")


def build_part(recipe: Recipe, part: str, settings: dict | None = None) -> paddle.nn.Layer:
    """A part's real layers without weights: one denoiser, the text encoder or the autoencoder.

    Call it under `paddle.LazyGuard` or in a static program, which allocate nothing. Where the recipe takes published
    weights, its `config` must say their sizes all the same. settings: instead of the recipe's config of this part.
    """
    settings = plain(recipe.model[part].config) if settings is None else settings
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
    with paddle.LazyGuard():
        parts = {part: build_part(recipe, part) for part in PARTS}
    allocated = [f"{part}.{name}" for part, layer in parts.items() for name, p in layer.named_parameters()
                 if p._is_initialized()]
    if allocated:
        raise RuntimeError(f"{len(allocated)} parameters were allocated, the first is {allocated[0]}")
    return {part: {name: tuple(p.shape) for name, p in layer.named_parameters()} for part, layer in parts.items()}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in shapes.values())


# ---- work


@dataclass
class Work:
    """Of one sample's forward pass: floating point operations, elements kept for the backward pass.

    kept: outputs of all operators but views and attention probabilities (fused attention keeps none).
    kept_with_recompute: those outside of the blocks that are computed again, the blocks' outputs, and one block's own.
    """

    flops: float = 0.0
    kept: float = 0.0
    kept_with_recompute: float = 0.0


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

    The autoencoder's decoder is built and traced too, but not counted: training a denoiser only encodes.
    """
    settings = plain(recipe.model[part].config) if settings is None else settings
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
            return counted
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
                total - sum(inside) + outputs + max(inside, default=0.0))


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
                 find_unused: bool = True) -> list[Sent]:
    """What one optimizer step sends, for `elements` trained parameters in `tensors` tensors that all have gradients.

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
        sent.append(Sent("weights", "sharding", sharding, size, size * broadcast_share(sharding)))
    if data > 1:
        sent.append(_all_reduce("gradients", "data", data, size / sharding))
    return sent


def _all_reduce(kind: str, group: str, n: int, size: float) -> Sent:
    return Sent(kind, group, n, size, size * ring_all_reduce(n))


# ---- memory and time


@dataclass(frozen=True)
class Cluster:
    """Assumptions about machines: A100 80 GB, eight to a machine, one 200 Gbit/s adapter each; no overlap assumed."""

    gpus: int
    gpus_per_machine: int = 8
    memory: float = 80e9  # bytes
    flops: float = 312e12  # bf16, peak
    utilisation: float = 0.4  # of the peak
    inside: float = 250e9  # bytes/s a GPU sends to the others of its machine
    between: float = 25e9  # bytes/s a GPU sends to another machine
    context: float = 3e9  # bytes: CUDA context, kernels, communication buffers, fragmentation


@dataclass
class Estimate:
    """One stage on one cluster. memory: bytes per rank by what they are for; seconds: of a step, by what they go to."""

    stage: str
    cluster: Cluster
    axes: Axes
    samples_per_rank: int
    samples_per_pass: int
    memory: dict[str, float] = field(default_factory=dict)
    traffic: list[Sent] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Expected time of a step, computation and communication one after the other."""
        return sum(self.seconds.values())


@dataclass
class Planner:
    """Estimates for a recipe; shapes and work are found once."""

    shapes: dict[str, dict[str, tuple[int, ...]]]
    work: dict[str, Work]
    batch: dict[str, int]  # by stage
    trains_text_encoder: dict[str, bool]
    recompute: bool
    num_experts: int

    @classmethod
    def of(cls, recipe: Recipe) -> Planner:
        """Build and trace the recipe's layers at its first shape."""
        width, height = recipe.data.shapes[0]
        stages = ("base", "experts")
        return cls(layer_shapes(recipe), trace(recipe, width, height),
                   {stage: recipe.train[stage].batch_size for stage in stages},
                   {stage: recipe.train[stage].train_text_encoder for stage in stages}, recipe.recompute,
                   recipe.model.num_experts)

    def trained(self, stage: str) -> tuple[int, int]:
        """(elements, tensors) that get gradients in a step: one denoiser, and the text encoder where it is trained."""
        parts = ["unet", "text_encoder"] if self.trains_text_encoder[stage] else ["unet"]
        return sum(count(self.shapes[part]) for part in parts), sum(len(self.shapes[part]) for part in parts)

    def estimate(self, stage: str, cluster: Cluster, axes: Axes, experts: int | None = None) -> Estimate:
        """Memory, traffic and time; `experts` are trained in all (those of a one-expert job: 1)."""
        groups = axes.expert if stage == "experts" else 1
        share = self.batch[stage] // (axes.world // groups)
        held = 1 if stage == "base" else -(-(experts or self.num_experts) // groups)  # denoisers in a rank's memory
        memory = self._states(stage, held, axes.sharding)
        per_sample = self._activations(stage)
        left = cluster.memory - cluster.context - sum(memory.values())
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if share % size == 0 and size * per_sample <= left]
        passes = max(sizes, default=1)
        memory |= {"activations": passes * per_sample, "context": cluster.context}
        elements, tensors = self.trained(stage)
        traffic = step_traffic(elements, tensors, axes, stage == "experts", 2)
        seconds = {"computation": share * self._operations(stage) / (cluster.flops * cluster.utilisation)}
        seconds |= self._communication(traffic, cluster, axes)
        elements += (held * groups - 1) * count(self.shapes["unet"])
        return Estimate(stage, cluster, axes, share, passes, memory, traffic, seconds, 16.0 * elements)

    def _states(self, stage: str, held: int, sharding: int) -> dict[str, float]:
        """Bytes of weights and what belongs to them: bf16 weights and gradients, float32 master, moments, average."""
        unet, text = count(self.shapes["unet"]), count(self.shapes["text_encoder"])
        trained = held * unet + (text if self.trains_text_encoder[stage] else 0)
        frozen = count(self.shapes["vae"]) + (0 if self.trains_text_encoder[stage] else text)
        gradients = unet + (text if self.trains_text_encoder[stage] else 0)  # of the expert that runs
        return {"weights": 2.0 * (trained + frozen), "gradients": 2.0 * gradients,
                "optimizer": 12.0 * trained / sharding, "average": 4.0 * trained / sharding}

    def _activations(self, stage: str) -> float:
        """Bytes kept for the backward pass per sample of a pass, in bf16."""
        unet = self.work["unet"].kept_with_recompute if self.recompute else self.work["unet"].kept
        return 2.0 * (unet + (self.work["text_encoder"].kept if self.trains_text_encoder[stage] else 0.0))

    def _operations(self, stage: str) -> float:
        """Per sample: forward, twice that backward, once more for recompute; the frozen parts forward only."""
        text = self.work["text_encoder"].flops * (3 if self.trains_text_encoder[stage] else 1)
        return self.work["unet"].flops * (4 if self.recompute else 3) + text + self.work["vae"].flops

    @staticmethod
    def _communication(traffic: list[Sent], cluster: Cluster, axes: Axes) -> dict[str, float]:
        """Seconds by link: groups that fit a machine stay in it, for sharding is the innermost axis."""
        seconds = {"inside machines": 0.0, "between machines": 0.0}
        for sent in traffic:
            inside = sent.n * (axes.sharding if sent.group == "data" else 1) <= cluster.gpus_per_machine
            speed = cluster.inside if inside else cluster.between
            seconds["inside machines" if inside else "between machines"] += sent.wire / speed
        return seconds
