"""The connection to the database: SQLite in WAL mode, or PostgreSQL; transactions for reading and for writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from .tables import migrate

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
BUSY_SECONDS = 30  # how long a writer waits for another one in SQLite


class Store:
    """An open store at the newest version of its tables.

    url: `sqlite:///file` or `postgresql://user:password@host/name`. ValueError: another kind, no driver, no answer.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        try:
            with self.writing() as connection:
                migrate(connection)
        except OperationalError as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise ValueError(f"the database {shown} cannot be used: {str(error.orig).strip()}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that changes nothing."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may change rows; SQLite has one at a time, begun as a writer so that none must give up."""
        with self.engine.connect().execution_options(writing=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def sqlite_url(file: Path) -> str:
    """URL of a SQLite file."""
    return f"sqlite:///{file.resolve()}"


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername.partition("+")[0]]
        engine = create_engine(parsed.set(drivername=driver), pool_pre_ping=driver != "sqlite", pool_size=10)
    except (ArgumentError, KeyError):
        raise ValueError(f"database {url!r}: give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME") from None
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        missing = getattr(error, "name", None) or "psycopg"
        raise ValueError(f"PostgreSQL needs the package {missing}: pip install ppvilg[postgres]") from None
    if driver == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={1000 * BUSY_SECONDS}"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
