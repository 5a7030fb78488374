"""Short names for the ppdiffusers schedulers that the pipeline is tested with."""

from __future__ import annotations

import inspect

import ppdiffusers
from ppdiffusers import UniPCMultistepScheduler

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
# Keys of some schedulers' configs that mean the same in all of them, but default to pixel-space values.
_LATENT_SPACE = {"clip_sample": False, "thresholding": False}


def build_scheduler(name: str, config: dict):
    """The scheduler called `name` in SCHEDULERS, with the noise schedule and prediction type of another's config."""
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}, choose one of {', '.join(SCHEDULERS)}")
    settings = {**_LATENT_SPACE, **{key: value for key, value in config.items() if not key.startswith("_")}}
    if name == "pndm":
        settings["skip_prk_steps"] = True  # Runge-Kutta warm-up steps are meant for pixel space
    cls = getattr(ppdiffusers, SCHEDULERS[name])
    known = inspect.signature(cls.__init__).parameters
    return cls.from_config({key: value for key, value in settings.items() if key in known})


def start_scheduler(scheduler, num_inference_steps: int) -> str:
    """Sets the timesteps; returns the dtype that the latents must have in `scheduler.step`."""
    scheduler.set_timesteps(num_inference_steps)
    if isinstance(scheduler, UniPCMultistepScheduler):
        # It mixes tensors and numbers in one list, which Paddle 3 makes float64, and then solves with float32.
        scheduler.sigmas = scheduler.sigmas.cast("float64")
        return "float64"
    return "float32"
