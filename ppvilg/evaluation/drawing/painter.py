"""Draws the pictures of many prompts, each once: in batches of one shape, from seeds that no batch changes."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ppvilg._runtime import prepare_cpu
from ppvilg.config import parse_adapters
from ppvilg.data import in_batches
from ppvilg.files import adapter_file, file_sha256
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler, open_pipeline
from ppvilg.pipelines.folders import identify

from .folder import PictureFolder
from .sampling import Sampling

Key = tuple[int, int]  # number of the prompt, number of the picture
POLL = 2.0  # seconds between looks at what other processes have drawn


def picture_seed(seed: int, prompt: int, image: int) -> int:
    """The seed of one picture, whatever else is drawn with it."""
    return int(np.random.SeedSequence([seed, prompt, image]).generate_state(1)[0])


def scale_name(scale: Any) -> str:
    """A guidance scale as it is written in tables and names of folders: 3.0, or 2.0-3.0 for one per expert."""
    if scale is None:
        return "given"
    return "-".join(f"{float(each):g}" for each in (scale if isinstance(scale, Sequence) else [scale]))


class Painter:
    """A model that draws as a recipe says. The weights are loaded with the first picture.

    Raises:
        FileNotFoundError: no such model, no such adapter.
        ValueError: it cannot draw so: guidance or adapters of other experts, more steps than timesteps, another back
            end, adapters for a bundle.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.identity = sampling, identify(sampling.model, sampling.backend)
        own, given = self.identity, sampling
        self.sha256, self.seed = own.sha256, given.seed
        self.batch_size, self.processes = given.batch_size, given.processes
        self.num_inference_steps = given.num_inference_steps or own.num_inference_steps
        self.guidance_scale = own.guidance_scale if given.guidance_scale is None else given.guidance_scale
        self.eta = own.eta if given.eta is None and given.scheduler is None else given.eta
        self.adapters = parse_adapters(given.lora)
        self.adapter_hashes = [file_sha256(adapter_file(path)) for path, _ in self.adapters]
        self._check()
        self._loaded: list[ErnieViLG2Pipeline] = []  # shared with those of other guidance

    def _check(self) -> None:
        own, scales = self.identity, self.guidance_scale
        if not isinstance(scales, (int, float)) and len(scales) != own.num_experts:
            raise ValueError(f"guidance_scale={scales}: needs one number, or one for each of {own.num_experts} experts")
        if self.adapters and own.backend is not None:
            raise ValueError(f"lora: {own.folder} is a bundle, whose graphs stay as exported: export it with --lora")
        for path, scale in self.adapters:
            if not isinstance(scale, float) and len(scale) != own.num_experts:
                raise ValueError(f"lora: {path} has {len(scale)} scales, needs 1 or one for each of {own.num_experts}")
        if self.num_inference_steps > own.num_train_timesteps:
            steps = f"num_inference_steps={self.num_inference_steps}"
            raise ValueError(f"{steps}: the model has {own.num_train_timesteps} timesteps")

    def check_sizes(self, prompts: Sequence[dict]) -> None:
        """ValueError names the first prompt whose width or height the model cannot draw."""
        multiple = self.identity.size_multiple
        for number, prompt in enumerate(prompts):
            for side in ("width", "height"):
                value = prompt.get(side)
                if value is not None and (not isinstance(value, int) or value < 1 or value % multiple):
                    raise ValueError(f"prompt {number} asks for {side}={value}: must be a multiple of {multiple}")

    @property
    def pipeline(self) -> ErnieViLG2Pipeline:
        """The model, loaded when the first picture needs it."""
        if not self._loaded:
            given = self.sampling
            pipeline = open_pipeline(given.model, given.backend, given.max_resident_experts, adapters=self.adapters)
            if given.scheduler:
                pipeline.scheduler = build_scheduler(given.scheduler, pipeline.scheduler.config)
            pipeline.set_progress_bar_config(disable=True)
            self._loaded.append(pipeline)
        return self._loaded[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": []}  # another process loads the model itself

    def at_guidance(self, guidance_scale: Any) -> Painter:
        """The same model, loaded once, at another guidance scale."""
        other = copy.copy(self)
        other.guidance_scale = guidance_scale
        other._check()
        return other

    def protocol(self) -> dict:
        """What the pictures depend on, besides the prompts."""
        protocol = {
            "source": "model",
            "suite_seed": self.seed,
            "model_sha256": self.sha256,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.sampling.scheduler,
        }
        if self.eta:  # folders from before there was one stay good
            protocol["eta"] = self.eta
        if self.adapters:
            scales = [scale for _, scale in self.adapters]
            protocol["lora"] = [
                {"sha256": sha256, "scale": scale} for sha256, scale in zip(self.adapter_hashes, scales)
            ]
        if self.identity.backend is not None:
            protocol["backend"] = self.identity.backend
        return protocol

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
        self.check_sizes(prompts)
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

    def shape(key: Key) -> tuple:
        line = folder.metadata[key[0]]
        return line.get("width"), line.get("height")

    return in_batches(keys, shape, batch_size)


def _draw_batch(folder: PictureFolder, batch: Sequence[Key], make: Callable, protocol: dict, seed: int) -> None:
    for key, picture in zip(batch, make(batch)):
        folder.write(*key, picture, {"seed": picture_seed(seed, *key), **protocol})


def _progress(folder: PictureFolder, description: str) -> tqdm:
    total = len(folder.metadata) * folder.images_per_prompt
    progress = tqdm(total=total, initial=total - len(folder.missing()), desc=description, unit="picture")
    progress.set_postfix_str(str(folder.folder))
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
