"""What every protocol does: take a request, put a job in the store, wait for it, hand out its pictures."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ppvilg.files import PictureError, read_picture

from .access.identity import Authenticator, Owner
from .access.signing import Signer
from .errors import ServiceError
from .model.hooks import PictureFilter
from .model.info import ModelInfo, read_model
from .model.knowledge import KnowledgeLoader
from .model.metadata import with_metadata
from .model.requests import Limits, fit_size, resolve
from .store import Job, QueueLimits, Store, gallery, jobs, keys, sqlite_url, workers
from .store.folder import DataFolder
from .watching import Watcher

log = logging.getLogger("ppvilg.serving.jobs")

URL_SECONDS = 3600
DAY = 86400


@dataclass(frozen=True)
class ServiceSettings:
    """How a service was started; the command line has one option for each."""

    model: str = "emoji64"
    data: Path = Path("output/service")
    database: str | None = None  # None: SQLite in `data`
    host: str = "127.0.0.1"
    port: int = 8000
    require_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    strict_sizes: bool = False
    enlarge: bool = False
    keep_days: float = 30.0  # 0: for ever
    disk_bytes: int = 10 * 2**30
    log_prompts: bool = False
    queue: QueueLimits = field(default_factory=QueueLimits)
    limits: Limits = field(default_factory=Limits)
    adapters: dict[str, str] = field(default_factory=dict)  # name -> path, of those that requests may choose

    @property
    def keep_seconds(self) -> float | None:
        return self.keep_days * DAY if self.keep_days else None

    def open_store(self) -> tuple[DataFolder, Store]:
        folder = DataFolder(self.data)
        return folder, Store(self.database or sqlite_url(folder.database))


class Service:
    """The service without any protocol."""

    def __init__(
        self, settings: ServiceSettings, picture_filter: PictureFilter | None = None
    ) -> None:
        self.settings = settings
        self.model: ModelInfo = read_model(settings.model, settings.adapters)
        self.limits = settings.limits
        self.folder, self.store = settings.open_store()
        self.signer = Signer(self.folder.signing_key())
        self.authenticator = Authenticator(self.store, self.signer, settings.require_key)
        self.watcher = Watcher(self.store)
        self.knowledge = KnowledgeLoader(self.model)
        self.picture_filter = picture_filter
        self.started = time.time()
        self.is_draining = False

    # ---- in ----

    def submit(
        self,
        owner: Owner,
        protocol: str,
        asked: dict,
        image: bytes | None = None,
        mask: bytes | None = None,
        extra: dict | None = None,
        notes: list[str] | None = None,
        retry_key: str | None = None,
        attach_after: float | None = None,
    ) -> Job:
        """A job for what was asked; pictures are given as bytes, or in `asked` as ids of uploads or pictures.

        retry_key, attach_after: see ppvilg.serving.store.jobs.submit. ServiceError where it cannot be done.
        """
        if self.is_draining:
            raise ServiceError("not_ready", "the service is about to end; try again in a moment", retry_after=5)
        asked = dict(asked)
        for name, content in (("image", image), ("mask", mask)):
            if content is not None:
                asked[name] = self.upload(owner, content, name)["id"]
        inputs, size = self._inputs(owner, asked)
        settings, more_notes = resolve(asked, self.model, self.limits, size)
        self.check_words(settings)
        extra = {**(extra or {}), **({"inputs": inputs} if inputs else {})}
        warnings = self.knowledge.warnings(settings)
        with self.store.writing() as connection:
            keys.spend(connection, owner.id, owner.key, settings["num_images"])
            job = jobs.submit(
                connection,
                owner.id,
                protocol,
                settings,
                self.settings.queue,
                extra,
                [*(notes or []), *more_notes],
                warnings,
                retry_key,
                attach_after,
            )
        about = {"prompt": settings["prompt"]} if self.settings.log_prompts else {}
        log.info("job", extra={"job": job.id, "owner": owner.id, "protocol": protocol, "pictures": job.wanted, **about})
        return job

    def check_words(self, settings: dict) -> None:
        """ServiceError filtered, with the hook's own reason."""
        reason = self.picture_filter(settings, None) if self.picture_filter else None
        if reason is not None:
            raise ServiceError("filtered", reason, "prompt")

    def upload(self, owner: Owner, content: bytes, name: str = "image") -> dict:
        """Keeps a picture that was sent in: upright, RGB, without metadata. ServiceError bad_picture, too_large."""
        if len(content) > self.limits.picture_bytes:
            message = f"{name} has {len(content)} bytes, at most {self.limits.picture_bytes} are read"
            raise ServiceError("too_large", message, name)
        try:
            picture = read_picture(content, max_pixels=self.limits.picture_pixels)
        except PictureError as error:
            raise ServiceError("bad_picture", f"{name}: {error}", name) from None
        packed = io.BytesIO()
        picture.save(packed, format="PNG", compress_level=1)
        sha256 = self.folder.put(packed.getvalue())
        keep = self.settings.keep_seconds
        row = {
            "sha256": sha256,
            "bytes": packed.tell(),
            "width": picture.width,
            "height": picture.height,
            "expires": None if keep is None else time.time() + keep,
        }
        stored = gallery.add_upload(self.store, owner.id, row)
        self.make_room()
        return {"id": stored.id, "width": stored.width, "height": stored.height}

    def make_room(self) -> None:
        """Removes the oldest pictures while all of them take more than they may."""
        unneeded = gallery.make_room(self.store, self.settings.disk_bytes)
        if unneeded:
            with self.store.writing() as connection:
                self.folder.remove(gallery.unneeded(connection, unneeded))

    def _inputs(self, owner: Owner, asked: dict) -> tuple[dict[str, str], tuple[int, int] | None]:
        """(hash of the file of each input picture, size of `image`)."""
        inputs, size = {}, None
        for name in ("image", "mask"):
            id = asked.get(name)
            if id is None:
                continue
            if not isinstance(id, str):
                raise ServiceError("invalid", f"{name} must be the id of an upload or a picture", name)
            found = self._find_input(owner, id, name)
            inputs[name] = found.sha256
            if name == "image":
                size = found.width, found.height
        return inputs, size

    def _find_input(self, owner: Owner, id: str, name: str):
        for find in (gallery.find_upload, gallery.find_picture):
            try:
                return find(self.store, owner.id, id)
            except ServiceError:
                continue
        raise ServiceError("not_found", f"{name}: no upload or picture of yours has this id", name)

    def fit_size(self, width: int, height: int) -> tuple[tuple[int, int], list[str], tuple[int, int] | None]:
        """(size to draw, notes, size to hand out or None) for the size that a client asks for."""
        size, notes = fit_size(width, height, self.model, self.settings.strict_sizes)
        if not notes or not self.settings.enlarge:
            return size, notes, None
        if width * height > self.limits.picture_pixels:
            raise ServiceError("size", f"{width}x{height} is more than {self.limits.picture_pixels} pixels", "size")
        return size, [*notes, "enlarged to the size asked for"], (width, height)

    # ---- waiting ----

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job when it has ended, or as it is after so many seconds."""
        deadline = time.monotonic() + seconds
        while not job.is_final and (left := deadline - time.monotonic()) > 0:
            await self.watcher.changed(job.id, job.revision, left)
            job = await asyncio.to_thread(jobs.find, self.store, None, job.id)
        return job

    async def finished(self, job: Job, seconds: float) -> tuple[Job, list[gallery.Picture]]:
        """The job that has ended well, with its pictures. ServiceError with its reason, or timeout."""
        job = await self.wait(job, seconds)
        if job.state == "done":
            found = await asyncio.to_thread(gallery.of_jobs, self.store, [job.id])
            return job, found[job.id]
        if not job.is_final:
            raise ServiceError("timeout", f"the pictures are not drawn after {seconds:.0f} seconds; the job goes on")
        raise failure_of(job)

    # ---- out ----

    def picture_bytes(
        self, picture: gallery.Picture, size: tuple[int, int] | None = None, metadata: bool = False
    ) -> bytes:
        """A PNG, enlarged if a size is given, with its settings inside if asked. ServiceError not_found."""
        try:
            content = self.folder.picture(picture.sha256).read_bytes()
        except FileNotFoundError:
            raise ServiceError("not_found", "the picture has been deleted") from None
        if size is not None and size != (picture.width, picture.height):
            packed = io.BytesIO()
            Image.open(io.BytesIO(content)).resize(size, Image.Resampling.LANCZOS).save(packed, format="PNG")
            content = packed.getvalue()
        return with_metadata(content, picture) if metadata else content

    def picture_path(self, picture: gallery.Picture, size: tuple[int, int] | None = None) -> str:
        """Address of a picture, relative to the service, that works for an hour without credentials."""
        expires = int(time.time()) // 600 * 600 + URL_SECONDS + 600  # the same for a while, so that browsers keep it
        shown = "" if size is None else f"{size[0]}x{size[1]}"
        signature = self.signer.signature("picture", picture.id, expires, shown)
        return f"v1/pictures/{picture.id}.png?expires={expires}{shown and f'&size={shown}'}&signature={signature}"

    def signed_picture(self, id: str, expires: str, shown: str, signature: str) -> gallery.Picture:
        """The picture of such an address. ServiceError forbidden, not_found."""
        if not self.signer.is_valid(signature, "picture", id, expires, shown) or float(expires) < time.time():
            raise ServiceError("forbidden", "this address of a picture is not valid, or no longer")
        return gallery.find_picture(self.store, None, id)

    # ---- state ----

    def model_hash(self) -> str | None:
        """Hash of the model as its workers have found it; None while none is ready."""
        return next((each.model_hash for each in workers.present(self.store) if each.model_hash), None)

    def is_ready(self) -> bool:
        return not self.is_draining and any(each.state == "ready" for each in workers.present(self.store))


def failure_of(job: Job) -> ServiceError:
    """Why a job that has ended has no pictures."""
    if job.state == "cancelled":
        return ServiceError("invalid", "the job was cancelled")
    code = job.error_code if job.error_code in ("invalid", "filtered") else "internal"
    return ServiceError(code, job.error_message or "the job failed")


def retry_key(owner: Owner, body: bytes, *parts: str) -> str:
    """What two requests have in common when the second is a retry of the first."""
    return hashlib.sha256(json.dumps([owner.id, *parts]).encode() + body).hexdigest()
