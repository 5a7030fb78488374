"""Things of one kind that go through a network at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def in_batches(items: Iterable[Item], kind: Callable[[Item], Hashable], batch_size: int) -> Iterator[list[Item]]:
    """Batches of items of one kind (pictures of one size), each as soon as it is full; what is left comes at the end.

    No more than `batch_size` items of each kind wait in memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        batch = waiting.setdefault(kind(item), [])
        batch.append(item)
        if len(batch) == batch_size:
            yield waiting.pop(kind(item))
    yield from waiting.values()
