"""Our own API, /v1: jobs with server-sent events, pictures, uploads, the knowledge view, what the model is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from ppvilg import __version__

from ..access.identity import COOKIE, COOKIE_SECONDS, Owner
from ..errors import ServiceError
from ..model.info import describe
from ..model.metadata import read_settings
from ..model.requests import describe_limits, resolve
from ..service import Service
from ..store import gallery, jobs, keys, workers
from .protocol import Protocol, decode_picture, owner_of, service_of
from .views import job_json, picture_json

KEEP_ALIVE_SECONDS = 15.0
EVENT_SECONDS = 0.1


class Fault(BaseModel):
    """Why a request is not carried out: a code for programs, a sentence for people, the field at fault."""

    code: str
    message: str
    field: str | None


class Refusal(BaseModel):
    """The body of every answer from 400 on."""

    error: Fault


REFUSALS = {status: {"model": Refusal} for status in (400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 503)}
_FILE = {"schema": {"type": "string", "format": "binary"}}
_FILES = {f"image/{kind}": _FILE for kind in ("png", "jpeg", "webp")}
PICTURE_BODY = {"requestBody": {"required": True, "content": _FILES}}

router = APIRouter(prefix="/v1", tags=["jobs"], responses=REFUSALS)


class Expectation(BaseModel):
    """What a drawing is compared with."""

    model_hash: str | None = None
    sha256: list[str] = Field(default_factory=list, max_length=64)


class JobRequest(BaseModel):
    """What can be asked for; None is the model's default."""

    prompt: str = ""
    negative_prompt: str | None = None
    style: str | None = None
    width: int | None = None
    height: int | None = None
    num_images: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | list[float] | None = None
    sampler: str | None = None
    eta: float | None = None
    image: str | None = Field(None, description="id of an upload or picture of yours, base64, or a data: URL")
    mask: str | None = Field(None, description="as image; white is repainted")
    strength: float | None = None
    word_weights: dict[str, float] | None = None
    lora: dict[str, float | list[float]] | None = Field(
        None, description="scales of adapters by name, one number or one per expert; the names are in /v1/model"
    )
    expect: Expectation | None = None


class KnowledgeRequest(BaseModel):
    """A prompt to be explained."""

    prompt: str
    style: str | None = None
    word_weights: dict[str, float] | None = None
    lora: dict[str, float | list[float]] | None = None


class SessionRequest(BaseModel):
    """A key, for a browser."""

    key: str


# ---- who and what ----


@router.get("/me")
def me(request: Request) -> dict:
    """Who is asking, and how much of a quota is used."""
    service = service_of(request)
    try:
        owner = owner_of(request)
    except ServiceError as error:
        if error.code != "no_key":
            raise
        return {"owner": {"kind": "none", "name": ""}, "needs_key": True, "quota": None}
    return _me(service, owner)


@router.post("/session")
def log_in(request: Request, asked: SessionRequest) -> Response:
    """Lets a browser act with a key from now on."""
    service = service_of(request)
    cookie, owner = service.authenticator.key_cookie(asked.key)
    response = JSONResponse(_me(service, owner))
    set_cookie(response, cookie, request)
    return response


@router.delete("/session", status_code=204)
def log_out() -> Response:
    """Forgets the key of a browser."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/")
    return response


@router.get("/model")
def model(request: Request) -> dict:
    """What the model is and what may be asked of it."""
    service = service_of(request)
    present = workers.present(service.store)
    ready = service.is_ready()
    loading = next((each.loading for each in present if each.loading), None) or {"what": "worker", "fraction": 0.0}
    return {
        **describe(service.model, service.model_hash()),
        "backend": "bundle" if service.model.is_bundle else "dygraph",
        "ready": ready,
        "loading": None if ready else loading,
        "limits": describe_limits(service.limits, service.model),
        "version": __version__,
    }


@router.get("/queue")
def queue(request: Request) -> dict:
    """How much waits, and how fast it goes."""
    service = service_of(request)
    state = jobs.queue(service.store)
    present = [each for each in workers.present(service.store) if each.state != "loading"]
    steps = [1 / each.seconds_per_step for each in present if each.seconds_per_step]
    speed = sum(steps) / service.model.default_num_inference_steps if steps else None
    return {"queued": state.queued, "running": state.running, "workers": len(present), "pictures_per_second": speed}


@router.post("/knowledge")
def knowledge(request: Request, asked: KnowledgeRequest) -> dict:
    """How the model reads a prompt."""
    service = service_of(request)
    owner_of(request)
    settings, _ = resolve(asked.model_dump(), service.model, service.limits)
    return service.knowledge.describe(settings)


# ---- jobs ----


@router.post("/jobs", status_code=202)
def create(
    request: Request, asked: JobRequest, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> dict:
    """Hands in a job."""
    service, owner = service_of(request), owner_of(request)
    expect = asked.expect
    if expect and expect.model_hash and expect.model_hash != service.model_hash():
        raise ServiceError("other_model", "the model that is served is not the one that drew this", "expect")
    values = asked.model_dump(exclude={"expect"}, exclude_none=True)
    given = {name: _given(service, values, name) for name in ("image", "mask")}
    key = None
    if idempotency_key:
        key = hashlib.sha256(f"{owner.id} {idempotency_key}".encode()).hexdigest()
    extra = {"expect": expect.sha256} if expect and expect.sha256 else {}
    job = service.submit(owner, "v1", values, given["image"], given["mask"], extra, retry_key=key, attach_after=0.0)
    return job_json(service, job)


@router.get("/jobs")
def list_jobs(request: Request, unfinished: bool = False, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict:
    """One's own jobs, newest first."""
    service, owner = service_of(request), owner_of(request)
    return {"jobs": [job_json(service, job) for job in jobs.newest(service.store, owner.id, unfinished, limit)]}


@router.get("/jobs/{id}")
def get_job(request: Request, id: str) -> dict:
    """One job."""
    service, owner = service_of(request), owner_of(request)
    return job_json(service, jobs.find(service.store, owner.id, id))


@router.post("/jobs/{id}/cancel")
def cancel(request: Request, id: str) -> dict:
    """Ends a job now or at its next step; pictures that are finished stay."""
    service, owner = service_of(request), owner_of(request)
    jobs.find(service.store, owner.id, id)
    jobs.cancel(service.store, owner.id, [id])
    return job_json(service, jobs.find(service.store, owner.id, id))


@router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def events(
    request: Request, id: str, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Server-sent events: the whole job, now and whenever it changes, until it has ended."""
    service, owner = service_of(request), owner_of(request)
    job = await asyncio.to_thread(jobs.find, service.store, owner.id, id)
    seen = int(last_event_id) if last_event_id and re.fullmatch("[0-9]{1,18}", last_event_id) else 0
    if job.is_final and seen >= job.revision:
        return Response(status_code=204)  # which tells an EventSource not to come back
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(service, owner, id, seen), media_type="text/event-stream", headers=headers)


async def _events(service: Service, owner: Owner, id: str, seen: int):
    while True:
        job = await asyncio.to_thread(jobs.find, service.store, owner.id, id)
        if job.revision > seen:
            content = json.dumps(await asyncio.to_thread(job_json, service, job), ensure_ascii=False)
            yield f"event: job\nid: {job.revision}\ndata: {content}\n\n"
            seen = job.revision
            if job.is_final:
                return
            await asyncio.sleep(EVENT_SECONDS)
        quiet = time.monotonic()
        while not await service.watcher.changed(id, seen, 2.0):
            await service.watcher.watch(id)
            if time.monotonic() - quiet > KEEP_ALIVE_SECONDS:
                yield ": keep-alive\n\n"
                quiet = time.monotonic()
        await service.watcher.watch(id)


@router.get("/jobs/{id}/previews/{picture}/{step}", response_class=FileResponse)
def preview(request: Request, id: str, picture: int, step: int, expires: str, signature: str) -> Response:
    """A preview, by its signed address."""
    service = service_of(request)
    signed = service.signer.is_valid(signature, "preview", id, picture, step, expires)
    if not signed or float(expires) < time.time():
        raise ServiceError("forbidden", "this address of a preview is not valid, or no longer")
    path = service.folder.preview(id, f"{picture}-{step}.webp")
    if not path.is_file():
        raise ServiceError("not_found", "this preview has been replaced by a newer one")
    return FileResponse(path, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


# ---- pictures ----


@router.get("/pictures")
def list_pictures(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
    before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
) -> dict:
    """One's own pictures, newest first."""
    service, owner = service_of(request), owner_of(request)
    found = gallery.page(service.store, owner.id, limit, before)
    following = found[-1].number if len(found) == limit else None
    return {"pictures": [picture_json(service, picture) for picture in found], "next": following}


@router.get("/pictures/{id}.png", response_class=Response)
def picture_file(
    request: Request,
    id: str,
    expires: str,
    signature: str,
    size: str = "",
    metadata: bool = False,
    download: bool = False,
) -> Response:
    """A PNG, by its signed address."""
    service = service_of(request)
    picture = service.signed_picture(id, expires, size, signature)
    shown = tuple(map(int, size.split("x"))) if size else None
    headers = {"Cache-Control": "private, max-age=3600"}
    if download:
        headers["Content-Disposition"] = f'attachment; filename="{picture.seed}-{picture.id[:6]}.png"'
    return Response(service.picture_bytes(picture, shown, metadata), media_type="image/png", headers=headers)


@router.get("/pictures/{id}")
def get_picture(request: Request, id: str) -> dict:
    """One picture of one's own."""
    service, owner = service_of(request), owner_of(request)
    return picture_json(service, gallery.find_picture(service.store, owner.id, id))


@router.delete("/pictures/{id}", status_code=204)
def delete_picture(request: Request, id: str) -> Response:
    """Removes a picture of one's own."""
    service, owner = service_of(request), owner_of(request)
    unneeded = gallery.delete_picture(service.store, owner.id, id)
    service.folder.remove([unneeded] if unneeded else [])
    return Response(status_code=204)


@router.post("/uploads", status_code=201, openapi_extra=PICTURE_BODY)
async def upload(request: Request) -> dict:
    """Keeps a picture to start from, or a mask: the body is the file."""
    service, owner = service_of(request), owner_of(request)
    return await asyncio.to_thread(service.upload, owner, await request.body(), "picture")


@router.get("/uploads/{id}.png", response_class=FileResponse)
def upload_file(request: Request, id: str) -> Response:
    """An upload of one's own."""
    service, owner = service_of(request), owner_of(request)
    path = service.folder.picture(gallery.find_upload(service.store, owner.id, id).sha256)
    if not path.is_file():
        raise ServiceError("not_found", "the upload has been deleted")
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.post("/png-info", openapi_extra=PICTURE_BODY)
async def png_info(request: Request) -> dict:
    """What a PNG says of how it was made: the body is the file."""
    service = service_of(request)
    owner_of(request)
    body = await request.body()
    found = await asyncio.to_thread(read_settings, body, service.limits)
    return {**found, "sha256": hashlib.sha256(body).hexdigest()}


def set_cookie(response: Response, cookie: str, request: Request) -> None:
    """Tells a browser who it is."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, cookie, COOKIE_SECONDS, path="/", httponly=True, samesite="strict", secure=secure)


def _given(service: Service, values: dict, name: str) -> bytes | None:
    """A picture sent in the request itself, taken out of `values`; an id stays there."""
    text = values.get(name)
    if text is None or len(text) <= 64:
        return None
    return decode_picture(values.pop(name), name)


def _me(service: Service, owner: Owner) -> dict:
    quota = None
    if owner.key and owner.key.pictures_per_day is not None:
        with service.store.reading() as connection:
            _, pictures = keys.used(connection, owner.id, keys.today())
        quota = {"pictures_per_day": owner.key.pictures_per_day, "pictures_today": pictures}
    return {"owner": {"kind": owner.kind, "name": owner.name}, "needs_key": False, "quota": quota}


def _error(error: ServiceError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    content = {"error": {"code": error.code, "message": error.message, "field": error.field}}
    return JSONResponse(content, error.status, headers)


PROTOCOL = Protocol("v1", ("/v1/",), router, _error)
