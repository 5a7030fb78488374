"""Draws the pictures of many prompts, each once: in batches of one shape, from seeds that no batch changes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler, resolve

from .layout import PictureFolder
from .protocol import folder_sha256

Key = tuple[int, int]  # number of the prompt, number of the picture


def picture_seed(seed: int, prompt: int, image: int) -> int:
    """The seed of one picture, whatever else is drawn with it."""
    return int(np.random.SeedSequence([seed, prompt, image]).generate_state(1)[0])


class Painter:
    """A model and how it draws.

    model: pipeline folder or zoo name. num_inference_steps, guidance_scale (one number or one per expert), scheduler:
    None takes the model's own. FileNotFoundError: no such model. The weights are loaded with the first picture.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        num_inference_steps: int | None = None,
        guidance_scale: Any = None,
        scheduler: str | None = None,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        self.folder = resolve(model)
        self.sha256 = folder_sha256(self.folder)
        config = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        steps, scale = config.get("default_num_inference_steps", 50), config.get("default_guidance_scale", 7.5)
        self.num_inference_steps = steps if num_inference_steps is None else num_inference_steps
        self.guidance_scale = scale if guidance_scale is None else guidance_scale
        self.scheduler, self.seed, self.batch_size = scheduler, seed, batch_size
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

    def at_guidance(self, guidance_scale: Any) -> Painter:
        """The same model, loaded once, at another guidance scale."""
        other = copy.copy(self)
        other.guidance_scale = guidance_scale
        return other

    def protocol(self) -> dict:
        """What the pictures depend on, besides the prompts."""
        names = ("num_inference_steps", "guidance_scale", "scheduler")
        head = {"source": "model", "suite_seed": self.seed, "model_sha256": self.sha256}
        return {**head, **{name: getattr(self, name) for name in names}}

    def pictures(self, prompts: Sequence[dict], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture per prompt; all prompts ask for the same width and height (None: the model's own)."""
        return self.pipeline(
            [prompt["prompt"] for prompt in prompts],
            width=prompts[0].get("width"),
            height=prompts[0].get("height"),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
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

        def make(keys: Sequence[Key]) -> list[Image.Image]:
            seeds = [picture_seed(self.seed, *key) for key in keys]
            return self.pictures([prompts[prompt] for prompt, _ in keys], seeds)

        draw_missing(pictures, make, self.protocol(), self.seed, self.batch_size, description)
        return pictures


def draw_missing(
    folder: PictureFolder,
    make: Callable[[Sequence[Key]], list[Image.Image]],
    protocol: dict,
    seed: int,
    batch_size: int,
    description: str,
) -> None:
    """Add the pictures that a folder lacks; `make` draws a batch of one shape. A bar shows rate, time left, place."""
    shapes: dict[tuple, list[Key]] = {}
    missing = folder.missing()
    for key in missing:
        line = folder.metadata[key[0]]
        shapes.setdefault((line.get("width"), line.get("height")), []).append(key)
    total = len(folder.metadata) * folder.images_per_prompt
    with tqdm(total=total, initial=total - len(missing), desc=description, unit="picture") as progress:
        progress.set_postfix_str(str(Path(folder.folder)))
        for keys in shapes.values():
            for start in range(0, len(keys), batch_size):
                batch = keys[start : start + batch_size]
                for key, picture in zip(batch, make(batch)):
                    folder.write(*key, picture, {"seed": picture_seed(seed, *key), **protocol})
                progress.update(len(batch))
