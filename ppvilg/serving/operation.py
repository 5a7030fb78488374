"""What operators need: health, figures for Prometheus, the log of answers, and the housekeeping of the folder."""

from __future__ import annotations

import logging
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .service import DAY, Service
from .store import gallery, keys, workers
from .store.tables import jobs, pictures

router = APIRouter(tags=["operation"])
access_log = logging.getLogger("ppvilg.serving.access")
ORPHAN_SECONDS = 3600.0  # how old a file must be before it may count as left behind


class Figures:
    """What /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ppvilg_requests_total", "Requests answered", ["protocol", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ppvilg_request_seconds", "Time until the answer began", ["protocol"], registry=self.registry
        )
        self.jobs = Gauge("ppvilg_jobs", "Jobs in the store by state", ["state"], registry=self.registry)
        self.pictures = Gauge("ppvilg_pictures", "Pictures in the store", registry=self.registry)
        self.picture_bytes = Gauge("ppvilg_picture_bytes", "Bytes of the pictures", registry=self.registry)
        self.workers = Gauge("ppvilg_workers", "Worker processes by state", ["state"], registry=self.registry)
        self.speed = Gauge(
            "ppvilg_picture_steps_per_second", "Denoising steps a second, all workers", registry=self.registry
        )

    def read(self, service: Service) -> bytes:
        """The text for Prometheus."""
        with service.store.reading() as connection:
            counted = connection.execute(select(jobs.c.state, func.count().label("count")).group_by(jobs.c.state))
            states = {row["state"]: row["count"] for row in counted.mappings()}
            count, size = connection.execute(
                select(func.count(), func.coalesce(func.sum(pictures.c.bytes), 0)).select_from(pictures)
            ).one()
        for state in ("queued", "running", "done", "failed", "cancelled"):
            self.jobs.labels(state).set(states.get(state, 0))
        present = workers.present(service.store)
        for state in ("loading", "ready", "draining"):
            self.workers.labels(state).set(sum(each.state == state for each in present))
        self.pictures.set(count)
        self.picture_bytes.set(int(size))
        self.speed.set(sum(1 / each.seconds_per_step for each in present if each.seconds_per_step))
        return generate_latest(self.registry)


@router.get("/healthz")
def healthz() -> dict:
    """The server answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready"}})
def readyz(request: Request) -> Response:
    """A worker has loaded the model and warmed up, and the service is not about to end."""
    ready = request.app.state.service.is_ready()
    return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(request.app.state.figures.read(request.app.state.service), media_type=CONTENT_TYPE_LATEST)


class AccessLog:
    """ASGI: counts every answer and logs it without its query, which holds tokens, and without its body."""

    def __init__(self, app: ASGIApp, figures: Figures, protocol_of) -> None:
        self.app, self.figures, self.protocol_of = app, figures, protocol_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.figures.seconds.labels(protocol).observe(time.perf_counter() - start)
            await send(message)

        protocol = self.protocol_of(scope["path"])
        try:
            await self.app(scope, receive, sending)
        finally:
            self.figures.requests.labels(protocol, status).inc()
            about = {"method": scope["method"], "path": scope["path"][:200], "status": status, "protocol": protocol}
            access_log.info("answered", extra={**about, "seconds": round(time.perf_counter() - start, 4)})


def tidy(service: Service) -> None:
    """Removes what has outlived its time or its room, and files that no row knows."""
    store, folder, now = service.store, service.folder, time.time()
    keep = service.settings.keep_seconds
    unneeded, ended = gallery.expire(store, now, keep if keep is not None else 100 * 365 * DAY)
    service.make_room()
    old = {sha256 for sha256, changed in folder.contents() if changed < now - ORPHAN_SECONDS}
    with store.writing() as connection:
        keys.forget_minutes(connection)
        folder.remove(gallery.unneeded(connection, unneeded | old))
    workers.forget_silent(store, now)
    for job in ended:
        folder.remove_previews(job)
