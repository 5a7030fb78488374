"""Draws the pictures of many prompts, each once: in batches of one shape, from seeds that no batch changes."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ppvilg._runtime import prepare_cpu
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler, resolve

from ..reporting.protocol import folder_sha256
from .folder import PictureFolder, read_json
from .sampling import Sampling

Key = tuple[int, int]  # number of the prompt, number of the picture
POLL = 2.0  # seconds between looks at what other processes have drawn


def picture_seed(seed: int, prompt: int, image: int) -> int:
    """The seed of one picture, whatever else is drawn with it."""
    return int(np.random.SeedSequence([seed, prompt, image]).generate_state(1)[0])


class Painter:
    """A model that draws as a recipe says. The weights are loaded with the first picture.

    FileNotFoundError: no such model.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.folder = resolve(sampling.model)
        self.sha256 = folder_sha256(self.folder)
        config = read_json(self.folder / "model_index.json")
        steps, scale = config.get("default_num_inference_steps", 50), config.get("default_guidance_scale", 7.5)
        self.num_inference_steps = sampling.num_inference_steps or steps
        self.guidance_scale = scale if sampling.guidance_scale is None else sampling.guidance_scale
        own_eta = sampling.eta is None and sampling.scheduler is None
        self.eta = config.get("default_eta", 0.0) if own_eta else sampling.eta
        self.scheduler, self.seed = sampling.scheduler, sampling.seed
        self.batch_size, self.processes = sampling.batch_size, sampling.processes
        self._loaded: list[ErnieViLG2Pipeline] = []  # shared with those of other guidance

    @property
    def pipeline(self) -> ErnieViLG2Pipeline:
        """The model, loaded when the first picture needs it."""
        if not self._loaded:
            pipeline = ErnieViLG2Pipeline.from_pretrained(self.folder)
            if self.scheduler:
                pipeline.scheduler = build_scheduler(self.scheduler, pipeline.scheduler.config)
            pipeline.set_progress_bar_config(disable=True)
            self._loaded.append(pipeline)
        return self._loaded[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": []}  # another process loads the model itself

    def at_guidance(self, guidance_scale: Any) -> Painter:
        """The same model, loaded once, at another guidance scale."""
        other = copy.copy(self)
        other.guidance_scale = guidance_scale
        return other

    def protocol(self) -> dict:
        """What the pictures depend on, besides the prompts."""
        names = ("num_inference_steps", "guidance_scale", "scheduler")
        head = {"source": "model", "suite_seed": self.seed, "model_sha256": self.sha256}
        eta = {"eta": self.eta} if self.eta else {}  # folders from before there was one stay good
        return {**head, **{name: getattr(self, name) for name in names}, **eta}

    def pictures(self, prompts: Sequence[dict], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture per prompt; all prompts ask for the same width and height (None: the model's own)."""
        return self.pipeline(
            [prompt["prompt"] for prompt in prompts],
            width=prompts[0].get("width"),
            height=prompts[0].get("height"),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            generator=list(seeds),
        ).images

    def draw(
        self, folder: str | os.PathLike, prompts: Sequence[dict], images_per_prompt: int = 1, description: str = "model"
    ) -> PictureFolder:
        """Every picture of `prompts` in GenEval's layout below `folder`, those that are there left as they are.

        A prompt is {"prompt", "width", "height", ...}; the rest goes into metadata.jsonl as it is. ValueError when the
        folder holds pictures of other prompts or another protocol.
        """
        pictures = PictureFolder(folder, prompts, images_per_prompt, self.protocol())

        if self.processes > 1:
            _draw_in_processes(self, pictures, prompts, description)
        draw_missing(pictures, self._maker(prompts), self.protocol(), self.seed, self.batch_size, description)
        return pictures

    def _maker(self, prompts: Sequence[dict]) -> Callable[[Sequence[Key]], list[Image.Image]]:
        def make(keys: Sequence[Key]) -> list[Image.Image]:
            seeds = [picture_seed(self.seed, *key) for key in keys]
            return self.pictures([prompts[prompt] for prompt, _ in keys], seeds)

        return make


def draw_missing(
    folder: PictureFolder,
    make: Callable[[Sequence[Key]], list[Image.Image]],
    protocol: dict,
    seed: int,
    batch_size: int,
    description: str,
) -> None:
    """Add the pictures that a folder lacks; `make` draws a batch of one shape. A bar shows rate, time left, place."""
    missing = folder.missing()
    with _progress(folder, description) as progress:
        for batch in batches(folder, missing, batch_size):
            _draw_batch(folder, batch, make, protocol, seed)
            progress.update(len(batch))


def batches(folder: PictureFolder, keys: Sequence[Key], batch_size: int) -> Iterator[list[Key]]:
    """Pictures that can be drawn at once: of one shape, at most `batch_size`."""
    shapes: dict[tuple, list[Key]] = {}
    for key in keys:
        line = folder.metadata[key[0]]
        shapes.setdefault((line.get("width"), line.get("height")), []).append(key)
    for alike in shapes.values():
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _draw_batch(folder: PictureFolder, batch: Sequence[Key], make: Callable, protocol: dict, seed: int) -> None:
    for key, picture in zip(batch, make(batch)):
        folder.write(*key, picture, {"seed": picture_seed(seed, *key), **protocol})


def _progress(folder: PictureFolder, description: str) -> tqdm:
    total = len(folder.metadata) * folder.images_per_prompt
    progress = tqdm(total=total, initial=total - len(folder.missing()), desc=description, unit="picture")
    progress.set_postfix_str(str(Path(folder.folder)))
    return progress


def _draw_in_processes(painter: Painter, folder: PictureFolder, prompts: Sequence[dict], description: str) -> None:
    """Every missing picture is given to one process; what one of them could not draw is left for the caller."""
    jobs = list(batches(folder, folder.missing(), painter.batch_size))
    context = multiprocessing.get_context("spawn")
    parts = [jobs[i :: painter.processes] for i in range(min(painter.processes, len(jobs)))]
    workers = [
        context.Process(target=_work, args=(painter, folder, prompts, part, os.getpid()), daemon=True) for part in parts
    ]
    for worker in workers:
        worker.start()
    with _progress(folder, description) as progress:
        while any(worker.is_alive() for worker in workers):
            multiprocessing.connection.wait([worker.sentinel for worker in workers if worker.is_alive()], POLL)
            progress.update(progress.total - len(folder.missing()) - progress.n)


def _work(painter: Painter, folder: PictureFolder, prompts: Sequence[dict], jobs: Sequence, parent: int) -> None:
    """Draw batches until done, or until whoever started this is gone."""
    prepare_cpu()
    make = painter._maker(prompts)
    with contextlib.suppress(OSError, ValueError):  # whoever started this meets it again, and can say so once
        for batch in jobs:
            if os.getppid() != parent:
                return
            _draw_batch(folder, batch, make, painter.protocol(), painter.seed)
