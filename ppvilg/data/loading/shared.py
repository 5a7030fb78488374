"""Objects with arrays between two processes on one machine: the arrays lie in memory that both see, and are not copied.

Each object has memory of its own, without a name in any file system: it is gone when the last array of it is, and with
the processes, however they end.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from multiprocessing import reduction
from multiprocessing.connection import Connection

_ALIGNMENT = 64
_POPULATED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # its pages are there before they are asked for


def send(connection: Connection, value) -> None:
    """Send what `receive` gives at the other end; the arrays in it must be contiguous to be shared."""
    buffers = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps((text, [view.nbytes for view in views])))
    if not views:
        return
    places, total = _places([view.nbytes for view in views])
    file = _anonymous_file()
    try:
        os.ftruncate(file, total)
        with mmap.mmap(file, total, flags=_POPULATED) as memory:
            for place, view in zip(places, views):
                memory[place : place + view.nbytes] = view
        reduction.send_handle(connection, file, None)
    finally:
        os.close(file)


def receive(connection: Connection):
    """What was sent; EOFError when the other end is gone."""
    text, sizes = pickle.loads(connection.recv_bytes())
    if not sizes:
        return pickle.loads(text)
    places, total = _places(sizes)
    file = reduction.recv_handle(connection)
    try:
        memory = memoryview(mmap.mmap(file, total, flags=_POPULATED))
    finally:
        os.close(file)
    return pickle.loads(text, buffers=[memory[place : place + size] for place, size in zip(places, sizes)])


def _places(sizes: list[int]) -> tuple[list[int], int]:
    """Offsets of buffers of these sizes in one piece of memory, and its size."""
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, max(end, 1)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("ppvilg-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
