"""Which rank does what: the axes data, sharding and expert, as plain numbers (no communication here).

Ranks are counted with `sharding` innermost and `expert` outermost: rank = (expert * data + row) * sharding + shard.
The stages vae and base use every rank for one model, so there the expert axis is data parallelism too; stage experts
cuts the world into `expert` groups that share nothing, each with data and sharding parallelism inside.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppvilg.config import ConfigError


@dataclass(frozen=True)
class Axes:
    """Sizes of the axes; their product is the number of ranks."""

    data: int = 1
    sharding: int = 1
    expert: int = 1

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.data * self.sharding * self.expert


@dataclass(frozen=True)
class Layout:
    """One rank's place in one stage. `ranks` are those that train the same weights as this one, in order of `share`.

    groups, group: how many sets of such ranks there are, and which one this is. shares, share: into how many parts they
    cut a batch, and which one is this rank's. data_ranks hold the same shard of the optimizer's state; sharding_ranks
    together hold all of it. writers, writer: how many ranks write a checkpoint, and which of them this is (None: none).
    """

    groups: int
    group: int
    ranks: tuple[int, ...]
    share: int
    data_ranks: tuple[int, ...]
    sharding_ranks: tuple[int, ...]
    writers: int
    writer: int | None

    @property
    def shares(self) -> int:
        """Ranks that a batch is cut for."""
        return len(self.ranks)


def resolve_axes(data: int | None, sharding: int, expert: int, world: int) -> Axes:
    """Axes of a world; `data` None takes what is left.

    Raises:
        ConfigError: a size below one, or sizes that do not divide the world.
    """
    for key, value in (("data", data), ("sharding", sharding), ("expert", expert)):
        if value is not None and value < 1:
            raise ConfigError(f"distributed.{key}={value}: must be at least 1")
    ranks = f"{world} rank{'s were' if world > 1 else ' was'} started"
    if data is None:
        if world % (sharding * expert):
            raise ConfigError(f"distributed.sharding={sharding} times distributed.expert={expert} does not divide the "
                              f"world: {ranks}. Start a multiple of {sharding * expert}, or change the axes")
        data = world // (sharding * expert)
    if data * sharding * expert != world:
        raise ConfigError(f"distributed.data={data} x sharding={sharding} x expert={expert} needs "
                          f"{data * sharding * expert} ranks, and {ranks}. Start as many, or set distributed.data=null "
                          f"to take what is left")
    return Axes(data, sharding, expert)


def layout_of(rank: int, axes: Axes, expert_groups: bool) -> Layout:
    """A rank's place: in one world over all ranks, or (`expert_groups`) in its expert group."""
    groups = axes.expert if expert_groups else 1
    size = axes.world // groups
    group, share = divmod(rank, size)
    row, shard = divmod(share, axes.sharding)
    first = group * size
    return Layout(
        groups=groups, group=group, ranks=tuple(range(first, first + size)), share=share,
        data_ranks=tuple(range(first + shard, first + size, axes.sharding)),
        sharding_ranks=tuple(range(first + row * axes.sharding, first + (row + 1) * axes.sharding)),
        writers=groups * axes.sharding, writer=group * axes.sharding + shard if row == 0 else None)


def experts_of(group: int, groups: int, chosen: Sequence[int]) -> list[int]:
    """Experts of one group: every `groups`-th of the chosen ones, so that every group has work in every round.

    Raises:
        ConfigError: the groups cannot have equally many.
    """
    if len(chosen) % groups:
        raise ConfigError(f"distributed.expert={groups} groups cannot share {len(chosen)} experts evenly: "
                          f"choose an axis that divides their number")
    return sorted(chosen)[group::groups]
