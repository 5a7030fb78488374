"""What gloo groups need on a CPU before they are made; not imported where a GPU computes."""
from __future__ import annotations

import os
import socket

import paddle
import paddle.distributed.collective as collective
import paddle.distributed.parallel as parallel

from ppvilg.engine.parallel.meeting import send_without_delay

_stores: list = []  # groups need theirs to stay alive


def give_groups_their_own_store() -> None:
    """All gloo groups rendezvous under the same keys of one store and take each other's addresses: one store each."""
    original = collective._new_process_group_impl

    def with_own_store(backend, store, rank, world_size, group_name, *arguments, **options):
        if backend == "gloo" and group_name != collective._default_group_name:
            store = _own_store(store, rank, f"ppvilg/group/{group_name}")
        send_without_delay()
        return original(backend, store, rank, world_size, group_name, *arguments, **options)

    collective._new_process_group_impl = parallel._new_process_group_impl = with_own_store


def _own_store(common, rank: int, key: str):
    """A new store, hosted by the first rank of a group; its address travels through the common one.

    The host waits for nobody and tells the address when it listens: a client that is too early sleeps three seconds.
    """
    if rank == 0:
        host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "127.0.0.1:0").split(":")[0]
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        _stores.append(paddle.base.core.TCPStore(host, port, True, 1))
        common.set(key, f"{host}:{port}")
    else:
        host, port = bytes(common.get(key)).decode().split(":")
        _stores.append(paddle.base.core.TCPStore(host, int(port), False, 1))
    return _stores[-1]
