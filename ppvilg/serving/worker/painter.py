"""The pipeline as the engine needs it: one drawing a picture, each with a sampler of its own."""

from __future__ import annotations

import bisect
import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from PIL import Image, ImageOps

from ppvilg.knowledge import apply_style
from ppvilg.pipelines import build_scheduler
from ppvilg.pipelines.denoising import without_gradients

from ..model.adapters import OfferedAdapter
from ..model.words import token_weights


@dataclass(eq=False)
class PictureDrawing:
    """A picture between prompt and decoder: a drawing of the pipeline, of one picture."""

    drawing: object
    adapters: tuple = ()  # (name, scale) of those that it is drawn with
    block: int = -1

    @property
    def step(self) -> int:
        return self.drawing.steps_done

    @property
    def total(self) -> int:
        return len(self.drawing.timesteps)

    @property
    def done(self) -> bool:
        """All steps are taken, or its numbers are no longer finite."""
        return self.drawing.done

    @property
    def timestep(self) -> float:
        """The timestep of the next step; of the last one when there is none."""
        return float(self.drawing.timesteps[min(self.step, self.total - 1)])

    @property
    def expert(self) -> int:
        """The expert of the next step; of the last one when there is none."""
        return self.block if self.done else self.drawing.expert

    @property
    def blocks(self) -> list[dict]:
        """The experts that draw it, in their order: first_step and number of steps, timesteps `from` up to `to`."""
        boundaries = self.drawing.boundaries
        experts = [bisect.bisect_right(boundaries, float(timestep)) - 1 for timestep in self.drawing.timesteps]
        blocks, first_step = [], 0
        for expert, steps in ((expert, len(list(group))) for expert, group in itertools.groupby(experts)):
            low, high = boundaries[expert : expert + 2]
            blocks.append({"expert": expert, "first_step": first_step, "steps": steps, "from": low, "to": high})
            first_step += steps
        return blocks

    @property
    def shares_with(self) -> tuple:
        return self.adapters, self.expert, tuple(self.drawing.latents.shape[2:])


class PipelinePainter:
    """Draws single pictures with a pipeline; a picture does not depend on those that it shares steps with.

    adapters: those that settings may choose, by name, loaded here and on only for the drawings that chose them.
    FileNotFoundError, ValueError: one of them does not fit the model.
    """

    def __init__(
        self, pipeline, streams_experts: bool = False, adapters: Mapping[str, OfferedAdapter] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.streams_experts = streams_experts
        self._own_sampler = type(pipeline.scheduler)
        for name, adapter in (adapters or {}).items():
            pipeline.load_lora_weights(adapter.file, name, scale=0.0)
        if adapters:
            pipeline.disable_lora()
        self.adapters = ()  # that are on

    @without_gradients
    def begin(self, settings: dict, seed: int, image: Image.Image | None, mask: Image.Image | None) -> PictureDrawing:
        """A picture of these settings (ppvilg.serving.model.requests) before its first step.

        ValueError: they do not fit the model.
        """
        adapters = _as_key(settings.get("lora") or {})  # none in jobs of a service before there was the setting
        self._turn_on(adapters)
        scheduler = build_scheduler(settings["sampler"], self.pipeline.scheduler.config)
        size = settings["width"], settings["height"]
        drawing = self._with_sampler(scheduler).begin(
            settings["prompt"],
            negative_prompt=settings["negative_prompt"] or None,
            style=settings["style"],
            height=settings["height"],
            width=settings["width"],
            num_inference_steps=settings["num_inference_steps"],
            guidance_scale=settings["guidance_scale"],
            generator=[seed],
            image=None if image is None else ImageOps.fit(image, size, Image.Resampling.LANCZOS),
            mask_image=None if mask is None else ImageOps.fit(mask, size, Image.Resampling.LANCZOS),
            strength=settings["strength"],
            eta=settings["eta"] if settings["sampler"] == "ddim" else None,
        )
        if settings["word_weights"]:
            text = apply_style(settings["prompt"], settings["style"])
            weights = token_weights(self.pipeline.text_knowledge, text, settings["word_weights"])
            drawing.positive = drawing.positive._replace(key_token_weights=paddle.to_tensor(weights[None]))
        return PictureDrawing(drawing, adapters)

    def step(self, drawings: Sequence[PictureDrawing]) -> None:
        """Takes drawings of one group (`shares_with`) one step further, in one call of their expert."""
        self._turn_on(drawings[0].adapters)
        for each in drawings:
            each.block = each.expert
        self.pipeline.step([each.drawing for each in drawings])

    def finish(self, drawing: PictureDrawing) -> Image.Image:
        """The picture of a drawing after its last step. FloatingPointError: its numbers are not finite."""
        return self.pipeline.finish(drawing.drawing).images[0]

    def preview(self, drawing: PictureDrawing) -> Image.Image | None:
        """The picture that the last step predicted; None before the first."""
        pictures = self.pipeline.preview(drawing.drawing)
        return None if pictures is None else pictures[0]

    def _turn_on(self, adapters: tuple) -> None:
        """These adapters are on, no others; the pipeline is drawn with by one thread alone."""
        if adapters != self.adapters:
            names, scales = [name for name, _ in adapters], [scale for _, scale in adapters]
            self.pipeline.set_adapters(names, scales)
            self.adapters = adapters

    def _with_sampler(self, scheduler):
        """The same components with another scheduler; the model's own keeps all of its settings."""
        if isinstance(scheduler, self._own_sampler):
            return self.pipeline
        other = copy.copy(self.pipeline)
        other.scheduler = scheduler
        return other


def _as_key(settings: Mapping) -> tuple:
    """The setting `lora` as what tells drawings of other adapters."""
    scales = {name: tuple(scale) if isinstance(scale, list) else scale for name, scale in settings.items()}
    return tuple(sorted(scales.items(), key=lambda each: each[0]))
