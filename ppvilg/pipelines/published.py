"""Components from published weights: an ERNIE text encoder, and a UNet and VAE in diffusers' format."""

from __future__ import annotations

import os

from paddlenlp.transformers import ErnieModel, ErnieTokenizer
from ppdiffusers import AutoencoderKL, DDIMScheduler

from ppvilg.files import refuse_pickles
from ppvilg.knowledge import add_marks
from ppvilg.models import MoDEUNet2DConditionModel

# The noise schedule of Stable Diffusion 1, for UNet folders that come without a scheduler.
STABLE_DIFFUSION_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def published_components(
    ernie: str | os.PathLike,
    unet: str | os.PathLike,
    vae: str | os.PathLike,
    scheduler: str | os.PathLike | None,
    from_diffusers: bool,
    num_experts: int,
) -> dict:
    """Components of an ErnieViLG2Pipeline: marks added to ERNIE, the UNet copied into every expert."""
    for name, folder in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        if folder is not None and not os.path.isdir(folder):
            raise FileNotFoundError(f"{name}: {os.fspath(folder)!r} is not a folder")
        if folder is not None:
            refuse_pickles(folder)
    if scheduler is None:
        noise_schedule = DDIMScheduler(**STABLE_DIFFUSION_SCHEDULE)
    else:
        noise_schedule = DDIMScheduler.from_pretrained(os.fspath(scheduler))
    tokenizer = ErnieTokenizer.from_pretrained(os.fspath(ernie))
    text_encoder = ErnieModel.from_pretrained(os.fspath(ernie))
    text_encoder.eval()
    add_marks(tokenizer, text_encoder)
    return {
        "vae": AutoencoderKL.from_pretrained(os.fspath(vae), from_diffusers=from_diffusers),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": MoDEUNet2DConditionModel.from_stock(
            unet,
            from_diffusers=from_diffusers,
            num_experts=num_experts,
            num_train_timesteps=noise_schedule.config.num_train_timesteps,
        ),
        "scheduler": noise_schedule,
    }
