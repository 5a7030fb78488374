"""Baidu's portal interface: wenxin-api (TextToImage, TextToImageRef) and PaddleHub's ernie_vilg, also `hub serving`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..access.identity import TokenExpired
from ..errors import ServiceError
from . import vilg_tasks
from .protocol import Protocol, base64_of, owner_of, read_fields, service_of

router = APIRouter()

CODES = {
    "unknown_style": 4003,
    "invalid": 4001,
    "size": 4002,
    "bad_picture": 4002,
    "too_large": 4002,
    "filtered": 4001,
    "not_found": 4001,
    "no_key": 110,
    "wrong_key": 110,
    "rate": 18,
    "queue_full": 18,
    "quota": 17,
}
INTERNAL, EXPIRED, MISSING = 4004, 111, 4002
# Statuses that say something to a program that has not reached a function of the interface. What a function refuses
# comes with status 200, for PaddleHub looks at the code of no other answer.
_PLAIN = {"too_large", "forbidden"}
# wenxin-api asks for six unless told otherwise, and PaddleHub's module takes the first few of six.
DEFAULT_NUM = 6
HUB_SECONDS = 1800.0


@router.api_route("/moduleApi/portal/api/oauth/token", methods=["GET", "POST"])
@router.api_route("/younger/portal/api/oauth/token", methods=["GET", "POST"])
async def token(request: Request) -> dict:
    """An access token for AK and SK, from the query or the body."""
    values = dict(request.query_params)
    if request.method == "POST" and await request.body():
        values |= (await read_fields(request))[0]
    pair = [str(values.get(name, "")) for name in ("client_id", "client_secret")]
    made = await asyncio.to_thread(service_of(request).authenticator.new_token, *pair)
    return {"code": 0, "msg": "success", "data": made}


@router.post("/moduleApi/portal/api/rest/1.0/ernievilg/v1/txt2img")
@router.post("/younger/portal/api/rest/1.0/ernievilg/v1/txt2img")
async def create(request: Request) -> dict:
    """Hands in a text."""
    fields, files = await read_fields(request)
    owner = await asyncio.to_thread(owner_of, request, _token(request, fields))
    service = service_of(request)
    job = await asyncio.to_thread(vilg_tasks.create, service, owner, "portal", fields, files, DEFAULT_NUM)
    return {"code": 0, "msg": "success", "data": {"taskId": job.number, "requestId": job.id}}


@router.post("/moduleApi/portal/api/rest/1.0/ernievilg/v1/getImg")
@router.post("/younger/portal/api/rest/1.0/ernievilg/v1/getImg")
async def poll(request: Request) -> dict:
    """How a task is getting on; a failed one has a code and a status, for clients look at either."""
    fields, _ = await read_fields(request)
    service, number = service_of(request), fields.get("taskId")
    try:
        owner = await asyncio.to_thread(owner_of, request, _token(request, fields))
        job = await vilg_tasks.find(service, owner, number)
    except ServiceError as error:
        return {"code": code_of(error), "msg": error.message, "data": vilg_tasks.no_task(number)}
    data = await asyncio.to_thread(vilg_tasks.data_of, request, service, job)
    if data["status"] == 2:
        code = CODES.get(job.error_code or "", INTERNAL)
        return {"code": code, "msg": job.error_message or "the task was cancelled", "data": data}
    return {"code": 0, "msg": "success", "data": data}


@router.post("/predict/ernie_vilg")
async def predict(request: Request) -> dict:
    """PaddleHub's `hub serving`: pictures of several texts in one answer."""
    fields, _ = await read_fields(request)
    service, owner = service_of(request), await asyncio.to_thread(owner_of, request)
    texts = fields.get("text_prompts")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or len(texts) > service.limits.num_images:
        raise ServiceError("invalid", "text_prompts must be a text or a list of texts", "text_prompts")
    made = [
        await asyncio.to_thread(
            vilg_tasks.create,
            service,
            owner,
            "portal",
            {"text": text, "style": fields.get("style"), "num": fields.get("topk"), "seed": fields.get("seed")},
            {},
            DEFAULT_NUM,
        )
        for text in texts
    ]
    results = []
    for job in made:
        job, pictures = await service.finished(job, HUB_SECONDS)
        shown = job.extra.get("shown")
        for picture in pictures:
            content = await asyncio.to_thread(service.picture_bytes, picture, tuple(shown) if shown else None)
            results.append(base64_of(content))
    return {"status": "000", "msg": "", "results": results}


def code_of(error: ServiceError) -> int:
    """The interface's number for an error."""
    if isinstance(error, TokenExpired):
        return EXPIRED
    if error.code == "invalid" and error.message.endswith(("is missing", "is not JSON", "cannot be read")):
        return MISSING
    return CODES.get(error.code, INTERNAL)


def _token(request: Request, fields: dict) -> str | None:
    given = request.query_params.get("access_token") or fields.get("access_token")
    return given if isinstance(given, str) else None


def _error(error: ServiceError) -> Response:
    status = error.status if error.code in _PLAIN or error.message.startswith("there is nothing at") else 200
    return JSONResponse({"code": code_of(error), "msg": error.message}, status)


def _hub_error(error: ServiceError) -> Response:
    return JSONResponse({"status": str(code_of(error)), "msg": error.message, "results": ""}, error.status)


PROTOCOL = Protocol("portal", ("/moduleApi/", "/younger/"), router, _error)
HUB = Protocol("hub", ("/predict/",), APIRouter(), _hub_error)
