"""OpenAI's images interface: generations, edits, streaming with partial images, models."""

from __future__ import annotations

import asyncio
import io
import json
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from ppvilg.files import PictureError, read_alpha

from ..access.identity import Owner
from ..errors import ServiceError
from ..service import Service, retry_key
from ..store import Job, jobs
from .protocol import Protocol, base64_of, number, owner_of, read_fields, service_of, size_of, whole

router = APIRouter()

ANSWER_SECONDS = 580.0  # the client gives up after 600
MAX_N = 10
ALIASES = ("gpt-image-", "dall-e-", "chatgpt-image")  # what programs ask for that let nobody choose a model
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OURS = {
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "strength": "strength",
    "sampler": "sampler",
    "lora": "lora",
}
# Settings of OpenAI's own models that mean nothing here; a client may send them.
WITHOUT_MEANING = {"quality", "user", "moderation", "output_compression", "input_fidelity", "safety_identifier"}
KNOWN = WITHOUT_MEANING | set(OURS) | {
    "model", "prompt", "n", "size", "style", "response_format", "stream", "partial_images", "output_format",
    "background", "image", "image[]", "mask",
}  # fmt: skip
_TYPES = {"no_key": "authentication_error", "wrong_key": "authentication_error", "rate": "rate_limit_error"}
_TYPES |= {"quota": "insufficient_quota", "queue_full": "rate_limit_error", "internal": "server_error"}
_CODES = {"no_key": "invalid_api_key", "wrong_key": "invalid_api_key", "quota": "insufficient_quota"}
_CODES |= {"rate": "rate_limit_exceeded", "not_found": "not_found", "filtered": "content_policy_violation"}


@router.get("/v1/models")
def models(request: Request) -> dict:
    """The one model that is served."""
    owner_of(request)
    return {"object": "list", "data": [_model(service_of(request))]}


@router.get("/v1/models/{name:path}")
def one_model(request: Request, name: str) -> dict:
    """The model, by name."""
    owner_of(request)
    service = service_of(request)
    _check_model(service, name)
    return _model(service)


@router.post("/v1/images/generations")
async def generations(request: Request) -> Response:
    """Draws pictures of a prompt."""
    return await _draw(request, await read_fields(request), "image_generation")


@router.post("/v1/images/edits")
async def edits(request: Request) -> Response:
    """Draws from a picture, or repaints the transparent part of a mask."""
    fields, files = await read_fields(request)
    if not files.get("image") and not files.get("image[]"):
        raise ServiceError("invalid", "image is missing; it is sent as a file", "image")
    return await _draw(request, (fields, files), "image_edit")


async def _draw(request: Request, content: tuple[dict, dict], kind: str) -> Response:
    fields, files = content
    service, owner = service_of(request), await asyncio.to_thread(owner_of, request)
    stream = fields.get("stream") in (True, "true", "True", "1")
    partial = whole(fields.get("partial_images") or 0, "partial_images")
    if not isinstance(partial, int) or not 0 <= partial <= 3:
        raise ServiceError("invalid", "partial_images must be from 0 to 3", "partial_images")
    shape = _format(fields)
    body = json.dumps(fields, sort_keys=True).encode() + b"".join(part for parts in files.values() for part in parts)
    retried = request.headers.get("x-stainless-retry-count", "0") != "0"
    job = await asyncio.to_thread(_submit, service, owner, fields, files, body, retried)
    if stream:
        events = _stream(service, owner, job, partial, shape, kind)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    job, pictures = await service.finished(job, ANSWER_SECONDS)
    shown = _shown(job)
    if fields.get("response_format") == "url":
        data = [{"url": f"{request.base_url}{service.picture_path(picture, shown)}"} for picture in pictures]
    else:
        packed = [await asyncio.to_thread(_packed, service, picture, shown, shape) for picture in pictures]
        data = [{"b64_json": base64_of(each)} for each in packed]
    answer = {"created": int(job.created), "data": data, **_about(job, shape), "usage": _usage(job)}
    return JSONResponse({**answer, "notes": job.notes} if job.notes else answer)


def _submit(service: Service, owner: Owner, fields: dict, files: dict, body: bytes, retried: bool) -> Job:
    unknown = sorted(set(fields) - KNOWN)
    if unknown:
        raise ServiceError("invalid", f"unknown parameter {unknown[0][:40]!r}", unknown[0][:40])
    _check_model(service, fields.get("model"))
    if fields.get("response_format") not in (None, "b64_json", "url"):
        raise ServiceError("invalid", "response_format must be b64_json or url", "response_format")
    if fields.get("background") == "transparent":
        raise ServiceError("invalid", "pictures with a transparent background cannot be drawn", "background")
    count = whole(1 if fields.get("n") is None else fields["n"], "n")
    if not isinstance(count, int) or not 1 <= count <= MAX_N:
        raise ServiceError("invalid", f"n must be from 1 to {MAX_N}", "n")
    images = [*files.get("image", []), *files.get("image[]", [])]
    if len(images) > 1:
        raise ServiceError("invalid", "one image to start from, not several", "image")
    image, mask = (images or [None])[0], next(iter(files.get("mask", [])), None)
    asked = {"prompt": fields.get("prompt"), "num_images": count, "style": _style(fields.get("style"))}
    asked |= {ours: number(whole(fields[name], name)) for name, ours in OURS.items() if fields.get(name) is not None}
    notes, shown = [], None
    size = fields.get("size")
    if size not in (None, "", "auto"):
        (asked["width"], asked["height"]), notes, shown = service.fit_size(*size_of(size))
    if mask is not None:
        mask = _white_where_clear(mask, service)
    key = retry_key(owner, body, "openai")
    attach_after = 0.0 if retried else None
    return service.submit(owner, "openai", asked, image, mask, {"shown": shown}, notes, key, attach_after)


async def _stream(service: Service, owner: Owner, job: Job, partial: int, shape: str, kind: str):
    """Server-sent events: up to `partial` previews of the first picture, then every picture."""
    sent, deadline = 0, time.monotonic() + ANSWER_SECONDS
    while not job.is_final and time.monotonic() < deadline:
        if sent < partial:
            await service.watcher.watch(job.id)
            progress = job.progress or {}
            share = progress.get("steps_done", 0) / max(progress.get("steps_total", 1), 1)
            entry = next((each for each in reversed(progress.get("previews", [])) if each["picture"] == 0), None)
            if entry and share >= (sent + 1) / (partial + 2):
                content = await asyncio.to_thread(_preview, service, job, entry, shape)
                if content is not None:
                    about = {"partial_image_index": sent, **_event(job, shape, content)}
                    yield _line(f"{kind}.partial_image", about)
                    sent += 1
        await service.watcher.changed(job.id, job.revision, 2.0)
        job = await asyncio.to_thread(jobs.find, service.store, owner.id, job.id)
    try:
        job, pictures = await service.finished(job, 0.0)
    except ServiceError as error:
        yield _line("error", {"type": "error", "error": _fields_of(error)})
        return
    for picture in pictures:
        content = await asyncio.to_thread(_packed, service, picture, _shown(job), shape)
        yield _line(f"{kind}.completed", {**_event(job, shape, content), "usage": _usage(job)})


def _line(name: str, content: dict) -> str:
    return f"event: {name}\ndata: {json.dumps({**content, 'type': content.get('type', name)})}\n\n"


def _event(job: Job, shape: str, content: bytes) -> dict:
    return {"b64_json": base64_of(content), "created_at": int(time.time()), **_about(job, shape)}


def _about(job: Job, shape: str) -> dict:
    """Of all pictures of a job, in OpenAI's words; the size is the true one."""
    shown = _shown(job) or (job.request["width"], job.request["height"])
    return {"size": f"{shown[0]}x{shown[1]}", "quality": "auto", "background": "opaque", "output_format": shape}


def _usage(job: Job) -> dict:
    """Characters and pictures, for the interface wants numbers of tokens."""
    text = len(job.request["prompt"])
    details = {"text_tokens": text, "image_tokens": 0}
    usage = {"input_tokens": text, "input_tokens_details": details, "output_tokens": job.wanted}
    return {**usage, "total_tokens": text + job.wanted}


def _packed(service: Service, picture, shown, shape: str) -> bytes:
    return _as(service.picture_bytes(picture, shown), shape)


def _preview(service: Service, job: Job, entry: dict, shape: str) -> bytes | None:
    path = service.folder.preview(job.id, f"{entry['picture']}-{entry['step']}.webp")
    return _as(path.read_bytes(), shape) if path.is_file() else None


def _as(content: bytes, shape: str) -> bytes:
    """A picture in another format."""
    image = Image.open(io.BytesIO(content))
    if image.format.lower() == shape:
        return content
    packed = io.BytesIO()
    image.convert("RGB").save(packed, format=shape.upper())
    return packed.getvalue()


def _white_where_clear(mask: bytes, service: Service) -> bytes:
    """OpenAI's mask (repaint where transparent) as ours (repaint where white)."""
    try:
        alpha = read_alpha(mask, max_pixels=service.limits.picture_pixels)
    except PictureError as error:
        raise ServiceError("bad_picture", f"mask: {error}", "mask") from None
    packed = io.BytesIO()
    alpha.point(lambda opaque: 255 if opaque < 128 else 0).save(packed, format="PNG")
    return packed.getvalue()


def _shown(job: Job) -> tuple[int, int] | None:
    return tuple(job.extra["shown"]) if job.extra.get("shown") else None


def _format(fields: dict) -> str:
    shape = fields.get("output_format") or "png"
    if not isinstance(shape, str) or shape not in FORMATS:
        raise ServiceError("invalid", f"output_format must be one of {', '.join(FORMATS)}", "output_format")
    return shape


def _style(style: object) -> object:
    return None if style in (None, "", "vivid", "natural") else style  # two words of DALL-E 3


def _check_model(service: Service, name: object) -> None:
    if name is None or name == service.model.name:
        return
    if not isinstance(name, str) or not name.startswith(ALIASES):
        message = f"the model {str(name)[:60]!r} is not served here, but {service.model.name}"
        raise ServiceError("not_found", message, "model")


def _model(service: Service) -> dict:
    return {"id": service.model.name, "object": "model", "created": int(service.started), "owned_by": "ppvilg"}


def _fields_of(error: ServiceError) -> dict:
    kind = _TYPES.get(error.code, "invalid_request_error")
    return {"message": error.message, "type": kind, "param": error.field, "code": _CODES.get(error.code, error.code)}


def _error(error: ServiceError) -> Response:
    status = 400 if error.status == 422 else error.status
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.code == "quota":
        headers["x-should-retry"] = "false"  # which the client honours: trying again helps tomorrow
    return JSONResponse({"error": _fields_of(error)}, status, headers)


PROTOCOL = Protocol("openai", ("/v1/images/", "/v1/models"), router, _error)
