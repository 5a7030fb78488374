"""Tasks as every one of Baidu's ERNIE-ViLG interfaces has them: hand in a text, then ask for it by number."""

from __future__ import annotations

import asyncio
import time

from fastapi import Request

from ..access.identity import Owner
from ..errors import ServiceError
from ..service import Service
from ..store import Job, gallery, jobs
from .protocol import decode_picture, size_of, whole
from .views import seconds_left

# A drawing that is about to end is waited for, so that a client need not sleep 20 seconds until its next look.
HOLD_SECONDS = 22.0
DEFAULT_RESOLUTION = "1024*1024"


def create(service: Service, owner: Owner, protocol: str, fields: dict, files: dict, default_num: int) -> Job:
    """A job for {text, style, resolution, num} and perhaps a picture."""
    if not isinstance(fields.get("text"), str) or not fields["text"]:
        raise ServiceError("invalid", "text is missing", "text")
    asked_size = size_of(fields.get("resolution") or DEFAULT_RESOLUTION, "resolution")
    size, notes, shown = service.fit_size(*asked_size)
    image = next(iter(files.get("image", [])), None)
    if image is None and fields.get("image"):
        image = decode_picture(fields["image"], "image")
    num = fields.get("num")
    asked = {
        "prompt": fields["text"],
        "style": fields.get("style") or None,
        "num_images": whole(default_num if num in (None, "") else num, "num"),
        "width": size[0],
        "height": size[1],
    }
    if fields.get("seed") not in (None, ""):
        asked["seed"] = whole(fields["seed"], "seed")
    extra = {
        "text": fields["text"],
        "style": fields.get("style") or "",
        "resolution": fields.get("resolution") or DEFAULT_RESOLUTION,
        "shown": shown,
    }
    return service.submit(owner, protocol, asked, image, None, extra, notes)


async def find(service: Service, owner: Owner, number: object) -> Job:
    """A task by its number, waited for a little while it is not finished. ServiceError invalid, not_found."""
    number = whole(number, "taskId")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise ServiceError("invalid", "taskId is missing or no number", "taskId")
    job = await asyncio.to_thread(jobs.find, service.store, owner.id, None, number)
    return await service.wait(job, HOLD_SECONDS)


def data_of(request: Request, service: Service, job: Job) -> dict:
    """What the interfaces say of a task; status 0: not finished, 1: done, 2: failed."""
    pictures = gallery.of_jobs(service.store, [job.id])[job.id] if job.state == "done" else []
    urls = [picture_url(request, service, job, picture) for picture in pictures]
    return {
        "status": {"done": 1, "queued": 0, "running": 0}.get(job.state, 2),
        "taskId": job.number,
        "requestId": job.id,
        "text": job.extra.get("text", job.request["prompt"]),
        "style": job.extra.get("style", ""),
        "resolution": job.extra.get("resolution", ""),
        "createTime": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created)),
        "waiting": "0s" if job.is_final else _waiting(service, job),
        "img": urls[0] if urls else "",
        "imgUrls": [{"image": url} for url in urls],
        "size": f"{job.request['width']}*{job.request['height']}",
        "notes": job.notes,
    }


def no_task(number: object) -> dict:
    """The data of a task that is not there; clients look at `status` before they look at the code."""
    return {
        "status": 2, "taskId": number, "requestId": "", "text": "", "style": "", "resolution": "", "createTime": "",
        "waiting": "0s", "img": "", "imgUrls": [],
    }  # fmt: skip


def picture_url(request: Request, service: Service, job: Job, picture: gallery.Picture) -> str:
    """Whole address of a picture, at the size that was asked for where the service enlarges."""
    shown = job.extra.get("shown")
    return f"{request.base_url}{service.picture_path(picture, tuple(shown) if shown else None)}"


def _waiting(service: Service, job: Job) -> str:
    seconds = seconds_left(service, job) or 1.0
    return f"{int(seconds) + 1}s" if seconds < 60 else f"{int(seconds // 60) + 1}m"
