"""What a stage's components become: a pipeline folder, and pictures of the recipe's prompts."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import SampleConfig
from ppvilg.engine.parallel import distributed
from ppvilg.models import MoDEUNet2DConditionModel, block_origins
from ppvilg.pipelines import ErnieViLG2Pipeline, make_grid


def save_pipeline(components: dict, folder: Path) -> None:
    """Write the components as a pipeline folder."""
    ErnieViLG2Pipeline(**components).save_pretrained(folder)


def draw_prompts(components: dict, settings: SampleConfig) -> np.ndarray:
    """Pictures of the fixed prompts on one sheet, uint8 (H, W, 3)."""
    pipeline = ErnieViLG2Pipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(list(settings.prompts), num_inference_steps=settings.num_inference_steps,
                      guidance_scale=settings.guidance_scale, generator=settings.seed).images
    return np.asarray(make_grid(images, columns=6))


class _SharedExpert(paddle.nn.Layer):
    """An expert of rank `source`, whose output every rank gets; all ranks call it together."""

    def __init__(self, expert: paddle.nn.Layer, source: int):
        super().__init__()
        self.expert, self.source = expert, source

    def forward(self, sample: paddle.Tensor, *arguments, **options) -> tuple[paddle.Tensor]:
        """(N, C, h, w) alone in a tuple."""
        mine = distributed.rank() == self.source
        output = self.expert(sample, *arguments, **options)[0] if mine else paddle.zeros_like(sample)
        return (distributed.from_rank(output.contiguous(), self.source),)


def whole_mixture(unet: MoDEUNet2DConditionModel, base: Path | None, holders: dict[int, int]
                  ) -> MoDEUNet2DConditionModel:
    """A denoiser for all timesteps, of experts that are here or on other ranks, or else of the pipeline folder `base`.

    holders: {expert: the rank that has it}, of those that are trained.
    """
    everywhere = distributed.layout().groups > 1
    if len(unet.loaded_experts) == unet.num_experts and not everywhere:
        return unet
    whole = MoDEUNet2DConditionModel(unet.num_experts, list(unet.boundaries), unet.num_train_timesteps,
                                     dict(unet.config.unet), experts=[])
    source = MoDEUNet2DConditionModel.from_pretrained(str(base / "unet"), experts=[])
    origins = block_origins(unet.boundaries, source.boundaries)
    for index in range(unet.num_experts):
        if index in holders:
            expert = unet.experts[index]
            whole.experts[index] = _SharedExpert(expert, holders[index]) if everywhere else expert
            continue
        if origins[index] not in source.loaded_experts:
            source.load_expert(base / "unet", origins[index])
        whole.experts[index] = source.experts[origins[index]]
    whole.eval()
    return whole
