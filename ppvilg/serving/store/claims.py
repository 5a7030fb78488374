"""Jobs as a worker sees them: claim under a lease, report, finish; and what happens to those whose worker is gone."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import case, func, select, update

from .jobs import Job, expired_leases, turns
from .store import Store
from .tables import jobs, pictures

LEASE_SECONDS = 20.0
MAX_ATTEMPTS = 5


@dataclass(frozen=True)
class Standing:
    """What a worker must know of a job that it holds."""

    cancel: bool
    watched: bool


def claim(
    store: Store, worker: str, room: int, idle: bool, newcomers_only: bool = False, lease: float = LEASE_SECONDS
) -> list[Job]:
    """Takes queued jobs of up to `room` pictures (at least one job), owners in turns.

    newcomers_only: only jobs of owners of whom nothing is being drawn. A job that was once lost with its worker is
    handed to an idle worker alone, so that one which kills its worker takes no other with it.
    """
    now = time.time()
    ranked = turns().subquery("ranked")
    query = (
        select(jobs.c.number, jobs.c.wanted, jobs.c.attempts)
        .join(ranked, ranked.c.number == jobs.c.number)
        .where(jobs.c.state == "queued")
        .order_by(ranked.c.turn, jobs.c.number)
        .limit(room)
        .with_for_update(of=jobs, skip_locked=True)
    )
    if newcomers_only:
        query = query.where(ranked.c.turn == 0)
    with store.writing() as connection:
        _take_back(connection, now)
        chosen, total = [], 0
        for number, wanted, attempts in connection.execute(query).all():
            if attempts and (chosen or not idle):
                break  # its turn comes when the worker is idle
            if chosen and total + wanted > room:
                break
            chosen.append(number)
            total += wanted
            if attempts:
                break
        if not chosen:
            return []
        taken = (
            update(jobs)
            .where(jobs.c.number.in_(chosen), jobs.c.state == "queued")
            .values(
                state="running",
                worker=worker,
                lease_until=now + lease,
                attempts=jobs.c.attempts + 1,
                started=func.coalesce(jobs.c.started, now),
                revision=jobs.c.revision + 1,
            )
            .returning(*jobs.c)
        )
        rows = {row["number"]: Job(**row) for row in connection.execute(taken).mappings()}
    return [rows[number] for number in chosen if number in rows]


def _take_back(connection, now: float) -> None:
    """Jobs whose lease has run out wait again, or have failed when that happened too often."""
    lost = expired_leases(now)
    if connection.execute(select(func.count()).select_from(jobs).where(lost)).scalar_one() == 0:
        return
    common = {"worker": None, "lease_until": None, "revision": jobs.c.revision + 1}
    connection.execute(update(jobs).where(lost, jobs.c.cancel).values(state="cancelled", finished=now, **common))
    message = f"its worker ended {MAX_ATTEMPTS} times while drawing it; it is not tried again"
    connection.execute(
        update(jobs)
        .where(lost, jobs.c.attempts >= MAX_ATTEMPTS)
        .values(state="failed", error_code="attempts", error_message=message, finished=now, **common)
    )
    connection.execute(update(jobs).where(lost).values(state="queued", progress=None, **common))


def report(
    store: Store,
    worker: str,
    held: Collection[str],
    progress: Mapping[str, dict],
    lease: float = LEASE_SECONDS,
) -> dict[str, Standing]:
    """Writes progress, extends the leases of all `held` jobs; returns the standing of those still held."""
    now = time.time()
    mine = jobs.c.worker == worker, jobs.c.state == "running", jobs.c.id.in_(list(held))
    with store.writing() as connection:
        connection.execute(update(jobs).where(*mine).values(lease_until=now + lease))
        for id, values in progress.items():
            connection.execute(
                update(jobs)
                .where(jobs.c.id == id, jobs.c.worker == worker, jobs.c.state == "running")
                .values(progress=values, revision=jobs.c.revision + 1)
            )
        rows = connection.execute(select(jobs.c.id, jobs.c.cancel, jobs.c.watched_until).where(*mine)).all()
    return {id: Standing(bool(cancel), watched_until > now) for id, cancel, watched_until in rows}


def finished_places(store: Store, job: str) -> set[int]:
    """Which pictures of a job an earlier attempt has already put in the store."""
    with store.reading() as connection:
        return set(connection.execute(select(pictures.c.index).where(pictures.c.job == job)).scalars())


def add_picture(store: Store, worker: str, row: Mapping) -> bool:
    """Enters a picture whose file is written, and ends its job with the last one; False if the job is lost."""
    with store.writing() as connection:
        mine = jobs.c.id == row["job"], jobs.c.worker == worker, jobs.c.state == "running"
        job = connection.execute(select(jobs.c.wanted).where(*mine)).first()
        if job is None:
            return False
        there = select(pictures.c.id).where(pictures.c.job == row["job"], pictures.c.index == row["index"])
        if connection.execute(there).first() is None:
            connection.execute(pictures.insert().values(dict(row)))
        count = select(func.count()).select_from(pictures).where(pictures.c.job == row["job"])
        done = connection.execute(count).scalar_one() >= job.wanted
        ending = {"state": "done", "finished": row["created"], "worker": None, "lease_until": None}
        connection.execute(
            update(jobs).where(*mine).values(revision=jobs.c.revision + 1, **(ending if done else {}))
        )
    return True


def end(store: Store, worker: str, job: str, code: str | None, message: str | None = None) -> bool:
    """Ends a held job as failed with `code`, or as cancelled with None; False if it is not held any more."""
    with store.writing() as connection:
        ended = connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.worker == worker, jobs.c.state == "running")
            .values(
                state="cancelled" if code is None else "failed",
                error_code=code,
                error_message=message,
                finished=time.time(),
                worker=None,
                lease_until=None,
                revision=jobs.c.revision + 1,
            )
        )
    return ended.rowcount == 1


def set_apart(store: Store, worker: str, ids: Collection[str]) -> None:
    """Puts held jobs back so that each is drawn alone: one of them broke a step that they shared."""
    with store.writing() as connection:
        connection.execute(
            update(jobs)
            .where(jobs.c.worker == worker, jobs.c.state == "running", jobs.c.id.in_(list(ids)))
            .values(state="queued", worker=None, lease_until=None, progress=None, revision=jobs.c.revision + 1)
        )


def give_up_leases(store: Store, worker: str) -> None:
    """Ends the leases of a worker that is known to have died, so that nobody waits for them to run out."""
    with store.writing() as connection:
        mine = jobs.c.worker == worker, jobs.c.state == "running"
        connection.execute(update(jobs).where(*mine).values(lease_until=0.0))


def release(store: Store, worker: str) -> int:
    """Puts all jobs of a worker that ends in good order back into the queue, as if it had not tried them."""
    with store.writing() as connection:
        mine = jobs.c.worker == worker, jobs.c.state == "running"
        values = {"worker": None, "lease_until": None, "progress": None, "revision": jobs.c.revision + 1}
        attempts = case((jobs.c.attempts > 0, jobs.c.attempts - 1), else_=0)
        ended = {"state": "cancelled", "finished": time.time(), **values}
        connection.execute(update(jobs).where(*mine, jobs.c.cancel).values(ended))
        freed = connection.execute(update(jobs).where(*mine).values(state="queued", attempts=attempts, **values))
    return freed.rowcount
