"""The pipeline as the engine needs it: one drawing a picture, steps shared by drawings that may share them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from PIL import Image, ImageOps

from ppvilg.knowledge import apply_style
from ppvilg.pipelines import build_scheduler

from ..model.words import token_weights


@dataclass(eq=False)
class PictureDrawing:
    """A picture between prompt and decoder, with a pipeline whose scheduler is its own."""

    painter: object
    drawing: object
    clean: paddle.Tensor | None = None  # (1, C, h, w), the clean latents that the last step predicted

    @property
    def step(self) -> int:
        return self.drawing.step

    @property
    def total(self) -> int:
        return len(self.drawing.canvas.timesteps)

    @property
    def timestep(self) -> float:
        """The timestep of the next step; of the last one when all are done."""
        return float(self.drawing.canvas.timesteps[min(self.step, self.total - 1)])

    @property
    def expert(self) -> int:
        return int(np.searchsorted(self.painter.unet.boundaries, self.timestep, side="right")) - 1

    @property
    def scale(self) -> float:
        return self.drawing.scales[self.expert]

    @property
    def shares_with(self) -> tuple:
        return self.expert, tuple(self.drawing.latents.shape[1:]), self.scale == 1


class PipelinePainter:
    """Draws single pictures with a pipeline; a picture does not depend on those that it shares steps with."""

    def __init__(self, pipeline, streams_experts: bool = False) -> None:
        self.pipeline = pipeline
        self.streams_experts = streams_experts
        self._own_sampler = type(pipeline.scheduler)
        self.text_knowledge = pipeline.text_knowledge

    @paddle.no_grad()
    def begin(self, settings: dict, seed: int, image: Image.Image | None, mask: Image.Image | None) -> PictureDrawing:
        """A picture of these settings (ppvilg.serving.requests) before its first step. ValueError: they do not fit."""
        painter = copy.copy(self.pipeline)
        painter.scheduler = build_scheduler(settings["sampler"], self.pipeline.scheduler.config)
        if isinstance(painter.scheduler, self._own_sampler):
            painter.scheduler = copy.deepcopy(self.pipeline.scheduler)
        size = settings["width"], settings["height"]
        drawing = painter._begin(
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
            weights = token_weights(self.text_knowledge, text, settings["word_weights"])
            drawing.positive = drawing.positive._replace(key_token_weights=paddle.to_tensor(weights[None]))
        return PictureDrawing(painter, drawing)

    @paddle.no_grad()
    def step(self, drawings: Sequence[PictureDrawing]) -> None:
        """Takes drawings of one group (`shares_with`) one step further, in one call of their expert."""
        predictions = self._predict(drawings)
        for each, prediction in zip(drawings, predictions):
            painter, drawing = each.painter, each.drawing
            i = drawing.step
            timestep, latents = drawing.canvas.timesteps[i], drawing.latents
            with drawing.noise.paddle_seeded():
                extra = painter._step_arguments(latents, drawing.noise, drawing.eta)
                each.clean = _clean(painter.scheduler, prediction, timestep, latents)
                latents = painter.scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
                canvas = drawing.canvas
                if canvas.mask is not None:
                    known = canvas.known
                    if i + 1 < len(canvas.timesteps):
                        known = painter.scheduler.add_noise(known, canvas.noise, canvas.timesteps[i + 1].reshape([1]))
                    latents = paddle.where(canvas.latent_mask > 0, latents, known.cast(latents.dtype))
            drawing.latents, drawing.step = latents, i + 1

    def _predict(self, drawings: Sequence[PictureDrawing]) -> list[paddle.Tensor]:
        unet = self.pipeline.unet
        samples, moments = [], []
        for each in drawings:
            timestep = each.drawing.canvas.timesteps[each.step]
            samples.append(each.painter.scheduler.scale_model_input(each.drawing.latents, timestep).cast(unet.dtype))
            moments.append(float(timestep))
        guided = drawings[0].scale != 1
        # One row alone takes other kernels than several and rounds differently, so there are always two.
        double = not guided and len(drawings) == 1
        sides = [[each.drawing.negative for each in drawings]] if guided or double else []
        sides.append([each.drawing.positive for each in drawings])
        conditioning = [paddle.concat([each[part] for side in sides for each in side]) for part in (0, 1)]
        timesteps = paddle.to_tensor(np.array(moments * len(sides), dtype=np.float32))
        output = unet(paddle.concat(samples * len(sides)), timesteps, *conditioning).sample
        parts = output.split(len(sides) * len(drawings))
        count = len(drawings)
        if not guided:
            return [part.cast(each.drawing.latents.dtype) for part, each in zip(parts[-count:], drawings)]
        predictions = []
        for without, towards, each in zip(parts[:count], parts[count:], drawings):
            dtype = each.drawing.latents.dtype
            without, towards = without.cast(dtype), towards.cast(dtype)
            predictions.append(without + each.scale * (towards - without))
        return predictions

    @paddle.no_grad()
    def finish(self, drawing: PictureDrawing) -> Image.Image:
        """The picture of a drawing after its last step."""
        return drawing.painter._finish(drawing.drawing, "pil")[0]

    @paddle.no_grad()
    def preview(self, drawing: PictureDrawing) -> Image.Image | None:
        """The picture that the last step predicted; None before the first."""
        if drawing.clean is None:
            return None
        pixels = self.pipeline.decode_latents(drawing.clean.cast("float32"))[0].numpy()  # (3, H, W)
        return Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def _clean(scheduler, prediction, timestep, latents) -> paddle.Tensor:
    """The clean latents that a prediction means, in float32."""
    config = scheduler.config
    if hasattr(scheduler, "sigmas") and "Euler" in type(scheduler).__name__:
        position = int(np.argmin(np.abs(scheduler.timesteps.numpy() - float(timestep))))
        sigma = float(scheduler.sigmas[position])
        alpha = 1 / (1 + sigma**2)
        latents = latents * alpha**0.5
    else:
        alpha = float(scheduler.alphas_cumprod[int(timestep)])
    if config.prediction_type == "v_prediction":
        return latents * alpha**0.5 - prediction * (1 - alpha) ** 0.5
    return (latents - prediction * (1 - alpha) ** 0.5) / alpha**0.5
