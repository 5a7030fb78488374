"""A1111's /sdapi/v1, for the programs written for that web page: drawing, progress of one's own jobs, what there is."""

from __future__ import annotations

import asyncio
import io
import json
import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image, ImageOps

from ppvilg.files import PictureError, read_picture
from ppvilg.knowledge import NO_STYLE, STYLES, apply_style

from ..errors import ServiceError
from ..model.adapters import take_tags
from ..model.info import SAMPLERS
from ..model.metadata import infotext, read_settings, tagged_prompt
from ..model.samplers import sampler_of, shown_name
from ..service import Service
from ..store import Job, jobs
from .protocol import Protocol, base64_of, decode_picture, owner_of, read_json, service_of
from .views import seconds_left

router = APIRouter(prefix="/sdapi/v1")

ANSWER_SECONDS = 3600.0
# What webuiapi and others send when their user has chosen nothing: it stands for the model's own value.
UNSET = {"width": 512, "height": 512, "steps": 20, "cfg_scale": 7.0, "sampler_name": "Euler a", "seed": -1}
EMPTY_LISTS = ("latent-upscale-modes", "sd-vae", "hypernetworks", "face-restorers", "realesrgan-models")
NOT_HERE = {"enable_hr": "a second pass", "tiling": "tiling", "restore_faces": "restoring faces"}


@router.post("/txt2img")
async def txt2img(request: Request) -> dict:
    """Draws pictures of a prompt."""
    return await _draw(request, await read_json(request), None, None)


@router.post("/img2img")
async def img2img(request: Request) -> dict:
    """Draws from a picture, or repaints where a mask is white."""
    fields = await read_json(request)
    images = fields.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise ServiceError("invalid", "init_images must be a list of one picture", "init_images")
    image, mask = decode_picture(images[0], "init_images"), None
    if fields.get("mask"):
        mask = decode_picture(fields["mask"], "mask")
        if fields.get("inpainting_mask_invert"):
            mask = await asyncio.to_thread(_inverted, mask, service_of(request))
    return await _draw(request, fields, image, mask)


async def _draw(request: Request, fields: dict, image: bytes | None, mask: bytes | None) -> dict:
    service, owner = service_of(request), await asyncio.to_thread(owner_of, request)
    asked, notes, shown = _asked(service, fields, image is not None)
    job = await asyncio.to_thread(
        service.submit, owner, "a1111", asked, image, mask, {"shown": shown}, notes
    )
    job, pictures = await service.finished(job, ANSWER_SECONDS)
    images = []
    if fields.get("send_images", True):
        for picture in pictures:
            images.append(base64_of(await asyncio.to_thread(service.picture_bytes, picture, shown, True)))
    kept = {name: value for name, value in fields.items() if name not in ("init_images", "mask")}
    return {"images": images, "parameters": kept, "info": json.dumps(_info(service, job, pictures), ensure_ascii=False)}


def _asked(service: Service, fields: dict, has_image: bool) -> tuple[dict, list[str], tuple[int, int] | None]:
    """(settings in our names, notes, size to hand out or None)."""
    for name, what in NOT_HERE.items():
        if fields.get(name):
            raise ServiceError("invalid", f"{what} is not done here: leave {name} out", name)
    if fields.get("subseed_strength"):
        raise ServiceError("invalid", "subseeds are not known here: leave subseed_strength out", "subseed_strength")
    if fields.get("script_name"):
        raise ServiceError("not_found", "there are no scripts here", "script_name")
    chosen = {name: fields.get(name) for name in UNSET if fields.get(name) not in (None, "", UNSET[name])}
    if "sampler_name" not in chosen and fields.get("sampler_index") not in (None, "", "Euler", UNSET["sampler_name"]):
        chosen["sampler_name"] = fields["sampler_index"]
    style, prompt = _styled(fields)
    prompt, lora = take_tags(prompt)
    asked = {"prompt": prompt, "style": style, "lora": lora, "negative_prompt": fields.get("negative_prompt") or None}
    counts = [fields.get(name) or 1 for name in ("batch_size", "n_iter")]
    if not all(isinstance(count, int) and 1 <= count <= service.limits.num_images for count in counts):
        raise ServiceError("invalid", "batch_size and n_iter must be whole numbers from 1", "batch_size")
    asked["num_images"] = counts[0] * counts[1]
    names = {"steps": "num_inference_steps", "cfg_scale": "guidance_scale", "seed": "seed"}
    asked |= {ours: chosen[theirs] for theirs, ours in names.items() if theirs in chosen}
    if "sampler_name" in chosen:
        asked["sampler"] = sampler_of(chosen["sampler_name"])
    if has_image and fields.get("denoising_strength") is not None:
        asked["strength"] = fields["denoising_strength"]
    notes, shown = [], None
    if "width" in chosen or "height" in chosen:
        sides = [fields.get(name) or UNSET[name] for name in ("width", "height")]
        if not all(isinstance(side, int) and 0 < side < 2**16 for side in sides):
            raise ServiceError("size", "width and height must be whole numbers", "width")
        (asked["width"], asked["height"]), notes, shown = service.fit_size(*sides)
    unset = [name for name in ("steps", "cfg_scale", "sampler_name") if name in fields and name not in chosen]
    if unset:
        notes = [*notes, f"taken as not chosen, the model's own is used: {', '.join(unset)}"]
    return asked, notes, shown


def _styled(fields: dict) -> tuple[str | None, str]:
    """(the style of a job, the prompt with all other styles)."""
    prompt, styles = fields.get("prompt", ""), fields.get("styles") or []
    texts = isinstance(styles, list) and all(isinstance(style, str) for style in styles)
    if not isinstance(prompt, str) or not texts:
        raise ServiceError("invalid", "prompt must be a text, styles a list of texts", "prompt")
    styles = [style for style in styles if style != NO_STYLE]
    for style in styles:
        if style not in STYLES:
            known = "、".join(STYLES)
            raise ServiceError("unknown_style", f"unknown style {style[:40]!r}; there are {known}", "styles")
    for style in styles[:-1]:
        prompt = apply_style(prompt, style)
    return (styles[-1] if styles else None), prompt


def _info(service: Service, job: Job, pictures: list) -> dict:
    request = job.request
    seeds = [picture.seed for picture in pictures]
    return {
        "prompt": tagged_prompt(request),
        "all_prompts": [tagged_prompt(request)] * len(pictures),
        "negative_prompt": request["negative_prompt"],
        "all_negative_prompts": [request["negative_prompt"]] * len(pictures),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": 0,
        "all_subseeds": [0] * len(pictures),
        "subseed_strength": 0,
        "width": request["width"],
        "height": request["height"],
        "sampler_name": shown_name(request["sampler"]),
        "cfg_scale": request["guidance_scale"],
        "steps": request["num_inference_steps"],
        "batch_size": job.wanted,
        "restore_faces": False,
        "denoising_strength": request["strength"],
        "sd_model_name": service.model.name,
        "sd_model_hash": (pictures[0].model["hash"] or "")[:10],
        "styles": [] if request["style"] == NO_STYLE else [request["style"]],
        "index_of_first_image": 0,
        "infotexts": [infotext(picture.settings, picture.model) for picture in pictures],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "clip_skip": 1,
        "notes": job.notes,
    }


@router.get("/progress")
def progress(request: Request, skip_current_image: bool = False) -> dict:
    """How far one's own newest unfinished job is."""
    service, owner = service_of(request), owner_of(request)
    mine = [job for job in jobs.newest(service.store, owner.id, unfinished=True) if job.protocol == "a1111"]
    state = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": len(mine)}
    state |= {"job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
    if not mine:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    job = mine[-1]
    done = job.progress or {}
    total = done.get("steps_total") or job.wanted * job.request["num_inference_steps"]
    state |= {"job": job.id, "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created))}
    state |= {"sampling_step": done.get("steps_done", 0) // job.wanted, "sampling_steps": total // job.wanted}
    jobs.watch(service.store, [job.id], time.time() + 10)
    image = None if skip_current_image else _newest_preview(service, job)
    share = done.get("steps_done", 0) / total
    left = seconds_left(service, job) or 0.0
    return {"progress": share, "eta_relative": left, "state": state, "current_image": image, "textinfo": None}


@router.post("/interrupt")
@router.post("/skip")
def interrupt(request: Request) -> dict:
    """Ends one's own jobs, nobody else's."""
    service, owner = service_of(request), owner_of(request)
    mine = jobs.newest(service.store, owner.id, unfinished=True)
    ids = [job.id for job in mine if job.protocol == "a1111"]
    if ids:
        jobs.cancel(service.store, owner.id, ids)
    return {}


@router.post("/png-info")
async def png_info(request: Request) -> dict:
    """What a PNG says of how it was made."""
    await asyncio.to_thread(owner_of, request)
    content = decode_picture((await read_json(request)).get("image"), "image")
    found = await asyncio.to_thread(read_settings, content, service_of(request).limits)
    text = found["text"]
    info = text.get("parameters", "")
    return {"info": info, "items": text, "parameters": found["settings"] or {}}


@router.get("/options")
def options(request: Request) -> dict:
    """The settings that other programs look at."""
    owner_of(request)
    title, hash = _title(service_of(request))
    shown = {"sd_model_checkpoint": title, "sd_checkpoint_hash": hash}
    return {**shown, "samples_format": "png", "CLIP_stop_at_last_layers": 1}


@router.post("/options")
async def set_options(request: Request) -> Response:
    """Accepts what was read before; another model cannot be chosen."""
    await asyncio.to_thread(owner_of, request)
    wanted = (await read_json(request)).get("sd_model_checkpoint")
    name = service_of(request).model.name
    if wanted is not None and not str(wanted).lower().startswith(name.lower()):
        raise ServiceError("not_found", f"the model {str(wanted)[:60]!r} is not served here, but {name}")
    return JSONResponse(None)


@router.get("/sd-models")
def sd_models(request: Request) -> list:
    """The one model."""
    owner_of(request)
    service = service_of(request)
    title, hash = _title(service)
    about = {"title": title, "model_name": service.model.name, "hash": hash[:10] or None, "sha256": hash or None}
    return [{**about, "filename": service.model.name, "config": None}]


@router.get("/samplers")
def samplers(request: Request) -> list:
    """Samplers by the names they have there."""
    owner_of(request)
    return [{"name": shown_name(name), "aliases": [name], "options": {}} for name in SAMPLERS]


@router.get("/schedulers")
def schedulers(request: Request) -> list:
    """The model's own spacing of steps."""
    owner_of(request)
    about = {"aliases": None, "default_rho": -1, "need_inner_model": False}
    return [{"name": "automatic", "label": "Automatic", **about}]


@router.get("/prompt-styles")
def prompt_styles(request: Request) -> list:
    """The seventeen styles, as what each adds to a prompt."""
    owner_of(request)
    return [{"name": style, "prompt": apply_style("{prompt}", style), "negative_prompt": ""} for style in STYLES]


@router.get("/upscalers")
def upscalers(request: Request) -> list:
    """None."""
    owner_of(request)
    return [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}]


@router.get("/scripts")
def scripts(request: Request) -> dict:
    """None."""
    owner_of(request)
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings")
def embeddings(request: Request) -> dict:
    """None."""
    owner_of(request)
    return {"loaded": {}, "skipped": {}}


@router.get("/loras")
def loras(request: Request) -> list:
    """Adapters that <lora:name:scale> in a prompt chooses."""
    owner_of(request)
    offered = service_of(request).model.adapters.values()
    return [
        {"name": each.name, "alias": each.name, "path": each.file.name, "metadata": {"sshs_model_hash": each.sha256}}
        for each in offered
    ]


@router.get("/cmd-flags")
def cmd_flags(request: Request) -> dict:
    """That there is an API."""
    owner_of(request)
    return {"api": True, "nowebui": False}


@router.get("/{name}")
def empty_list(request: Request, name: str) -> list:
    """Kinds of things of which there are none here."""
    owner_of(request)
    if name not in EMPTY_LISTS:
        raise ServiceError("not_found", f"there is nothing at GET /sdapi/v1/{name[:60]}")
    return []


@router.post("/refresh-checkpoints")
@router.post("/refresh-loras")
def refresh(request: Request) -> Response:
    """Nothing to do."""
    owner_of(request)
    return JSONResponse(None)


def _title(service: Service) -> tuple[str, str]:
    hash = service.model_hash() or ""
    return (f"{service.model.name} [{hash[:10]}]" if hash else service.model.name), hash


def _newest_preview(service: Service, job: Job) -> str | None:
    entries = (job.progress or {}).get("previews", [])
    if not entries:
        return None
    entry = max(entries, key=lambda each: each["step"])
    path = service.folder.preview(job.id, f"{entry['picture']}-{entry['step']}.webp")
    if not path.is_file():
        return None
    packed = io.BytesIO()
    Image.open(path).save(packed, format="PNG")
    return base64_of(packed.getvalue())


def _inverted(mask: bytes, service: Service) -> bytes:
    try:
        image = read_picture(mask, max_pixels=service.limits.picture_pixels)
    except PictureError as error:
        raise ServiceError("bad_picture", f"mask: {error}", "mask") from None
    packed = io.BytesIO()
    ImageOps.invert(image).save(packed, format="PNG")
    return packed.getvalue()


def _error(error: ServiceError) -> Response:
    status = 404 if error.code == "not_found" else error.status
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Basic"
    content = {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    return JSONResponse(content, status, headers)


PROTOCOL = Protocol("a1111", ("/sdapi/",), router, _error)
