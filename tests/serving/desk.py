"""A store, a worker whose turns the test decides on, and who hands in jobs."""

from __future__ import annotations

from PIL import Image

from ppvilg.serving.model.info import model_hash, read_model
from ppvilg.serving.model.requests import Limits, resolve
from ppvilg.serving.store import QueueLimits, Store, gallery, jobs, sqlite_url
from ppvilg.serving.store.folder import DataFolder
from ppvilg.serving.worker import Worker


class Desk:
    """A store, a worker whose turns the test decides on, and who hands in jobs."""

    def __init__(self, model, painter, path, url=None, adapters=None, **more):
        self.info = read_model(str(model), adapters)
        self.folder = DataFolder(path)
        self.store = Store(url or sqlite_url(self.folder.database))
        about = {"name": self.info.name, "hash": model_hash(model)}
        self.worker = Worker(self.store, self.folder, painter, "w", about, **{"slots": 4, **more})

    def submit(self, owner="a", **asked):
        settings, _ = resolve({"prompt": "三只企鹅", "seed": 1, **asked}, self.info, Limits())
        with self.store.writing() as connection:
            return jobs.submit(connection, owner, "v1", settings, QueueLimits())

    def state(self, job):
        return jobs.find(self.store, None, job.id)

    def turn(self):
        self.worker._claimed = 0.0  # look at the queue in every turn
        self.worker.turn()

    def finish(self, *handed_in, turns=2000):
        for _ in range(turns):
            if all(self.state(job).is_final for job in handed_in):
                return
            self.turn()
        raise AssertionError([self.state(job) for job in handed_in])

    def hashes(self, job):
        return [picture.sha256 for picture in gallery.of_jobs(self.store, [job.id])[job.id]]

    def picture(self, job) -> Image.Image:
        """The first picture of a job."""
        return Image.open(self.folder.picture(self.hashes(job)[0])).convert("RGB")
