"""Access keys, whose secrets are kept as hashes only, and what each owner has used."""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from ..errors import ServiceError
from .store import Store
from .tables import keys, usage

_KEY_NAME = re.compile(r"[\w.@ -]{1,60}")
_AK = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Key:
    """An access key without its secret."""

    ak: str
    name: str
    pictures_per_day: int | None
    requests_per_minute: int | None


def secret_hash(secret: str) -> str:
    """SHA-256; the secrets are 32 random bytes, so nothing slower is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()  # JSON can hold half of a pair


def new_key(
    store: Store, name: str, pictures_per_day: int | None = None, requests_per_minute: int | None = None
) -> tuple[str, str]:
    """(AK, SK) of a new key; the SK is not kept and cannot be shown again. ValueError: name taken or not a name."""
    if not _KEY_NAME.fullmatch(name):
        raise ValueError(f"the name of a key has 1 to 60 letters, digits, spaces or . _ @ -, got {name!r}")
    ak, sk = secrets.token_hex(12), secrets.token_urlsafe(32)
    values = {
        "ak": ak,
        "name": name,
        "sk_hash": secret_hash(sk),
        "created": time.time(),
        "pictures_per_day": pictures_per_day,
        "requests_per_minute": requests_per_minute,
    }
    try:
        with store.writing() as connection:
            connection.execute(keys.insert().values(values))
    except IntegrityError:
        raise ValueError(f"there is a key named {name!r} already: take another name, or revoke that one") from None
    return ak, sk


def revoke_key(store: Store, name: str) -> None:
    """The key of that name is refused from now on. ValueError: there is none."""
    with store.writing() as connection:
        valid = keys.c.name == name, keys.c.revoked.is_(None)
        if not connection.execute(update(keys).where(*valid).values(revoked=time.time())).rowcount:
            raise ValueError(f"there is no valid key named {name!r}")


def any_keys(store: Store) -> bool:
    """Whether any key was ever made."""
    with store.reading() as connection:
        return connection.execute(select(keys.c.ak).limit(1)).first() is not None


def key_of(store: Store, sk: str | None = None, ak: str | None = None) -> Key | None:
    """The valid key with this secret, or this AK, or both."""
    if ak is not None and not _AK.fullmatch(ak):
        return None  # what is no AK may be no text that a database takes
    query = select(keys.c.ak, keys.c.name, keys.c.pictures_per_day, keys.c.requests_per_minute)
    query = query.where(keys.c.revoked.is_(None))
    if sk is not None:
        query = query.where(keys.c.sk_hash == secret_hash(sk))
    if ak is not None:
        query = query.where(keys.c.ak == ak)
    with store.reading() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else Key(**row)


def spend(connection: Connection, owner: str, key: Key | None, pictures: int) -> None:
    """Counts a request for `pictures`. ServiceError rate or quota, beyond the limits of the key."""
    now = time.time()
    minute, day = f"minute {int(now // 60)}", today()
    _add(connection, owner, minute, 1, 0)
    _add(connection, owner, day, 1, pictures)
    if key is None:
        return
    if key.requests_per_minute is not None and used(connection, owner, minute)[0] > key.requests_per_minute:
        message = f"more than {key.requests_per_minute} requests in a minute with this key"
        raise ServiceError("rate", message, retry_after=60 - int(now % 60))
    if key.pictures_per_day is not None and used(connection, owner, day)[1] > key.pictures_per_day:
        raise ServiceError("quota", f"this key's {key.pictures_per_day} pictures a day (UTC) are used up")


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def used(connection: Connection, owner: str, period: str) -> tuple[int, int]:
    """(requests, pictures) of an owner in a period."""
    query = select(usage.c.requests, usage.c.pictures).where(usage.c.owner == owner, usage.c.period == period)
    return tuple(connection.execute(query).first() or (0, 0))


def forget_minutes(connection: Connection) -> None:
    """Removes the counts of minutes that have passed."""
    current = f"minute {int(time.time() // 60)}"
    connection.execute(usage.delete().where(usage.c.period.like("minute %"), usage.c.period < current))


def _add(connection: Connection, owner: str, period: str, requests: int, pictures: int) -> None:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    row = dialect.insert(usage).values(owner=owner, period=period, requests=requests, pictures=pictures)
    more = {"requests": usage.c.requests + requests, "pictures": func.coalesce(usage.c.pictures, 0) + pictures}
    connection.execute(row.on_conflict_do_update(index_elements=["owner", "period"], set_=more))
