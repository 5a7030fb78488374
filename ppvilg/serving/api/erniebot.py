"""Baidu's cloud interface: erniebot (V1 and V2) and wenxin-api's TextToImageConsole, and the tokens of all of them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..access.identity import TOKEN_SECONDS, TokenExpired
from ..errors import ServiceError
from ..store import Job, gallery
from . import vilg_tasks
from .protocol import Protocol, decode_picture, owner_of, read_fields, service_of, whole

router = APIRouter()

CODES = {
    "no_key": 110,
    "wrong_key": 110,
    "rate": 18,
    "queue_full": 18,
    "quota": 17,
    "invalid": 282004,
    "unknown_style": 282004,
    "size": 282004,
    "filtered": 282004,
    "not_found": 282004,
    "bad_picture": 216100,
    "too_large": 282003,
}
INTERNAL, EXPIRED = 282000, 111
V1_NUM, V2_NUM, V2_MOST = 1, 1, 8
V2_CHARACTERS = 200
# erniebot appends the name of a function to EB_BASE_URL, which may have been given without a path.
_BASES = ("/rpc/2.0/ernievilg/v1", "")


def _post(name: str):
    def register(function):
        for base in _BASES:
            router.add_api_route(f"{base}/{name}", function, methods=["POST"])
        return function

    return register


@router.api_route("/oauth/2.0/token", methods=["GET", "POST"])
async def token(request: Request) -> Response:
    """An access token for AK and SK, from the query or the body."""
    values = dict(request.query_params)
    if request.method == "POST" and "client_id" not in values and await request.body():
        values |= (await read_fields(request))[0]
    pair = [str(values.get(name, "")) for name in ("client_id", "client_secret")]
    try:
        made = await asyncio.to_thread(service_of(request).authenticator.new_token, *pair)
    except ServiceError as error:
        return JSONResponse({"error": "invalid_client", "error_description": error.message}, 401)
    scope = {"scope": "public", "session_key": "", "session_secret": "", "refresh_token": ""}
    return JSONResponse({"access_token": made, "expires_in": TOKEN_SECONDS, **scope})


@_post("txt2img")
async def create(request: Request) -> dict:
    """V1: hands in a text."""
    fields, files = await read_fields(request)
    service, owner = service_of(request), await _owner(request, fields)
    job = await asyncio.to_thread(vilg_tasks.create, service, owner, "cloud", fields, files, V1_NUM)
    return {"data": {"taskId": job.number, "primaryTaskId": job.number}, "log_id": job.number}


@_post("getImg")
async def poll(request: Request) -> dict:
    """V1: how a task is getting on; an error comes with data, which wenxin-api looks at without looking for it."""
    fields, _ = await read_fields(request)
    service, number = service_of(request), fields.get("taskId")
    try:
        job = await vilg_tasks.find(service, await _owner(request, fields), number)
    except ServiceError as error:
        return {**_error_fields(error), "data": vilg_tasks.no_task(number)}
    data = await asyncio.to_thread(vilg_tasks.data_of, request, service, job)
    answer = {"data": data, "log_id": job.number}
    return {**answer, **_failure(job)} if data["status"] == 2 else answer


@_post("txt2imgv2")
async def create_v2(request: Request) -> dict:
    """V2: hands in a prompt."""
    fields, _ = await read_fields(request)
    service, owner = service_of(request), await _owner(request, fields)
    job = await asyncio.to_thread(_submit_v2, service, owner, fields)
    return {"data": {"task_id": str(job.number), "primary_task_id": job.number}, "log_id": job.number}


def _submit_v2(service, owner, fields: dict) -> Job:
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not 0 < len(prompt) <= V2_CHARACTERS:
        raise ServiceError("invalid", f"prompt must have 1 to {V2_CHARACTERS} characters", "prompt")
    sides = [whole(fields.get(name), name) for name in ("width", "height")]
    if not all(isinstance(side, int) and 0 < side < 2**16 for side in sides):
        raise ServiceError("size", "width and height must be whole numbers", "width")
    number = whole(fields.get("image_num", V2_NUM), "image_num")
    if not isinstance(number, int) or not 1 <= number <= V2_MOST:
        raise ServiceError("invalid", f"image_num must be from 1 to {V2_MOST}", "image_num")
    if fields.get("url"):
        raise ServiceError("invalid", "url: addresses are not fetched; send the picture as base64 in image", "url")
    size, notes, shown = service.fit_size(*sides)
    asked = {"prompt": prompt, "width": size[0], "height": size[1], "num_images": number}
    image = decode_picture(fields["image"], "image") if fields.get("image") else None
    if image is not None and fields.get("change_degree") is not None:
        degree = whole(fields["change_degree"], "change_degree")
        if not isinstance(degree, int) or not 1 <= degree <= 10:
            raise ServiceError("invalid", "change_degree must be from 1 to 10", "change_degree")
        asked["strength"] = 1 - (degree - 1) / 10  # 10 is the most like the picture
    return service.submit(owner, "cloud", asked, image, None, {"text": prompt, "shown": shown}, notes)


@_post("getImgv2")
async def poll_v2(request: Request) -> dict:
    """V2: how a task is getting on."""
    fields, _ = await read_fields(request)
    service = service_of(request)
    job = await vilg_tasks.find(service, await _owner(request, fields), fields.get("task_id"))
    pictures = (await asyncio.to_thread(gallery.of_jobs, service.store, [job.id]))[job.id]
    status = {"done": "SUCCESS", "queued": "WAIT", "running": "RUNNING"}.get(job.state, "FAILED")
    shown = job.extra.get("shown")
    results = [
        {
            "sub_task_status": "SUCCESS",
            "sub_task_progress": 1,
            "sub_task_error_code": 0,
            "final_image_list": [
                {
                    "img_url": vilg_tasks.picture_url(request, service, job, picture),
                    "width": shown[0] if shown else picture.width,
                    "height": shown[1] if shown else picture.height,
                    "img_approve_conclusion": "pass",
                }
            ],
        }
        for picture in (pictures if status == "SUCCESS" else [])
    ]
    progress = job.progress or {}
    done = progress.get("steps_done", 0) / max(progress.get("steps_total", 1), 1)
    data = {
        "task_id": job.number,
        "task_status": status,
        "task_progress": 1 if status == "SUCCESS" else int(done),
        "sub_task_result_list": results,
        "notes": job.notes,
    }
    return {"data": data, "log_id": job.number, **(_failure(job) if status == "FAILED" else {})}


async def _owner(request: Request, fields: dict):
    given = request.query_params.get("access_token") or fields.get("access_token")
    return await asyncio.to_thread(owner_of, request, given if isinstance(given, str) else None)


def error_code(error: ServiceError) -> int:
    """The interface's number for an error."""
    return EXPIRED if isinstance(error, TokenExpired) else CODES.get(error.code, INTERNAL)


def _failure(job: Job) -> dict:
    code = CODES.get(job.error_code or "", INTERNAL)
    return {"error_code": code, "error_msg": job.error_message or "the task was cancelled"}


def _error_fields(error: ServiceError) -> dict:
    return {"error_code": error_code(error), "error_msg": error.message}


def _error(error: ServiceError) -> Response:
    """Status 200, for erniebot reads the code of no other answer; others where no function was reached."""
    plain = error.code in ("too_large", "forbidden") or error.message.startswith("there is nothing at")
    return JSONResponse(_error_fields(error), error.status if plain else 200)


PREFIXES = ("/rpc/2.0/ernievilg/", "/oauth/", "/txt2img", "/getImg")
PROTOCOL = Protocol("cloud", PREFIXES, router, _error)
