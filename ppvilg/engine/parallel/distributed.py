"""Ranks through Fleet: axes data, sharding and expert; gradients are averaged inside a group, never between groups.

Start several ranks with `python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c ...`; without the
launcher there is one rank and nothing here communicates. `start` joins the ranks, `arrange` gives a stage its layout.
What this rank sends is counted in `traffic` (see traffic.py), also what Fleet sends on its own.
"""
from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed import fleet
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients_with_group

from ppvilg.config import DistributedConfig
from ppvilg.engine.parallel.layout import Axes, Layout, layout_of, resolve_axes
from ppvilg.engine.parallel.meeting import leave_note, meet, read_note, send_without_delay
from ppvilg.engine.parallel.sharding import FusedShardingOptimizer, GradientShardingOptimizer, gradient_dtype
from ppvilg.engine.parallel.traffic import Traffic

traffic = Traffic()


@dataclass
class _Groups:
    """Communication groups of a layout; None where this rank would be alone, `dist`'s own for the whole world."""

    data: object | None = None
    sharding: object | None = None
    ranks: object | None = None


_axes: Axes | None = None  # None: `start` was not called, all ranks are one data-parallel world
_groups: dict[bool, _Groups] = {}
_layout: Layout | None = None


def start(settings: DistributedConfig | None = None) -> None:
    """Join the other ranks of this run, if the launcher started any.

    Raises:
        ConfigError: axes that do not fit the number of ranks; nothing was started yet.
    """
    global _axes
    settings = settings or DistributedConfig()
    world = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    axes = resolve_axes(settings.data, settings.sharding, settings.expert, world)
    _axes = axes
    if world > 1 and not dist.is_initialized():
        _end_with_launcher()
        if paddle.get_device() == "cpu":
            from ppvilg.engine.parallel.gloo import give_groups_their_own_store

            give_groups_their_own_store()
        strategy = fleet.DistributedStrategy()
        strategy.hybrid_configs = {"dp_degree": world // axes.sharding, "sharding_degree": axes.sharding}
        fleet.init(is_collective=True, strategy=strategy)
        traffic.watch()
        _build_groups()
        send_without_delay()
    arrange(expert_groups=False)


def _end_with_launcher() -> None:
    """A rank whose launcher was killed would train on, beside the next run of the same command: the kernel ends it."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _build_groups() -> None:
    """The groups of both layouts; every rank makes all of them, in one order, and keeps its own."""
    mesh = fleet.get_hybrid_communicate_group()
    sharding = mesh.get_sharding_parallel_group() if _axes.sharding > 1 else None
    data = mesh.get_data_parallel_group() if _axes.world > _axes.sharding else None
    _groups[False] = _Groups(data, sharding)
    for group, name in ((sharding, "sharding"), (data, "data")):
        if group is not None:
            traffic.name_group(group, name)
    traffic.ranks["world"] = tuple(range(_axes.world))
    if _axes.expert == 1:
        return
    layouts = [layout_of(rank, _axes, True) for rank in range(_axes.world)]
    data = _group_among([layout.data_ranks for layout in layouts], "expert data")
    ranks = _group_among([layout.ranks for layout in layouts], "expert group") if _axes.sharding > 1 else data
    _groups[True] = _Groups(data, sharding, ranks)


def _group_among(sets: list[tuple[int, ...]], name: str):
    """The group of those `sets` of ranks that this rank is in, None where it is alone."""
    mine = None
    for ranks in dict.fromkeys(sets):
        if len(ranks) > 1:
            group = dist.new_group(list(ranks))
            if rank() in ranks:
                mine = group
                traffic.name_group(group, name)
    return mine


def arrange(expert_groups: bool) -> Layout:
    """Lay ranks out for a stage: expert groups that share nothing, or one world."""
    global _layout
    _layout = layout_of(rank(), _axes or Axes(data=world_size()), expert_groups)
    return _layout


def layout() -> Layout:
    """This rank's place in the current stage."""
    return _layout or layout_of(rank(), Axes(data=world_size()), False)


def _current() -> _Groups:
    """The groups of the current stage."""
    return _groups.get(layout().groups > 1, _Groups())


def shares(expert_groups: bool | None = None) -> int:
    """How many ranks a batch is cut for: in the current stage, or in one with or without expert groups."""
    if expert_groups is None:
        return layout().shares if _layout else world_size()
    return world_size() // (_axes.expert if expert_groups and _axes else 1)


def share() -> int:
    """Which part of a batch is this rank's, from 0."""
    return layout().share


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def ranks_on_this_machine() -> int:
    """How many ranks share this machine's memory."""
    machines = [each.rpartition(":")[0] for each in os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")]
    return max(1, machines.count(machines[rank()])) if len(machines) == world_size() else 1


def is_main() -> bool:
    """True on the one rank that shows progress and finishes files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here, however long one of them takes.

    gloo's own barrier gives up after half a minute, less than drawing, saving or encoding on one rank may take. The
    main rank, which hosts the store, is the last to go on.
    """
    if world_size() == 1:
        return
    meet("world", world_size())
    meet("left", world_size(), wait=is_main())


def _meet_before_gloo(name: str, count: int) -> None:
    """gloo gives up when a rank is half a minute late; on a busy machine, or after long work, one may well be."""
    if paddle.get_device() == "cpu":
        meet(name, count)


def from_main(text: str) -> str:
    """The main rank's text on every rank, however long the main rank takes to have it."""
    if world_size() == 1:
        return text
    key = leave_note(text if is_main() else None)
    barrier()
    return read_note(key)


def share_initial_weights(layers: Iterable[paddle.nn.Layer]) -> None:
    """Every rank of a group that trains the same weights starts from its first rank's weights and buffers."""
    place = layout()
    if place.shares == 1:
        return
    _meet_before_gloo(f"group {place.group} of {place.groups}", place.shares)
    with traffic.of("start"):
        for layer in layers:
            for tensor in list(layer.parameters()) + list(layer.buffers()):
                dist.broadcast(tensor, src=place.ranks[0], group=_current().ranks)


def agree(flags: np.ndarray) -> np.ndarray:
    """Maximum of small non-negative integers (n,) over the ranks that train the same weights."""
    place = layout()
    if place.shares == 1:
        return flags
    _meet_before_gloo(f"group {place.group} of {place.groups}", place.shares)
    return _maximum(flags, _current().ranks)


def agree_in_world(flags: np.ndarray) -> np.ndarray:
    """Maximum of small non-negative integers (n,) over all ranks."""
    if world_size() == 1:
        return flags
    _meet_before_gloo("world", world_size())
    return _maximum(flags, None)


def experts_by_rank(mine: list[int], count: int) -> dict[int, int]:
    """{expert: the first rank that has it} of a stage with `count` experts; every rank says which are its own."""
    holders = agree_in_world(np.array([world_size() - rank() if expert in mine else 0 for expert in range(count)]))
    return {expert: world_size() - int(holder) for expert, holder in enumerate(holders) if holder}


@paddle.no_grad()
def from_rank(value: paddle.Tensor, source: int) -> paddle.Tensor:
    """A rank's tensor on every rank, in place."""
    if world_size() > 1:
        _meet_before_gloo("world", world_size())
        with traffic.of("validation"):
            dist.broadcast(value, src=source)
    return value


def _maximum(flags: np.ndarray, group) -> np.ndarray:
    tensor = paddle.to_tensor(flags.astype(np.int32))
    with traffic.of("agreement"):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor.numpy()


def sharded_optimizer(optimizer, settings: DistributedConfig | None = None):
    """Fleet's sharding, stage 1 or 2, around an optimizer without state yet; the optimizer itself without that axis.

    Afterwards `optimizer._parameter_list` holds the parameters whose state lives on this rank.
    """
    settings, shards = settings or DistributedConfig(), layout().sharding_ranks
    if len(shards) == 1:
        return optimizer
    mesh = fleet.get_hybrid_communicate_group()
    if settings.sharding_stage == 1:
        return FusedShardingOptimizer(optimizer, mesh)
    meet = partial(_meet_before_gloo, f"shards {shards}", len(shards))
    return GradientShardingOptimizer(optimizer, mesh, traffic, meet, int(settings.bucket_megabytes * 2**20),
                                     settings.find_unused_parameters)


def finish_pass(optimizer, last: bool) -> None:
    """To be called after every backward pass: with sharding stage 2, what still waits goes to its owner."""
    if isinstance(optimizer, FusedShardingOptimizer):
        optimizer.finish_pass(last)


@paddle.no_grad()
def fill_gradients(used: list[paddle.Tensor], optimizer) -> None:
    """Zeros as gradients of parameters that have none here, and some on another rank that trains the same weights."""
    for parameter in optimizer.holders_of(used) if isinstance(optimizer, FusedShardingOptimizer) else used:
        if parameter.grad is None:
            parameter.grad = paddle.zeros(parameter.shape, gradient_dtype(parameter))


@paddle.no_grad()
def average_gradients(parameters: list[paddle.Tensor], optimizer=None) -> None:
    """Replace every gradient by its mean over the ranks that train the same weights; parameters without are left out.

    Which parameters have gradients must agree between ranks. With Fleet's sharding `optimizer`, only the owner of a
    parameter has its mean afterwards; what other ranks hold then is of no use.
    """
    if layout().shares == 1:
        return
    present, groups = [p for p in parameters if p.grad is not None], _current()
    with traffic.of("gradients"):
        if isinstance(optimizer, FusedShardingOptimizer):
            mesh = fleet.get_hybrid_communicate_group()
            optimizer.reduce_gradients(present, mesh)
            present = optimizer.filter_parameters(present, mesh)
        if len(layout().data_ranks) > 1:
            fused_allreduce_gradients_with_group(present, groups.data)


def sum_over_shards(value: paddle.Tensor) -> paddle.Tensor:
    """Sum of a scalar over the ranks that together hold the optimizer's state, in place."""
    if len(layout().sharding_ranks) > 1:
        with traffic.of("agreement"):
            dist.all_reduce(value, group=_current().sharding)
    return value


@paddle.no_grad()
def share_owned_weights(parameters: list[paddle.Tensor], optimizer) -> None:
    """With Fleet's sharding `optimizer`, every rank takes over each parameter from its owner."""
    if not isinstance(optimizer, FusedShardingOptimizer):
        return
    optimizer.share(parameters)


def mean_over_ranks(values: np.ndarray) -> np.ndarray:
    """Mean of a float array over all ranks, (n,) -> (n,)."""
    if world_size() == 1:
        return values
    _meet_before_gloo("world", world_size())
    tensor = paddle.to_tensor(values.astype(np.float32))
    with traffic.of("log"):
        dist.all_reduce(tensor)
    return tensor.numpy() / world_size()


def rank_slice(total: int) -> slice:
    """This rank's contiguous share of `total` items of a batch, a multiple of the number of shares."""
    size = total // shares()
    return slice(share() * size, (share() + 1) * size)


def seed_step(seed: int, step: int, stage: int) -> None:
    """Reseed Paddle's own generators (dropout) from (seed, share, step): a resumed run draws the same numbers."""
    paddle.seed(int(np.random.SeedSequence([seed, stage, share(), step]).generate_state(1)[0] >> 1))
