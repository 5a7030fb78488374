"""Jobs as those who ask see them: hand in, look up, cancel, place in the queue."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, update

from ..errors import ServiceError
from .store import Store
from .tables import jobs

UNFINISHED = ("queued", "running")
FINAL = ("done", "failed", "cancelled")
FRESH_SECONDS = 60.0  # how long a client whose answer got lost may come back for it


@dataclass(frozen=True)
class Job:
    """A row of the table."""

    number: int
    id: str
    owner: str
    protocol: str
    state: str
    request: dict
    extra: dict
    notes: list[str]
    warnings: list[str]
    wanted: int
    created: float
    started: float | None
    finished: float | None
    worker: str | None
    lease_until: float | None
    attempts: int
    cancel: bool
    watched_until: float
    progress: dict | None
    error_code: str | None
    error_message: str | None
    retry_key: str | None
    revision: int

    @property
    def is_final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait, of everybody and of one owner."""

    total: int = 5000
    per_owner: int = 500


def new_id() -> str:
    """22 characters that nobody guesses."""
    return secrets.token_urlsafe(16)


def submit(
    connection: Connection,
    owner: str,
    protocol: str,
    request: dict,
    limits: QueueLimits,
    extra: dict | None = None,
    notes: list[str] | None = None,
    warnings: list[str] | None = None,
    retry_key: str | None = None,
    attach_after: float | None = None,
) -> Job:
    """Puts a job in the queue.

    attach_after: instead of a second job, the one with the same `retry_key` that was handed in at least so many
    seconds ago and has not ended, or ended well a moment ago; None: always a new job. ServiceError queue_full.
    """
    now = time.time()
    if retry_key is not None and attach_after is not None:
        alive = or_(jobs.c.state.in_(UNFINISHED), and_(jobs.c.state == "done", jobs.c.finished > now - FRESH_SECONDS))
        same = jobs.c.retry_key == retry_key, jobs.c.owner == owner, jobs.c.created <= now - attach_after
        row = connection.execute(select(jobs).where(alive, *same).limit(1)).mappings().first()
        if row is not None:
            return Job(**row)
    waiting = select(func.count()).select_from(jobs).where(jobs.c.state == "queued")
    mine = connection.execute(waiting.where(jobs.c.owner == owner)).scalar_one()
    if mine >= limits.per_owner or connection.execute(waiting).scalar_one() >= limits.total:
        raise ServiceError("queue_full", "too many jobs are waiting already; try again later", retry_after=10)
    values = {
        "id": new_id(),
        "owner": owner,
        "protocol": protocol,
        "state": "queued",
        "request": request,
        "extra": extra or {},
        "notes": notes or [],
        "warnings": warnings or [],
        "wanted": request["num_images"],
        "created": now,
        "retry_key": retry_key,
    }
    row = connection.execute(jobs.insert().values(values).returning(*jobs.c)).mappings().one()
    return Job(**row)


def find(store: Store, owner: str | None, id: str | None = None, number: int | None = None) -> Job:
    """A job by id or number, one's own unless owner is None. ServiceError not_found."""
    which = jobs.c.id == id if number is None else jobs.c.number == number
    with store.reading() as connection:
        row = connection.execute(select(jobs).where(which, *_own(owner))).mappings().first()
    if row is None:
        raise ServiceError("not_found", "no such job")
    return Job(**row)


def newest(store: Store, owner: str, unfinished: bool = False, limit: int = 50) -> list[Job]:
    """One's own jobs, newest first."""
    query = select(jobs).where(jobs.c.owner == owner).order_by(jobs.c.number.desc()).limit(limit)
    if unfinished:
        query = query.where(jobs.c.state.in_(UNFINISHED))
    with store.reading() as connection:
        return [Job(**row) for row in connection.execute(query).mappings()]


def revisions(store: Store, ids: list[str]) -> dict[str, int]:
    """Revision of each job that is there."""
    with store.reading() as connection:
        rows = connection.execute(select(jobs.c.id, jobs.c.revision).where(jobs.c.id.in_(ids))).all()
    return {row.id: row.revision for row in rows}


def watch(store: Store, ids: list[str], until: float) -> None:
    """Tells the worker that somebody looks at the previews of these jobs."""
    with store.writing() as connection:
        wanted = jobs.c.id.in_(ids), jobs.c.state.in_(UNFINISHED)
        connection.execute(update(jobs).where(*wanted).values(watched_until=until))


def cancel(store: Store, owner: str | None = None, ids: list[str] | None = None) -> int:
    """Cancels unfinished jobs, all of an owner or those named; the number of jobs that were still unfinished.

    A queued job ends now, a running one when its worker sees it, between two steps.
    """
    chosen = [*_own(owner), *([] if ids is None else [jobs.c.id.in_(ids)])]
    more = {"revision": jobs.c.revision + 1}
    with store.writing() as connection:
        ended = connection.execute(
            update(jobs)
            .where(jobs.c.state == "queued", *chosen)
            .values(state="cancelled", cancel=True, finished=time.time(), **more)
        )
        asked = connection.execute(update(jobs).where(jobs.c.state == "running", *chosen).values(cancel=True, **more))
    return ended.rowcount + asked.rowcount


def turns() -> Select:
    """(number, turn) of every queued job: how many pictures its owner has before it, queued or being drawn.

    Ordered by turn, owners alternate: nobody's one picture waits behind another's fifty.
    """
    busy = (
        select(jobs.c.owner, func.sum(jobs.c.wanted).label("pictures"))
        .where(jobs.c.state == "running")
        .group_by(jobs.c.owner)
        .subquery("busy")
    )
    before = func.sum(jobs.c.wanted).over(partition_by=jobs.c.owner, order_by=jobs.c.number) - jobs.c.wanted
    return (
        select(jobs.c.number, (before + func.coalesce(busy.c.pictures, 0)).label("turn"))
        .select_from(jobs.outerjoin(busy, busy.c.owner == jobs.c.owner))
        .where(jobs.c.state == "queued")
    )


@dataclass(frozen=True)
class Queue:
    """What waits and what is drawn: jobs, and pictures where it says so."""

    queued: int
    running: int
    order: list[int]  # numbers of the queued jobs, next first
    pictures: list[int]  # wanted by each of them
    pictures_running: int


def queue(store: Store) -> Queue:
    """The whole queue in the order in which it will be drawn."""
    ranked = turns().subquery("ranked")
    waiting = (
        select(jobs.c.number, jobs.c.wanted)
        .join(ranked, ranked.c.number == jobs.c.number)
        .order_by(ranked.c.turn, jobs.c.number)
    )
    drawn = select(func.count(), func.coalesce(func.sum(jobs.c.wanted), 0)).where(jobs.c.state == "running")
    with store.reading() as connection:
        rows = connection.execute(waiting).all()
        running, pictures = connection.execute(drawn).one()
    return Queue(len(rows), running, [row[0] for row in rows], [row[1] for row in rows], int(pictures))


def _own(owner: str | None) -> list[ColumnElement]:
    return [] if owner is None else [jobs.c.owner == owner]


def expired_leases(now: float) -> ColumnElement:
    """Jobs whose worker has not been heard of."""
    return and_(jobs.c.state == "running", or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now))
