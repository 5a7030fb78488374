"""What a stage's components become: a pipeline folder, and pictures of the recipe's prompts."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from ppvilg.config import SampleConfig
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
