"""What the files of the protocols share: how a request is read, and which protocol answers an error at a path."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..access.identity import COOKIE, Owner
from ..errors import ServiceError
from ..service import Service

_DATA_URL = re.compile(r"data:[\w./+-]{0,60};base64,")


@dataclass(frozen=True)
class Protocol:
    """One way to talk to the service: where, and how it says that something cannot be done."""

    name: str
    prefixes: tuple[str, ...]
    router: APIRouter
    error: Callable[[ServiceError], Response]


class Json(JSONResponse):
    """JSON as UTF-8; in ASCII where a text that is echoed cannot be written, such as half of a surrogate pair."""

    def render(self, content: object) -> bytes:
        try:
            return super().render(content)
        except UnicodeEncodeError:
            return json.dumps(content).encode()


def service_of(request: Request) -> Service:
    return request.app.state.service


def owner_of(request: Request, access_token: str | None = None) -> Owner:
    """Who asks. ServiceError no_key, wrong_key."""
    return service_of(request).authenticator.owner(
        request.cookies.get(COOKIE), request.headers.get("authorization"), access_token
    )


async def read_json(request: Request) -> dict:
    """The body as a JSON object, whatever its Content-Type says. ServiceError invalid."""
    body = await request.body()
    try:
        content = json.loads(body, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise ServiceError("invalid", "the body is not JSON") from None
    if not isinstance(content, dict):
        raise ServiceError("invalid", "the body must be a JSON object")
    return content


def _finite(text: str) -> float:
    """A number of JSON. ValueError: NaN and infinities, which JSON has no words for, or beyond all floats."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


async def read_fields(request: Request) -> tuple[dict, dict[str, list[bytes]]]:
    """(fields, files) of a body in JSON, or of a form of either kind. ServiceError invalid."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await read_json(request), {}
    fields, files = {}, {}
    try:
        async with request.form(max_files=20, max_fields=200, max_part_size=12 * 2**20) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields[name] = value
                else:
                    files.setdefault(name, []).append(await value.read())
    except Exception as error:  # python-multipart and Starlette have several for a broken body
        if isinstance(error, ServiceError):
            raise
        raise ServiceError("invalid", "the form cannot be read") from None
    return fields, files


def decode_picture(text: object, name: str) -> bytes:
    """Bytes of base64, or of a data: URL. ServiceError bad_picture; other addresses are not fetched."""
    if not isinstance(text, str):
        raise ServiceError("bad_picture", f"{name} must be base64", name)
    if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise ServiceError("bad_picture", f"{name}: addresses are not fetched; send the picture as base64", name)
    start = _DATA_URL.match(text)
    try:
        return base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError):
        raise ServiceError("bad_picture", f"{name} is not base64", name) from None


def whole(value: object, name: str) -> object:
    """A number that a client may have sent as text; other things as they are, to be refused later."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    return value


def number(value: object) -> object:
    """As `whole`, for numbers with a fraction."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}(\.\d{1,18})?\s*", value):
        return float(value)
    return value


def size_of(text: object, name: str = "size") -> tuple[int, int]:
    """(width, height) of "1024x1536" or "1024*1536". ServiceError size."""
    found = re.fullmatch(r"\s*(\d{1,5})\s*[xX*×]\s*(\d{1,5})\s*", text) if isinstance(text, str) else None
    if not found:
        raise ServiceError("size", f"{name} must be like 1024x1024, got {str(text)[:40]!r}", name)
    return int(found[1]), int(found[2])


def answer(content: object, status: int = 200, headers: dict | None = None) -> JSONResponse:
    return Json(content, status, headers)


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()
