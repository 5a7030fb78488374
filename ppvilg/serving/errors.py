"""What the service refuses, in one form; every protocol says it in its own words."""

from __future__ import annotations

HTTP_STATUS = {
    "invalid": 422,
    "unknown_style": 422,
    "size": 422,
    "bad_picture": 422,
    "filtered": 422,
    "too_large": 413,
    "no_key": 401,
    "wrong_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "other_model": 409,
    "rate": 429,
    "quota": 429,
    "queue_full": 429,
    "not_ready": 503,
    "timeout": 504,
    "internal": 500,
}


class ServiceError(Exception):
    """A request that is not carried out: a code of HTTP_STATUS, a sentence for people, the field at fault."""

    def __init__(self, code: str, message: str, field: str | None = None, retry_after: int | None = None) -> None:
        message = message.encode("utf-8", "replace").decode("utf-8")  # it may quote what cannot be written
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after  # seconds
        self.status = HTTP_STATUS[code]
