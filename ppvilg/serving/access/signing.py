"""What the service signs so that it need not remember it: addresses of pictures, access tokens, owners of browsers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time


class Signer:
    """Signs with the secret of the service's folder; every purpose has signatures of its own."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def signature(self, purpose: str, *parts: object) -> str:
        """32 URL-safe characters."""
        message = json.dumps([purpose, *map(str, parts)]).encode()
        digest = hmac.new(self._secret, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()

    def is_valid(self, signature: str, purpose: str, *parts: object) -> bool:
        given = signature.encode("utf-8", "surrogatepass")  # a query or JSON may hold anything
        return hmac.compare_digest(given, self.signature(purpose, *parts).encode())

    def token(self, purpose: str, subject: str, seconds: float) -> str:
        """A URL-safe token that names its subject until it expires."""
        expires = int(time.time() + seconds)
        name = base64.urlsafe_b64encode(subject.encode()).decode().rstrip("=")
        return f"{name}.{expires}.{self.signature(purpose, subject, expires)}"

    def subject(self, purpose: str, token: str) -> tuple[str | None, bool]:
        """(subject of a token or None, whether it was valid once and has only expired)."""
        try:
            name, expires, signature = token.split(".")
            subject = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
            when = int(expires)
        except ValueError:  # not one of ours: wrong number of parts, base64, UTF-8 or number
            return None, False
        if not self.is_valid(signature, purpose, subject, when):
            return None, False
        return (subject, False) if when > time.time() else (None, True)
