"""Previews of pictures that somebody watches, within a small share of the time that drawing takes."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from ..store.folder import DataFolder

LARGEST_SIDE = 512
SHARE = 0.04  # of the time of drawing; the last preview of each expert's block is made in any case
SAVED_SECONDS = 5.0  # of drawing that nobody watched, whose share may be made up for later


class Previews:
    """Makes previews in the drawing thread as far as the share allows, packs and writes them in another."""

    def __init__(self, folder: DataFolder, preview) -> None:
        self._folder = folder
        self._preview = preview  # drawing -> picture or None
        self._writer = ThreadPoolExecutor(1, "previews")
        self._credit = 0.0  # seconds that previews may take
        self._shown: dict[str, dict[tuple[int, int], dict]] = {}  # job -> (picture, expert) -> entry

    def drawn_for(self, seconds: float) -> None:
        """Counts time spent on drawing."""
        self._credit = min(self._credit + SHARE * seconds, SHARE * SAVED_SECONDS)

    def show(self, task) -> None:
        """Makes the preview of a picture after a step, if there is time or its expert's block has ended."""
        drawing = task.drawing
        ended = task.is_done or drawing.expert != task.block
        if not ended and self._credit < 0:
            return
        start = time.perf_counter()
        picture = self._preview(drawing)
        self._credit -= time.perf_counter() - start
        if picture is None:
            return
        job = task.job.id
        entry = {
            "picture": task.index,
            "step": drawing.step,
            "steps": drawing.total,
            "expert": task.block,
            "end_of_block": ended,
        }
        place = task.index, task.block
        before = self._shown.setdefault(job, {}).get(place)
        self._shown[job][place] = entry
        self._writer.submit(self._write, job, task.index, drawing.step, picture)
        if before is not None:
            self._writer.submit(self._folder.remove_preview, job, task.index, before["step"])

    def shown(self, job: str) -> list[dict]:
        """What there is of a job: of each picture the last one of each expert, in the order of the steps."""
        entries = self._shown.get(job, {}).values()
        return sorted(entries, key=lambda entry: (entry["picture"], entry["step"]))

    def forget(self, job: str) -> None:
        """Stops keeping account of a job; its files stay."""
        self._shown.pop(job, None)

    def wait(self) -> None:
        """Returns when everything made so far is written."""
        self._writer.submit(lambda: None).result()

    def _write(self, job: str, picture: int, step: int, image: Image.Image) -> None:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        packed = io.BytesIO()
        image.save(packed, format="WEBP", quality=80, method=0)
        self._folder.put_preview(job, picture, step, packed.getvalue())
