"""Which worker processes there are, what they are doing, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import delete, select

from .store import Store
from .tables import workers

SILENT_SECONDS = 20.0  # a worker not heard of for so long does not count


@dataclass(frozen=True)
class WorkerState:
    """A row of the table; loading: {"what": str, "fraction": 0 to 1}."""

    id: str
    state: str
    started: float
    seen: float
    model_hash: str | None
    loading: dict | None
    seconds_per_step: float | None


def announce(
    store: Store,
    id: str,
    state: str,
    started: float,
    model_hash: str | None = None,
    loading: dict | None = None,
    seconds_per_step: float | None = None,
) -> None:
    """Says that a worker lives and what it does."""
    row = WorkerState(id, state, started, time.time(), model_hash, loading, seconds_per_step)
    with store.writing() as connection:
        connection.execute(delete(workers).where(workers.c.id == id))
        connection.execute(workers.insert().values(vars(row)))


def leave(store: Store, id: str) -> None:
    """Says that a worker has ended in good order."""
    with store.writing() as connection:
        connection.execute(delete(workers).where(workers.c.id == id))


def present(store: Store) -> list[WorkerState]:
    """The workers heard of lately."""
    query = select(workers).where(workers.c.seen > time.time() - SILENT_SECONDS)
    with store.reading() as connection:
        return [WorkerState(**row) for row in connection.execute(query).mappings()]


def forget_silent(store: Store, now: float) -> None:
    """Removes workers that have not been heard of for an hour."""
    with store.writing() as connection:
        connection.execute(delete(workers).where(workers.c.seen < now - 3600))
