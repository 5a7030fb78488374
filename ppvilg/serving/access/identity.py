"""Who asks: a key, a browser without one, or a program on this machine without one."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass

from ..errors import ServiceError
from ..store import Store
from ..store.keys import Key, any_keys, key_of
from .signing import Signer

COOKIE = "ppvilg_owner"
COOKIE_SECONDS = 365 * 86400
TOKEN_SECONDS = 30 * 86400
_LOCAL = "local"


@dataclass(frozen=True)
class Owner:
    """Whose jobs and pictures; `id` is how the store names them."""

    id: str
    kind: str  # key, browser or local
    key: Key | None = None

    @property
    def name(self) -> str:
        return self.key.name if self.key else self.kind


class TokenExpired(ServiceError):
    """An access token that was valid once: its client can ask for a new one."""

    def __init__(self) -> None:
        super().__init__("wrong_key", "the access token has expired")


class Authenticator:
    """Finds the owner behind credentials.

    require_key: nobody without a key. Otherwise those without credentials are let in (the service then listens on
    loopback only), and any credentials are as long as no key was ever made.
    """

    def __init__(self, store: Store, signer: Signer, require_key: bool) -> None:
        self._store, self._signer, self.require_key = store, signer, require_key

    @property
    def is_open(self) -> bool:
        return not self.require_key and not any_keys(self._store)

    def owner(
        self, cookie: str | None = None, authorization: str | None = None, access_token: str | None = None
    ) -> Owner:
        """The owner behind a request. ServiceError no_key or wrong_key, TokenExpired."""
        if access_token:
            return self.of_token(access_token)
        if authorization:
            kind, _, value = authorization.partition(" ")
            if kind.lower() == "basic":
                return self._of_pair(*_decoded_pair(value))
            if kind.lower() == "bearer":
                return self.of_secret(value.strip())
            raise ServiceError("wrong_key", "Authorization must be Bearer SK, or Basic with AK and SK")
        subject = self._signer.subject("cookie", cookie)[0] if cookie else None
        if subject is not None and subject.startswith("key:"):
            return self._of_ak(subject.removeprefix("key:"))
        if self.require_key:
            raise ServiceError("no_key", "this service needs a key: Authorization: Bearer SK")
        return Owner(_LOCAL, "local") if subject is None else Owner(subject, "browser")

    def of_secret(self, secret: str) -> Owner:
        """The owner of an SK, or of an access token given in its place."""
        key = key_of(self._store, sk=secret)
        if key is not None:
            return _owner_of(key)
        if self._signer.subject("access", secret) != (None, False):
            return self.of_token(secret)
        if self.is_open:
            return Owner(_LOCAL, "local")
        raise ServiceError("wrong_key", "the key is not valid")

    def of_token(self, token: str) -> Owner:
        """The owner of an access token, or of an SK given in its place. ServiceError wrong_key, TokenExpired."""
        subject, expired = self._signer.subject("access", token)
        if expired:
            raise TokenExpired
        if subject is None:
            key = key_of(self._store, sk=token)
            if key is not None:
                return _owner_of(key)
            if self.is_open:
                return Owner(_LOCAL, "local")
            raise ServiceError("wrong_key", "the access token is not valid")
        return Owner(_LOCAL, "local") if subject == _LOCAL else self._of_ak(subject)

    def new_token(self, ak: str, sk: str) -> str:
        """An access token for a pair of AK and SK. ServiceError wrong_key."""
        owner = self._of_pair(ak, sk)
        return self._signer.token("access", owner.key.ak if owner.key else _LOCAL, TOKEN_SECONDS)

    def browser_cookie(self) -> str:
        """A cookie for a browser that has none."""
        return self._signer.token("cookie", f"browser:{secrets.token_urlsafe(12)}", COOKIE_SECONDS)

    def key_cookie(self, secret: str) -> tuple[str, Owner]:
        """A cookie for a browser whose user gave a key. ServiceError wrong_key."""
        key = key_of(self._store, sk=secret)
        if key is None:
            raise ServiceError("wrong_key", "the key is not valid", "key")
        return self._signer.token("cookie", f"key:{key.ak}", COOKIE_SECONDS), _owner_of(key)

    def is_own_cookie(self, cookie: str | None) -> bool:
        """Whether a cookie is one of this service that still holds."""
        return cookie is not None and self._signer.subject("cookie", cookie)[0] is not None

    def _of_pair(self, ak: str, sk: str) -> Owner:
        key = key_of(self._store, sk=sk, ak=ak)
        if key is not None:
            return _owner_of(key)
        if self.is_open:
            return Owner(_LOCAL, "local")
        raise ServiceError("wrong_key", "AK or SK is not valid")

    def _of_ak(self, ak: str) -> Owner:
        key = key_of(self._store, ak=ak)
        if key is None:
            raise ServiceError("wrong_key", "the key has been revoked")
        return _owner_of(key)


def _owner_of(key: Key) -> Owner:
    return Owner(f"key:{key.ak}", "key", key)


def _decoded_pair(value: str) -> tuple[str, str]:
    try:
        ak, _, sk = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise ServiceError("wrong_key", "Authorization: Basic is not base64 of AK:SK") from None
    return ak, sk
