"""Baidu's qianfan text2image: the pictures come in the answer."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ppvilg.knowledge import STYLES

from ..access.identity import TokenExpired
from ..errors import ServiceError
from ..model.samplers import sampler_of
from ..service import retry_key
from .protocol import Protocol, base64_of, owner_of, read_json, service_of, size_of

router = APIRouter()

CODES = {
    "no_key": 110,
    "wrong_key": 110,
    "rate": 18,
    "queue_full": 18,
    "quota": 17,
    "invalid": 336003,
    "unknown_style": 336003,
    "size": 336003,
    "filtered": 336003,
    "too_large": 336002,
    "not_found": 3,
    "timeout": 336100,
    "not_ready": 336100,
}
INTERNAL, EXPIRED = 336000, 111
ANSWER_SECONDS = 55.0  # the client gives up after 60
NO_STYLE_NAMES = ("", "Base")


@router.post("/rpc/2.0/ai_custom/v1/wenxinworkshop/text2image/{endpoint}")
async def text2image(request: Request, endpoint: str) -> dict:
    """Draws and answers with the pictures; code 336100 where that takes too long: the job goes on, a retry finds it."""
    body = await request.body()
    fields = await read_json(request)
    owner = await asyncio.to_thread(owner_of, request, request.query_params.get("access_token"))
    service = service_of(request)
    job = await asyncio.to_thread(_submit, service, owner, fields, body)
    job, pictures = await service.finished(job, ANSWER_SECONDS)
    shown = job.extra.get("shown")
    data = [
        {
            "object": "image",
            "b64_image": base64_of(
                await asyncio.to_thread(service.picture_bytes, picture, tuple(shown) if shown else None)
            ),
            "index": picture.index,
        }
        for picture in pictures
    ]
    words = len(job.request["prompt"])
    usage = {"prompt_tokens": words, "total_tokens": words}
    return {"id": f"as-{job.id}", "object": "image", "created": int(time.time()), "data": data, "usage": usage}


def _submit(service, owner, fields: dict, body: bytes):
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ServiceError("invalid", "prompt is missing", "prompt")
    asked = {"prompt": prompt, "negative_prompt": fields.get("negative_prompt") or None}
    notes, shown = [], None
    if fields.get("size"):
        size, notes, shown = service.fit_size(*size_of(fields["size"]))
        asked["width"], asked["height"] = size
    style = fields.get("style")
    if style not in (None, *NO_STYLE_NAMES):
        if style not in STYLES:
            message = f"unknown style {str(style)[:40]!r}; there are {'、'.join(STYLES)}"
            raise ServiceError("unknown_style", message, "style")
        asked["style"] = style
    names = {"n": "num_images", "steps": "num_inference_steps", "seed": "seed", "cfg_scale": "guidance_scale"}
    asked |= {ours: fields[theirs] for theirs, ours in names.items() if fields.get(theirs) is not None}
    if fields.get("sampler_index"):
        asked["sampler"] = sampler_of(fields["sampler_index"])
    # The client asks again with the same body after 336100, which is then the job that it has not waited for.
    key = retry_key(owner, body, "qianfan")
    return service.submit(owner, "qianfan", asked, None, None, {"shown": shown}, notes, key, ANSWER_SECONDS - 5)


def _error(error: ServiceError) -> Response:
    code = EXPIRED if isinstance(error, TokenExpired) else CODES.get(error.code, INTERNAL)
    plain = error.code in ("too_large", "forbidden") or error.message.startswith("there is nothing at")
    return JSONResponse({"error_code": code, "error_msg": error.message}, error.status if plain else 200)


PROTOCOL = Protocol("qianfan", ("/rpc/2.0/ai_custom/",), router, _error)
