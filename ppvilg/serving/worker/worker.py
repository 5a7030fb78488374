"""A worker: claims jobs, lets the engine draw them together, puts pictures in the store, and leaves in good order."""

from __future__ import annotations

import io
import logging
import threading
import time

from PIL import Image
from sqlalchemy import or_, select

from ppvilg.files import read_picture

from ..model.hooks import PictureFilter
from ..store import Store, claims
from ..store.folder import DataFolder
from ..store.jobs import expired_leases, new_id
from ..store.tables import jobs
from ..store.workers import announce, leave
from .engine import Engine, SharedStepError, Task
from .previews import Previews

log = logging.getLogger("ppvilg.serving.worker")

REPORT_SECONDS = 0.1  # how often progress is written at most
CLAIM_SECONDS = 0.1  # how often the queue is looked at while pictures are being drawn
STUCK_SECONDS = 600.0  # a worker that has not taken a step for so long no longer extends its leases


class Worker:
    """Draws jobs of a store until `stop` is called; `run` returns when everything it held is drawn or handed back.

    painter: see ppvilg.serving.worker.engine. keep_seconds: how long pictures are kept, None for ever. picture_filter:
    (settings, picture) -> reason for which it is not handed out, or None.
    """

    def __init__(
        self,
        store: Store,
        folder: DataFolder,
        painter,
        name: str,
        model: dict,
        slots: int = 8,
        keep_seconds: float | None = None,
        picture_filter: PictureFilter | None = None,
        lease: float = claims.LEASE_SECONDS,
    ) -> None:
        self.store, self.folder, self.painter, self.name, self.model = store, folder, painter, name, model
        self.engine = Engine(painter, slots)
        self.previews = Previews(folder, painter.preview)
        self.keep_seconds, self.picture_filter, self.lease = keep_seconds, picture_filter, lease
        self.seconds_per_step: float | None = None
        self._stopping = threading.Event()
        self._drain_until = 0.0
        self._started = self._moved = time.time()
        self._watched: set[str] = set()
        self._changed: set[str] = set()
        self._reported = self._claimed = self._announced = 0.0

    # ---- life ----

    def stop(self, drain_seconds: float = 0.0) -> None:
        """No new jobs; those begun are drawn to their end for so long, then handed back to the queue."""
        self._drain_until = time.time() + drain_seconds
        self._stopping.set()

    def run(self) -> None:
        """Works until stopped."""
        heart = threading.Thread(target=self._beat, name="heart", daemon=True)
        heart.start()
        try:
            while not self._stopping.is_set() or (self.engine.tasks and time.time() < self._drain_until):
                self.turn()
        finally:
            self._stopping.set()
            claims.release(self.store, self.name)
            leave(self.store, self.name)
            heart.join()

    def turn(self) -> None:
        """Looks for new jobs, then one sweep; waits a moment when there is nothing to draw."""
        self._announce()
        if not self._stopping.is_set():
            self._claim()
        self.engine.admit(self._begin)
        if not self.engine.drawn:
            self._moved = time.time()
            self._stopping.wait(0.05)
            return
        try:
            self._sweep()
        except SharedStepError as error:
            self._sort_out(error)
        finished = self.engine.take_finished()
        while finished:
            task = finished.pop(0)
            others = any(other.job.id == task.job.id for other in [*finished, *self.engine.tasks])
            self._deliver(task, last=not others)

    def _sweep(self) -> None:
        start = time.perf_counter()
        for stepped in self.engine.sweep():
            self._after_step(stepped, time.perf_counter() - start)
            start = time.perf_counter()
            if self._stopping.is_set() and time.time() >= self._drain_until:
                return

    def _sort_out(self, error: SharedStepError) -> None:
        """After a step that failed: one job alone has failed; several are drawn again, each alone."""
        log.error("a step failed", exc_info=error.__cause__)
        ids = {task.job.id for task in error.tasks}
        if len(ids) == 1:
            self._fail(error.tasks[0], "internal", "the service could not draw this job; its log says why")
            return
        claims.set_apart(self.store, self.name, ids)
        for id in ids:
            self._forget(id)

    def _announce(self) -> None:
        now = time.time()
        if now - self._announced > 2:
            state = "draining" if self._stopping.is_set() else "ready"
            announce(self.store, self.name, state, self._started, self.model["hash"], None, self.seconds_per_step)
            self._announced = now

    def _beat(self) -> None:
        """Extends the leases while a step takes long, but not for ever."""
        while not self._stopping.wait(self.lease / 4):
            held = {task.job.id for task in self.engine.tasks}
            if held and time.time() - self._moved < STUCK_SECONDS:
                claims.report(self.store, self.name, held, {}, self.lease)

    # ---- jobs in ----

    def _claim(self) -> None:
        now = time.time()
        idle = not self.engine.tasks
        if not idle and now - self._claimed < CLAIM_SECONDS:
            return
        self._claimed = now
        alone = any(task.job.attempts > 1 for task in self.engine.tasks)
        room, newcomers = self.engine.room, self.engine.room_for_newcomers
        if alone or not (room or newcomers) or not self._work_waits(now):
            return
        for job in claims.claim(self.store, self.name, room or newcomers, idle, not room, self.lease):
            self.engine.add(job, claims.finished_places(self.store, job.id))
            log.info("claimed", extra={"job": job.id, "attempt": job.attempts})

    def _work_waits(self, now: float) -> bool:
        """A look that keeps nobody from writing."""
        with self.store.reading() as connection:
            query = select(jobs.c.number).where(or_(jobs.c.state == "queued", expired_leases(now))).limit(1)
            return connection.execute(query).first() is not None

    def _begin(self, task: Task) -> bool:
        settings = task.job.request
        try:
            inputs = {name: self._input(task, name) for name in ("image", "mask")}
            task.drawing = self.painter.begin(settings, task.seed, **inputs)
        except (ValueError, OSError) as error:
            self._fail(task, "invalid", str(error))
            return False
        except Exception:  # whatever one job does to the pipeline, the others go on
            log.exception("a job could not be begun", extra={"job": task.job.id})
            self._fail(task, "internal", "the service could not begin this job; its log says why")
            return False
        return True

    def _input(self, task: Task, name: str) -> Image.Image | None:
        sha256 = task.job.extra.get("inputs", {}).get(name)
        return None if sha256 is None else read_picture(self.folder.picture(sha256))

    def _fail(self, task: Task, code: str, message: str) -> None:
        claims.end(self.store, self.name, task.job.id, code, message)
        self._forget(task.job.id)

    def _forget(self, job: str) -> None:
        self.engine.drop(job)
        self._changed.discard(job)
        self._watched.discard(job)
        self.previews.forget(job)

    # ---- between steps ----

    def _after_step(self, stepped: list[Task], seconds: float) -> None:
        self._moved = time.time()
        each = seconds / len(stepped)
        self.seconds_per_step = each if self.seconds_per_step is None else 0.95 * self.seconds_per_step + 0.05 * each
        self.previews.drawn_for(seconds)
        for task in stepped:
            self._changed.add(task.job.id)
            if task.job.id in self._watched or task.job.owner.startswith("browser:"):
                self.previews.show(task)
        if self._moved - self._reported >= REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        self._reported = time.time()
        held = {task.job.id: task.job for task in self.engine.tasks}
        progress = {id: self._progress(id) for id in self._changed if id in held}
        self._changed.clear()
        standing = claims.report(self.store, self.name, held, progress, self.lease)
        for id in held:
            if id not in standing:
                self._forget(id)  # somebody else has it, or it has ended
            elif standing[id].cancel:
                claims.end(self.store, self.name, id, None)
                self._forget(id)
        self._watched = {id for id, each in standing.items() if each.watched}

    def _progress(self, id: str) -> dict:
        tasks = [task for task in self.engine.tasks if task.job.id == id]
        begun = [task for task in tasks if task.drawing is not None]
        job = tasks[0].job
        whole = begun[0].drawing.total if begun else job.request["num_inference_steps"]
        done = (job.wanted - len(tasks)) * whole + sum(task.drawing.step for task in begun)
        behind = min((task for task in begun if not task.is_done), key=lambda task: task.drawing.step, default=None)
        return {
            "steps_done": done,
            "steps_total": job.wanted * whole,
            "pictures_drawn": len(begun),
            "pictures_in_flight": len(self.engine.drawn),
            "expert": None if behind is None else behind.drawing.expert,
            "timestep": None if behind is None else behind.drawing.timestep,
            "blocks": begun[0].drawing.blocks if begun else [],
            "previews": self.previews.shown(id),
        }

    # ---- pictures out ----

    def _deliver(self, task: Task, last: bool) -> None:
        job = task.job
        try:
            image = self.painter.finish(task.drawing)
        except FloatingPointError as error:  # of this picture alone
            self._fail(task, "invalid", str(error))
            return
        reason = self.picture_filter(job.request, image) if self.picture_filter else None
        if reason is not None:
            self._fail(task, "filtered", reason)
            return
        packed = io.BytesIO()
        image.save(packed, format="PNG")
        sha256 = self.folder.put(packed.getvalue())
        if last:
            self.previews.wait()
            self._report_last(job.id, task)
        now = time.time()
        row = {
            "id": new_id(),
            "job": job.id,
            "owner": job.owner,
            "index": task.index,
            "sha256": sha256,
            "bytes": packed.tell(),
            "width": image.width,
            "height": image.height,
            "seed": task.seed,
            "settings": {**job.request, "seed": task.seed, "num_images": 1},
            "model": self._made_with(job.request.get("lora") or {}),
            "created": now,
            "expires": None if self.keep_seconds is None else now + self.keep_seconds,
        }
        entered = claims.add_picture(self.store, self.name, row)
        if entered:
            self.folder.put(packed.getvalue())  # again, if the last row of the same content was removed meanwhile
        if last or not entered:
            self._forget(job.id)

    def _made_with(self, adapters: dict) -> dict:
        """The model and the adapters that a picture was drawn with, with their hashes."""
        hashes = self.model.get("lora", {})
        chosen = {"lora": {name: hashes.get(name) for name in adapters}} if adapters else {}
        return {"name": self.model["name"], "hash": self.model["hash"], **chosen}

    def _report_last(self, id: str, task: Task) -> None:
        """The progress of a job that is about to end."""
        total = task.job.wanted * task.drawing.total
        progress = {"steps_done": total, "steps_total": total, "blocks": task.drawing.blocks}
        progress["previews"] = self.previews.shown(id)
        claims.report(self.store, self.name, [id], {id: progress}, self.lease)
