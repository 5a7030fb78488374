"""The tables of the service, one schema for SQLite and PostgreSQL, and the steps that lead there from any older one."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    select,
    text,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column of the type INTEGER.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")

versions = Table("versions", metadata, Column("version", Integer, primary_key=True))

jobs = Table(
    "jobs",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(80), nullable=False),
    Column("protocol", String(20), nullable=False),
    Column("state", String(12), nullable=False),  # queued, running, done, failed, cancelled
    Column("request", JSON, nullable=False),
    Column("extra", JSON, nullable=False),  # what its protocol must remember: the text as sent, the size asked for
    Column("notes", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("wanted", Integer, nullable=False),  # pictures
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("worker", String(80)),
    Column("lease_until", Double),
    Column("attempts", Integer, nullable=False, default=0),
    Column("cancel", Boolean, nullable=False, default=False),
    Column("watched_until", Double, nullable=False, default=0.0),  # somebody looks at its previews
    Column("progress", JSON),  # steps_done, steps_total, expert, timestep, previews
    Column("error_code", String(20)),
    Column("error_message", Text),
    Column("retry_key", String(64)),
    Column("revision", Integer, nullable=False, default=1),
    Index("jobs_by_state", "state", "owner", "number"),
    Index("jobs_by_owner", "owner", "number"),
    Index("jobs_by_retry_key", "retry_key"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("job", String(32), nullable=False),
    Column("owner", String(80), nullable=False),
    Column("index", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),  # of the PNG file, which holds no metadata
    Column("bytes", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("model", JSON, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    UniqueConstraint("job", "index", name="one_picture_per_place"),
    Index("pictures_by_owner", "owner", "number"),
    Index("pictures_by_content", "sha256"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(80), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Index("uploads_by_content", "sha256"),
)

keys = Table(
    "keys",
    metadata,
    Column("ak", String(40), primary_key=True),
    Column("name", String(80), nullable=False, unique=True),
    Column("sk_hash", String(64), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Column("pictures_per_day", Integer),
    Column("requests_per_minute", Integer),
)

usage = Table(
    "usage",
    metadata,
    Column("owner", String(80), primary_key=True),
    Column("period", String(20), primary_key=True),  # "2026-11-25" or "minute 29400000"
    Column("requests", Integer, nullable=False, default=0),
    Column("pictures", Integer, nullable=False, default=0),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("state", String(12), nullable=False),  # loading, ready, draining
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),
    Column("model_hash", String(64)),
    Column("loading", JSON),  # what, fraction
    Column("seconds_per_step", Double),  # of one picture, when busy
)


def _first(connection: Connection) -> None:
    metadata.create_all(connection)


# Step n leads from version n to n + 1. A step that has been released is never changed: add one.
STEPS: tuple[Callable[[Connection], None], ...] = (_first,)


def migrate(connection: Connection) -> int:
    """Brings the tables to the newest version inside the caller's transaction; returns that version.

    ValueError for a store written by a newer ppvilg.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7078766)"))  # servers that start together take turns
    present = 0
    if inspect(connection).has_table(versions.name):
        present = connection.execute(select(versions.c.version)).scalar() or 0
    if present > len(STEPS):
        raise ValueError(
            f"the store has version {present}, this ppvilg knows up to {len(STEPS)}: use the ppvilg that wrote it"
        )
    for step in STEPS[present:]:
        step(connection)
    if present < len(STEPS):
        connection.execute(versions.delete())
        connection.execute(versions.insert().values(version=len(STEPS)))
    return len(STEPS)
