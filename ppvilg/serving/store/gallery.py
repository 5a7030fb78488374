"""Pictures and uploads in the store: look up, delete, and what has outlived its time or its room."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from ..errors import ServiceError
from .jobs import FINAL, new_id
from .store import Store
from .tables import jobs, pictures, uploads


@dataclass(frozen=True)
class Picture:
    """A row of the table of pictures."""

    number: int
    id: str
    job: str
    owner: str
    index: int
    sha256: str
    bytes: int
    width: int
    height: int
    seed: int
    settings: dict
    model: dict
    created: float
    expires: float | None


@dataclass(frozen=True)
class Upload:
    """A row of the table of uploads."""

    id: str
    owner: str
    sha256: str
    bytes: int
    width: int
    height: int
    created: float
    expires: float | None


def of_jobs(store: Store, ids: Collection[str]) -> dict[str, list[Picture]]:
    """The pictures of each job, by index."""
    query = select(pictures).where(pictures.c.job.in_(list(ids))).order_by(pictures.c.index)
    found: dict[str, list[Picture]] = {id: [] for id in ids}
    with store.reading() as connection:
        for row in connection.execute(query).mappings():
            found[row["job"]].append(Picture(**row))
    return found


def page(store: Store, owner: str, limit: int, before: int | None) -> list[Picture]:
    """One's own pictures, newest first, those with a number below `before`."""
    query = select(pictures).where(pictures.c.owner == owner).order_by(pictures.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(pictures.c.number < before)
    with store.reading() as connection:
        return [Picture(**row) for row in connection.execute(query).mappings()]


def find_picture(store: Store, owner: str | None, id: str) -> Picture:
    """A picture by id, one's own unless owner is None. ServiceError not_found."""
    query = select(pictures).where(pictures.c.id == id)
    if owner is not None:
        query = query.where(pictures.c.owner == owner)
    with store.reading() as connection:
        row = connection.execute(query).mappings().first()
    if row is None:
        raise ServiceError("not_found", "no such picture; it may have been deleted")
    return Picture(**row)


def add_upload(store: Store, owner: str, row: dict) -> Upload:
    """Enters an upload whose file is written."""
    upload = Upload(id=new_id(), owner=owner, created=time.time(), **row)
    with store.writing() as connection:
        connection.execute(uploads.insert().values(vars(upload)))
    return upload


def find_upload(store: Store, owner: str | None, id: str) -> Upload:
    """An upload by id, one's own unless owner is None. ServiceError not_found."""
    query = select(uploads).where(uploads.c.id == id)
    if owner is not None:
        query = query.where(uploads.c.owner == owner)
    with store.reading() as connection:
        row = connection.execute(query).mappings().first()
    if row is None:
        raise ServiceError("not_found", "no such upload; it may have expired")
    return Upload(**row)


def delete_picture(store: Store, owner: str, id: str) -> str | None:
    """Removes one's own picture; returns the hash of its file if no other row needs the file."""
    picture = find_picture(store, owner, id)
    with store.writing() as connection:
        connection.execute(delete(pictures).where(pictures.c.id == id))
        return next(iter(unneeded(connection, {picture.sha256})), None)


def unneeded(connection: Connection, hashes: Collection[str]) -> set[str]:
    """Which of these contents no row refers to."""
    needed = set()
    for table in (pictures, uploads):
        needed |= set(connection.execute(select(table.c.sha256).where(table.c.sha256.in_(list(hashes)))).scalars())
    return set(hashes) - needed


def expire(store: Store, now: float, keep_seconds: float) -> tuple[set[str], list[str]]:
    """Removes what has outlived its time, jobs that ended before `keep_seconds` ago too.

    Returns hashes of files not needed any more, and the jobs, whose previews can go.
    """
    with store.writing() as connection:
        hashes = set()
        for table in (pictures, uploads):
            old = table.c.expires < now
            hashes |= set(connection.execute(delete(table).where(old).returning(table.c.sha256)).scalars())
        old = jobs.c.finished < now - keep_seconds, jobs.c.state.in_(FINAL)
        ended = list(connection.execute(delete(jobs).where(*old).returning(jobs.c.id)).scalars())
        return unneeded(connection, hashes), ended


def make_room(store: Store, limit_bytes: int) -> set[str]:
    """Removes the oldest pictures and uploads until the rest has `limit_bytes`; hashes of files not needed any more."""
    with store.reading() as connection:  # most often there is room, and nobody need wait
        if _bytes_taken(connection) <= limit_bytes:
            return set()
    with store.writing() as connection:
        total = _bytes_taken(connection)
        oldest = [
            (row.created, table, row)
            for table in (pictures, uploads)
            for row in connection.execute(select(table.c.created, table.c.id, table.c.sha256, table.c.bytes))
        ]
        hashes = set()
        for _, table, row in sorted(oldest, key=lambda each: each[0]):
            if total <= limit_bytes:
                break
            connection.execute(delete(table).where(table.c.id == row.id))
            hashes.add(row.sha256)
            total -= row.bytes
        return unneeded(connection, hashes)


def _bytes_taken(connection: Connection) -> int:
    """Bytes of all pictures and uploads."""
    sums = [select(func.coalesce(func.sum(table.c.bytes), 0)) for table in (pictures, uploads)]
    return sum(int(connection.execute(each).scalar_one()) for each in sums)
