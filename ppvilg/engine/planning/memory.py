"""What a stage takes of a rank's memory, counted before its first step; and what would fit where it does not.

Counted are bytes that are there at the same time in the worst moment of a step. Assumed are fused attention, which
keeps no probabilities, and 3 GB for a GPU's context, kernels and communication.
"""
from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import paddle

from ppvilg.config import ConfigError, Recipe
from ppvilg.engine.lora.base import adapter_shapes, chosen_experts
from ppvilg.engine.parallel.layout import Axes, resolve_axes
from ppvilg.engine.planning import plan
from ppvilg.engine.training.optimizers import state_elements

logger = logging.getLogger(__name__)
CONTEXT = 3e9  # bytes: CUDA context, kernels, communication buffers, fragmentation
STAGES = ("vae", "base", "experts", "lora")
# What changes cost, to tell which to advise first: passes nothing, shards messages, recompute a third of the time, low
# precision digits; one expert a job is another way of working.
_COSTS = {"accumulation": 1, "sharding": 2, "recompute": 3, "level": 4, "only": 20}


@dataclass(frozen=True)
class Form:
    """What of a recipe decides the memory of a rank in one stage, beside its networks."""

    stage: str
    axes: Axes
    batch_size: int
    accumulation: int
    experts: int  # that are trained, over all groups
    trains_text_encoder: bool
    level: str = "O0"
    recompute: bool = False
    sharding_stage: int = 1
    cached: bool = True  # latents are read, not encoded
    optimizer: str = "adamw"
    averages: bool = True
    adapter: tuple[tuple[int, ...], ...] | None = None  # shapes that stage lora trains; its networks are frozen

    @classmethod
    def of(cls, recipe: Recipe, stage: str, axes: Axes) -> Form:
        """As the recipe says it."""
        config, only = recipe.train[stage], recipe.train.experts.only
        if stage == "lora":
            return cls(stage, axes, config.batch_size, config.accumulation, len(chosen_experts(recipe)),
                       config.text_encoder, recipe.precision.level, recipe.recompute,
                       recipe.distributed.sharding_stage, recipe.data.cache_latents, config.optimizer,
                       config.ema != "none", adapter_shapes(recipe))
        experts = 1 if stage in ("vae", "base") else len(only) if only is not None else recipe.model.num_experts
        return cls(stage, axes, config.batch_size, config.accumulation, experts,
                   config.get("train_text_encoder", False), recipe.precision.level, recipe.recompute,
                   recipe.distributed.sharding_stage, recipe.data.cache_latents, config.optimizer,
                   config.ema != "none")

    @property
    def groups(self) -> int:
        """Groups of ranks that share nothing."""
        return self.axes.expert if self.stage == "experts" else 1

    @property
    def samples_per_pass(self) -> int:
        """Of one rank."""
        return self.batch_size * self.groups // (self.axes.world * self.accumulation)

    @property
    def held(self) -> int:
        """Denoisers in a rank's memory."""
        return -(-self.experts // self.groups)

    def fits_ranks(self) -> bool:
        """Whether batches and experts can be cut evenly."""
        return (self.batch_size * self.groups % (self.axes.world * self.accumulation) == 0
                and self.experts % self.groups == 0)


def rank_memory(form: Form, shapes: dict, work: dict[str, plan.Work], context: float = CONTEXT) -> dict[str, float]:
    """Bytes of one rank by what they are for.

    weights: low where they are trained in O2, else float32. gradients: float32, and low ones beside them while a
    further pass adds its own. optimizer: its moments, and masters in O2. step: what is kept for the backward pass, or
    what encoding the pictures of a pass takes where that is more.
    """
    unet, text, vae = (plan.count(shapes[part]) for part in ("unet", "text_encoder", "vae"))
    low, shards = form.level == "O2", form.axes.sharding
    extra = text if form.trains_text_encoder else 0
    trained, running, frozen = form.held * unet + extra, unet + extra, vae + text - extra
    moments = (form.held * state_elements(form.optimizer, shapes["unet"].values())
               + (state_elements(form.optimizer, shapes["text_encoder"].values()) if extra else 0))
    if form.adapter is not None:
        trained = running = sum(map(math.prod, form.adapter))
        frozen, moments = form.held * unet + text + vae, state_elements(form.optimizer, form.adapter)
    if form.stage == "vae":
        trained, running, frozen = vae, vae, 0
        moments = state_elements(form.optimizer, shapes["vae"].values())
    gradients = 4.0 * running / (shards if form.sharding_stage == 2 and shards > 1 else 1)
    if low and (form.accumulation > 1 or form.sharding_stage == 2):
        gradients += 2.0 * running
    element = 4.0 if form.level == "O0" else 2.0
    kept = work["unet"].kept_with_recompute if form.recompute else work["unet"].kept
    kept += work["text_encoder"].kept if form.trains_text_encoder else 0.0
    kept = work["vae"].kept_with_decoder if form.stage == "vae" else kept
    encoding = 0.0 if form.cached else work["vae"].largest
    return {"weights": (2.0 if low else 4.0) * trained + 4.0 * frozen,
            "gradients": gradients, "optimizer": 4.0 * (moments + (trained if low else 0)) / shards,
            "average": 4.0 * trained / shards if form.averages else 0.0,
            "step": element * form.samples_per_pass * max(kept, encoding),
            "context": context}


def variants(form: Form) -> Iterator[tuple[dict[str, object], Form]]:
    """(settings, form) of what may be changed for less memory, what costs least first."""
    share = max(form.batch_size * form.groups // form.axes.world, 1)
    passes = [n for n in range(form.accumulation, share + 1) if share % n == 0]
    ranks = form.axes.data * form.axes.sharding
    shards = [n for n in range(form.axes.sharding, min(ranks, 8) + 1) if ranks % n == 0]
    experts = [form.experts] + ([1] if form.stage == "experts" and form.experts > 1 and form.groups == 1 else [])
    levels = [form.level] + (["O2"] if form.level != "O2" else [])
    recomputes = {form.recompute, form.recompute or form.stage != "vae"}  # it computes denoisers again
    found = []
    for count, level, shard, recompute, n in itertools.product(experts, levels, shards, recomputes, passes):
        settings: dict[str, object] = {}
        if count != form.experts:
            settings["train.experts.only"] = "[0]"
        if level != form.level:
            settings["precision.level"] = level
        if shard != form.axes.sharding:
            settings["distributed.sharding"] = shard
        if recompute != form.recompute:
            settings["recompute"] = "true"
        if n != form.accumulation:
            settings[f"train.{form.stage}.accumulation"] = n
        axes = Axes(ranks // shard, shard, form.axes.expert)
        found.append((settings, replace(form, axes=axes, experts=count, level=level, recompute=recompute,
                                        accumulation=n)))
    yield from sorted(found, key=lambda each: (sum(_COSTS[key.rpartition(".")[2]] for key in each[0]),
                                               each[1].accumulation, each[1].axes.sharding))


def what_fits(form: Form, shapes: dict, work: dict, limit: float, context: float = CONTEXT) -> dict[str, object] | None:
    """The settings to change that cost least and make a stage fit into `limit` bytes, None where none of ours do."""
    for settings, other in variants(form):
        if other.fits_ranks() and sum(rank_memory(other, shapes, work, context).values()) <= limit:
            return settings
    return None


def check_memory(recipe: Recipe, world: int, limit: float, context: float = CONTEXT) -> list[tuple[Form, dict]]:
    """All stages of a recipe on `world` ranks with `limit` bytes each; gives the count of each stage.

    Raises:
        ConfigError: a stage does not fit; it says how much it takes, of what, and what would fit.
    """
    settings = recipe.distributed
    axes = resolve_axes(settings.data, settings.sharding, settings.expert, world)
    stages = [stage for stage in STAGES if recipe.train[stage].steps]
    sizes = _sizes(recipe) if stages else None
    if sizes is None:
        return []
    shapes, work = sizes
    found = []
    for form in (Form.of(recipe, stage, axes) for stage in stages):
        memory = rank_memory(form, shapes, work, context)
        found.append((form, memory))
        if sum(memory.values()) > limit:
            raise ConfigError(_too_much(form, memory, limit, what_fits(form, shapes, work, limit, context)))
    return found


def _too_much(form: Form, memory: dict[str, float], limit: float, fitting: dict | None) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in memory.items())
    advice = "take more or larger devices" if fitting is None else "it fits with " + ", ".join(
        f"{key}={value}" for key, value in fitting.items())
    held = "" if form.stage == "vae" else f", {form.held} denoisers"
    return (f"train.{form.stage} takes {sum(memory.values()) / 1e9:.1f} GB of a rank's {limit / 1e9:.1f} GB ({parts}; "
            f"{form.samples_per_pass} samples a pass{held}): {advice}")


def _sizes(recipe: Recipe) -> tuple[dict, dict] | None:
    """(shapes, work) of the recipe's networks, None where published weights do not say their sizes before they load."""
    for part in plan.PARTS:
        config = recipe.model[part]
        if config.pretrained and not config.config and not (Path(config.pretrained) / "config.json").is_file():
            logger.info("memory is not counted: model.%s.config does not say the sizes of %s", part, config.pretrained)
            return None
    width, height = max(recipe.data.shapes, key=math.prod)
    return plan.layer_shapes(recipe), plan.trace(recipe, width, height)


def device_limit(ranks_here: int) -> tuple[float, float]:
    """(bytes of a rank's device, those that it needs for itself): a GPU's, or a rank's part of the machine's memory."""
    if paddle.get_device() != "cpu":
        return float(paddle.device.cuda.get_device_properties().total_memory), CONTEXT
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks_here, 0.5e9
