"""Ranks meet in the store that they all joined through: waiting without a limit, and a text for everyone."""
from __future__ import annotations

import itertools
import os
import socket
import time
from collections import Counter
from contextlib import suppress

import paddle

_met: Counter = Counter()  # how often this rank was at each meeting
_notes = itertools.count()


def meet(name: str, count: int, wait: bool = True) -> None:
    """Wait until `count` ranks have called this as often: arrivals are counted in the store that all ranks met in."""
    store, key, pause = _store(), f"ppvilg/meeting/{name}", 0.0005
    _met[name] += 1
    arrived = store.add(key, 1)
    while wait and arrived < count * _met[name]:
        time.sleep(pause)
        pause = min(1.5 * pause, 0.02)
        arrived = store.add(key, 0)


def leave_note(text: str | None) -> str:
    """Leave a text in the store, or nothing (None) on a rank that only reads it; gives its key, the same on all."""
    key = f"ppvilg/note/{next(_notes)}"
    if text is not None:
        _store().set(key, text)
    return key


def read_note(key: str) -> str:
    """The text that was left under a key."""
    return bytes(_store().get(key)).decode()


def send_without_delay() -> None:
    """Take Nagle's delay off this process's connections.

    Paddle's store sends a request in several small pieces, each of which would wait 40 ms for the answer to the last.
    """
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):  # no socket, or not of this kind
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _store():
    return paddle.distributed.collective._default_store
