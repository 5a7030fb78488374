"""Data-parallel ranks through Fleet: one gradient average per optimizer step, the same result on every rank.

Start several ranks with `python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c ...`; without the
launcher there is one rank and nothing here communicates.
"""
from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed import fleet
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

_barriers = itertools.count()


def start() -> None:
    """Join the other ranks of this run, if the launcher started any."""
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1 and not dist.is_initialized():
        _end_with_launcher()
        strategy = fleet.DistributedStrategy()
        strategy.hybrid_configs = {"dp_degree": int(os.environ["PADDLE_TRAINERS_NUM"])}
        fleet.init(is_collective=True, strategy=strategy)


def _end_with_launcher() -> None:
    """A rank whose launcher was killed would train on, beside the next run of the same command: the kernel ends it."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one rank that writes files and shows progress."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here, however long one of them takes.

    It counts arrivals in the store that the ranks met in: gloo's own barrier gives up after half a minute, less than
    drawing, saving or encoding on one rank may take.
    """
    if world_size() == 1:
        return
    store, key = paddle.distributed.collective._default_store, f"ppvilg/barrier/{next(_barriers)}"
    store.add(key, 1)
    while store.add(key, 0) < world_size():
        time.sleep(0.02)


def share_initial_weights(layers: Iterable[paddle.nn.Layer]) -> None:
    """Every rank starts from rank 0's weights and buffers."""
    if world_size() == 1:
        return
    for layer in layers:
        for tensor in list(layer.parameters()) + list(layer.buffers()):
            dist.broadcast(tensor, src=0)


def average_gradients(parameters: list[paddle.Tensor]) -> None:
    """Replace every gradient by its mean over ranks, in few large messages; parameters without one are left out.

    Which parameters have gradients must agree between ranks: an expert that no rank ran has none anywhere.
    """
    if world_size() > 1:
        fused_allreduce_gradients([p for p in parameters if p.grad is not None], None)


def mean_over_ranks(values: np.ndarray) -> np.ndarray:
    """Mean of a float array over ranks, (n,) -> (n,)."""
    if world_size() == 1:
        return values
    tensor = paddle.to_tensor(values.astype(np.float32))
    dist.all_reduce(tensor)
    return tensor.numpy() / world_size()


def rank_slice(total: int) -> slice:
    """This rank's contiguous share of `total` items, a multiple of the number of ranks."""
    share = total // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def seed_step(seed: int, step: int, stage: int) -> None:
    """Reseed Paddle's own generators (dropout) from (seed, rank, step): a resumed run draws the same numbers."""
    paddle.seed(int(np.random.SeedSequence([seed, stage, rank(), step]).generate_state(1)[0] >> 1))
