"""The application: every protocol over one service, behind one guard."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from ppvilg import __version__

from .. import operation
from ..access.identity import COOKIE
from ..access.security import LOOPBACK, Guard
from ..errors import ServiceError
from ..service import Service
from . import a1111, erniebot, huggingface, jobs, openai, qianfan, wenxin
from .protocol import Json, Protocol

log = logging.getLogger("ppvilg.serving.api")

# The first whose prefix fits answers errors, so those of single paths come before those of whole trees.
PROTOCOLS: tuple[Protocol, ...] = (
    openai.PROTOCOL,
    jobs.PROTOCOL,
    wenxin.PROTOCOL,
    wenxin.HUB,
    qianfan.PROTOCOL,
    erniebot.PROTOCOL,
    a1111.PROTOCOL,
    huggingface.PROTOCOL,
)
PAGE_ENDINGS = frozenset("html css js mjs json svg png webp ico woff2 webmanifest txt".split())
TIDY_SECONDS, ROOM_SECONDS = 60, 2


def build_app(service: Service, extra_hosts: tuple[str, ...] = ()) -> FastAPI:
    """The ASGI application of a service. extra_hosts: further names that a Host header may have."""
    figures = operation.Figures()
    about = {"title": "ppvilg", "version": __version__, "docs_url": None, "redoc_url": None}
    app = FastAPI(**about, lifespan=_lifespan, default_response_class=Json)
    app.state.service, app.state.figures = service, figures
    for protocol in PROTOCOLS:
        app.include_router(protocol.router, include_in_schema=protocol.name == "v1")
    app.include_router(operation.router)
    app.mount("/", _Page(_page_folder()), name="page")
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    settings = service.settings
    hosts = (*LOOPBACK, settings.host, *settings.allowed_hosts, *extra_hosts)
    app.add_middleware(Guard, hosts=hosts, max_body=service.limits.body_bytes, error=error_answer)
    app.add_middleware(operation.AccessLog, figures=figures, protocol_of=lambda path: protocol_at(path).name)
    return app


def protocol_at(path: str) -> Protocol:
    """The protocol that answers at a path; our own where none does."""
    if path == "/":
        return huggingface.PROTOCOL
    for protocol in PROTOCOLS:
        if any(path.startswith(prefix) for prefix in protocol.prefixes):
            return protocol
    return jobs.PROTOCOL


def error_answer(path: str, error: ServiceError) -> Response:
    """An error in the form of the protocol at this path."""
    return protocol_at(path).error(error)


async def _refused(request: Request, error: ServiceError) -> Response:
    return error_answer(request.url.path, error)


async def _not_valid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "header", "path")]
    field = ".".join(place) or None
    message = f"{field}: {first['msg']}" if field else first["msg"]
    return error_answer(request.url.path, ServiceError("invalid", message, field))


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    if error.status_code in (404, 405):
        answer = error_answer(path, ServiceError("not_found", f"there is nothing at {request.method} {path[:100]}"))
        if answer.status_code == 404:
            answer.status_code = error.status_code
        return answer
    return error_answer(path, ServiceError("invalid", str(error.detail)))


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error, extra={"path": request.url.path[:200]})
    return error_answer(request.url.path, ServiceError("internal", "the service failed; its log says why"))


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.knowledge.start()
    tidying = asyncio.create_task(_tidy_now_and_then(service))
    try:
        yield
    finally:
        tidying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tidying


async def _tidy_now_and_then(service: Service) -> None:
    """Makes room for what the workers draw every two seconds, and does the rest once a minute."""
    for turn in itertools.count():
        try:
            whole = turn % (TIDY_SECONDS // ROOM_SECONDS) == 0
            await asyncio.to_thread(operation.tidy if whole else Service.make_room, service)
        except Exception:  # a full disk or a lost database today is no reason not to try again
            log.exception("the folder of the service could not be tidied")
        await asyncio.sleep(ROOM_SECONDS)


class _Page(StaticFiles):
    """The files of the page, of a few kinds only; gives browsers their identity."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True, check_dir=False)

    async def get_response(self, path: str, scope) -> Response:
        name = path if path not in ("", ".") else "index.html"
        if name.rpartition(".")[2].lower() not in PAGE_ENDINGS:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        if name == "index.html":
            request = Request(scope)
            authenticator = scope["app"].state.service.authenticator
            if not authenticator.require_key and not authenticator.is_own_cookie(request.cookies.get(COOKIE)):
                jobs.set_cookie(response, authenticator.browser_cookie(), request)
        return response


def _page_folder() -> Path:
    return Path(str(importlib.resources.files("ppvilg"))) / "serving" / "page"


