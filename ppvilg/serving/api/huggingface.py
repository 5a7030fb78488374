"""Hugging Face's InferenceClient: text to image and image to image at one address, which answers with the picture."""

from __future__ import annotations

import asyncio
import io
import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from ..errors import ServiceError
from ..service import Service
from .protocol import Protocol, decode_picture, owner_of, read_json, service_of

router = APIRouter()

ANSWER_SECONDS = 1800.0
OURS = {
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "strength": "strength",
    "style": "style",
    "sampler": "sampler",
    "lora": "lora",
}
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")


@router.post("/")
@router.post("/models/{name:path}")
async def draw(request: Request, name: str = "") -> Response:
    """A picture of `inputs`: of a text, or from a picture and the prompt in `parameters`."""
    service, owner = service_of(request), await asyncio.to_thread(owner_of, request)
    if name and name != service.model.name:
        raise ServiceError("not_found", f"the model {name[:60]!r} is not served here, but {service.model.name}")
    body = await request.body()
    if body.startswith(_MAGIC):
        prompt, image, parameters = request.query_params.get("prompt", ""), body, {}
    else:
        prompt, image, parameters = _taken_apart(await read_json(request))
    asked, notes, shown = await asyncio.to_thread(_asked, service, prompt, image, parameters)
    job = await asyncio.to_thread(
        service.submit, owner, "huggingface", asked, image, None, {"shown": shown}, notes
    )
    job, pictures = await service.finished(job, ANSWER_SECONDS)
    content = await asyncio.to_thread(service.picture_bytes, pictures[0], tuple(shown) if shown else None)
    headers = {"X-Seed": str(job.request["seed"]), "X-Notes": json.dumps(job.notes)}
    if request.headers.get("accept", "").startswith("image/jpeg"):
        packed = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").save(packed, format="JPEG", quality=95)
        return Response(packed.getvalue(), media_type="image/jpeg", headers=headers)
    return Response(content, media_type="image/png", headers=headers)


def _taken_apart(fields: dict) -> tuple[str, bytes | None, dict]:
    """(prompt, picture or None, parameters)."""
    inputs, parameters = fields.get("inputs"), fields.get("parameters") or {}
    if not isinstance(inputs, str) or not isinstance(parameters, dict):
        raise ServiceError("invalid", "inputs must be a text or base64, parameters an object", "inputs")
    if "prompt" in parameters or len(inputs) > 500 or inputs.startswith("data:"):
        image = None
        try:
            image = decode_picture(inputs, "inputs")
        except ServiceError:
            if "prompt" in parameters or inputs.startswith("data:"):
                raise
        if image is not None and (image.startswith(_MAGIC) or "prompt" in parameters):
            return parameters.get("prompt") or "", image, parameters
    return inputs, None, parameters


def _asked(service: Service, prompt: str, image: bytes | None, parameters: dict):
    size = parameters.get("target_size")
    if isinstance(size, dict):
        parameters = {**parameters, "width": size.get("width"), "height": size.get("height")}
    asked = {ours: parameters[name] for name, ours in OURS.items() if parameters.get(name) is not None}
    unknown = sorted(set(parameters) - set(OURS) - {"prompt", "target_size", "scheduler", "image"})
    notes = [f"not used: {', '.join(unknown)[:200]}"] if unknown else []
    shown = None
    sides = [asked.pop(name, None) for name in ("width", "height")]
    if any(sides):
        default = service.model.default_size
        sides = [default[i] if side is None else side for i, side in enumerate(sides)]
        if not all(isinstance(side, int) and 0 < side < 2**16 for side in sides):
            raise ServiceError("size", "width and height must be whole numbers", "width")
        (asked["width"], asked["height"]), more, shown = service.fit_size(*sides)
        notes += more
    return {**asked, "prompt": prompt}, notes, shown


def _error(error: ServiceError) -> Response:
    # Older clients ask again for ever after a 503.
    status = {422: 400, 503: 500}.get(error.status, error.status)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse({"error": error.message, "error_type": error.code}, status, headers)


PROTOCOL = Protocol("huggingface", ("/models/",), router, _error)
