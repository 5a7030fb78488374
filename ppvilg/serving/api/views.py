"""Jobs and pictures as JSON of our own API."""

from __future__ import annotations

import time

from ..model.info import ModelInfo
from ..service import URL_SECONDS, Service
from ..store import Job, gallery, jobs, workers


def job_json(service: Service, job: Job) -> dict:
    """A job with everything that a page shows of it."""
    progress = job.progress or {}
    pictures = gallery.of_jobs(service.store, [job.id])[job.id]
    steps = job.wanted * job.request["num_inference_steps"]
    done, total = progress.get("steps_done", 0), progress.get("steps_total", steps)
    if job.state == "done":
        done = total
    place, seconds_left = _when(service, job, total - done)
    error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "state": job.state,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "request": job.request,
        "notes": job.notes,
        "warnings": job.warnings,
        "queue": place,
        "progress": {
            "steps_done": done,
            "steps_total": total,
            "pictures_done": len(pictures),
            "pictures_total": job.wanted,
            "fraction": done / total if total else 1.0,
            "seconds_left": seconds_left,
        },
        "expert": _expert(service.model, progress),
        "blocks": progress.get("blocks", []),
        "previews": [_preview(service, job, entry) for entry in progress.get("previews", [])],
        "pictures": [picture_json(service, picture) for picture in pictures],
        "error": error,
        "verification": _verification(job, pictures),
        "revision": job.revision,
    }


def picture_json(service: Service, picture: gallery.Picture) -> dict:
    """A picture with the address of its file and what draws it again."""
    return {
        "id": picture.id,
        "job": picture.job,
        "index": picture.index,
        "width": picture.width,
        "height": picture.height,
        "seed": picture.seed,
        "created": picture.created,
        "expires": picture.expires,
        "sha256": picture.sha256,
        "bytes": picture.bytes,
        "url": service.picture_path(picture),
        "settings": picture.settings,
        "model": picture.model,
        "recipe": {"settings": picture.settings, "model_hash": picture.model["hash"], "sha256": picture.sha256},
    }


def seconds_left(service: Service, job: Job) -> float | None:
    """Seconds until a job ends, None while the service does not know its speed."""
    progress = job.progress or {}
    steps = progress.get("steps_total", job.wanted * job.request["num_inference_steps"])
    return _when(service, job, steps - progress.get("steps_done", 0))[1]


def _when(service: Service, job: Job, steps_left: int) -> tuple[dict | None, float | None]:
    """(place in the queue, seconds until the job ends), each None where there is none to tell."""
    if job.is_final:
        return None, None
    present = workers.present(service.store)
    speed = sum(1 / each.seconds_per_step for each in present if each.seconds_per_step)  # steps of pictures a second
    if job.state == "running":
        progress = job.progress or {}
        mine = max(progress.get("pictures_drawn", 1), 1)
        crowd = max(progress.get("pictures_in_flight", 1), mine) / mine
        return None, steps_left * crowd / speed if speed else None
    queue = jobs.queue(service.store)
    if job.number not in queue.order:
        return None, None
    index = queue.order.index(job.number)
    pictures = queue.pictures_running + sum(queue.pictures[: index + 1])
    seconds = pictures * job.request["num_inference_steps"] / speed if speed else None
    return {"place": index + 1, "of": queue.queued}, seconds


def _expert(model: ModelInfo, progress: dict) -> dict | None:
    index = progress.get("expert")
    if index is None:
        return None
    low, high = model.boundaries[index], model.boundaries[index + 1]
    return {"index": index, "timestep": progress["timestep"], "from": low, "to": high}


def _preview(service: Service, job: Job, entry: dict) -> dict:
    expires = int(time.time()) // 600 * 600 + URL_SECONDS  # the same address for a while, so that a browser keeps it
    picture, step = entry["picture"], entry["step"]
    signature = service.signer.signature("preview", job.id, picture, step, expires)
    address = f"v1/jobs/{job.id}/previews/{picture}/{step}?expires={expires}&signature={signature}"
    return {**entry, "url": address}


def _verification(job: Job, pictures: list[gallery.Picture]) -> dict | None:
    expected = job.extra.get("expect")
    if not expected or job.state != "done":
        return None
    drawn = [picture.sha256 for picture in pictures]
    return {"same": drawn == expected, "expected": expected, "drawn": drawn}
