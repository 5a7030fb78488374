"""What every request must pass before anything looks at it (Host, Origin, size), and headers on every answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ServiceError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

ErrorAnswer = Callable[[str, ServiceError], Callable[[Scope, Receive, Send], Awaitable[None]]]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine alone."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


class Guard:
    """ASGI: refuses foreign Host and Origin headers and bodies that are too large; sets HEADERS.

    hosts: names that a Host header may have, whatever the port. A page of another site can make a browser send requests
    here, even to 127.0.0.1 and even under a name of its own that it lets point here; neither gets through.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], max_body: int, error: ErrorAnswer) -> None:
        self.app, self.hosts, self.max_body, self.error = app, {host.lower() for host in hosts}, max_body, error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        guarded = _with_headers(send)
        try:
            self._check(scope, headers)
        except ServiceError as error:
            await self.error(scope["path"], error)(scope, receive, guarded)
            return
        await self._limited(scope, receive, guarded)

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _name_of(hosts[0]) not in self.hosts:
            raise ServiceError("forbidden", "this Host is not served here; --allow-host NAME allows a name")
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != hosts[0].lower():
            raise ServiceError("forbidden", "requests from pages of other sites are not answered")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            raise ServiceError("forbidden", "requests from pages of other sites are not answered")
        length = headers.get("content-length")
        if length is not None and (not re.fullmatch("[0-9]{1,18}", length) or int(length) > self.max_body):
            raise ServiceError("too_large", f"the body has more than {self.max_body} bytes")

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application with a body that ends in an error where it grows too large."""
        received, started = 0, False

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise ServiceError("too_large", f"the body has more than {self.max_body} bytes")
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counting, sending)
        except ServiceError as error:
            if started:
                raise
            await self.error(scope["path"], error)(scope, receive, send)


def _host_of(origin: str) -> str | None:
    """host:port of an origin as a Host header would have it."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """A Host header without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
