"""The schedulers that the pipeline is tested with, by short names, and everything that is odd about them."""

from __future__ import annotations

import copy
import inspect
import types

import numpy as np
import paddle
import ppdiffusers
from ppdiffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler

from ppvilg.inference import SCHEDULER_CLASSES

from .noise import NoiseSource

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


def check_scheduler(scheduler) -> None:
    """ValueError for a scheduler that nobody tried with this pipeline: many draw something else without a word."""
    name = type(scheduler).__name__
    if name not in SCHEDULER_CLASSES or not isinstance(scheduler, getattr(ppdiffusers, name)):
        raise ValueError(
            f"{name} is not one of the schedulers that this pipeline is tested with ({', '.join(SCHEDULERS)}): "
            "use ppvilg.pipelines.build_scheduler(name, pipeline.scheduler.config)"
        )


def takes_eta(scheduler) -> bool:
    """Whether the scheduler's step takes DDIM's eta."""
    return "eta" in inspect.signature(type(scheduler).step).parameters


def has_runge_kutta_steps(scheduler) -> bool:
    """Whether it begins with Runge-Kutta steps, which must run from pure noise."""
    return isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps


class Solver:
    """A scheduler of one drawing's own: its timesteps, its steps, and where their noise comes from.

    A stock scheduler remembers the steps of one trajectory and draws from Paddle's process-wide generator, so two
    drawings must never share one. `dtype` is the one that latents must have between steps.

    Raises:
        ValueError: the scheduler is not one of SCHEDULERS, or its settings give no usable timesteps for `steps`.
    """

    def __init__(self, scheduler, steps: int, eta: float, noise: NoiseSource) -> None:
        check_scheduler(scheduler)
        self.scheduler = copy.deepcopy(scheduler)
        self.steps, self.eta, self.noise = steps, eta, noise
        self.dtype = "float32"
        try:
            self.scheduler.set_timesteps(steps)
        except Exception as error:  # whatever the arithmetic of its settings leads to
            raise ValueError(f"{self.name} has no timesteps for {steps} steps ({error}): {self._settings}") from error
        self._check_timesteps()
        if isinstance(scheduler, UniPCMultistepScheduler):
            # It mixes tensors and numbers in one list, which Paddle 3 makes float64, and then solves with float32.
            self.scheduler.sigmas = self.scheduler.sigmas.cast("float64")
            self.dtype = "float64"
        if takes_eta(scheduler):
            _keep_roots_real(self.scheduler, eta)
        else:
            _draw_from(self.scheduler, self._step_noise)

    @property
    def name(self) -> str:
        return type(self.scheduler).__name__

    @property
    def timesteps(self) -> list[paddle.Tensor]:
        """All of them, from pure noise; numbers of dimension 0."""
        return list(self.scheduler.timesteps)

    def last_timesteps(self, strength: float) -> list[paddle.Tensor]:
        """The last `strength` share of the timesteps, at least one unless strength is 0."""
        timesteps = self.timesteps
        plms = isinstance(self.scheduler, PNDMScheduler)
        if plms:
            del timesteps[1:2]  # the second one is there twice; see below
        kept = max(round(strength * len(timesteps)), 1) if strength > 0 else 0
        timesteps = timesteps[len(timesteps) - kept :]
        if plms:
            timesteps[1:1] = timesteps[1:2]  # the multistep warm-up takes the second timestep twice
        return timesteps

    def starting_noise(self, noise: paddle.Tensor) -> paddle.Tensor:
        """Standard normal noise as latents of pure noise."""
        return noise * self.scheduler.init_noise_sigma

    def add_noise(self, latents: paddle.Tensor, noise: paddle.Tensor, timestep: paddle.Tensor) -> paddle.Tensor:
        """Clean latents (N, C, h, w) as noisy as those at a timestep."""
        return self.scheduler.add_noise(latents, noise, timestep.reshape([1]))

    def model_input(self, latents: paddle.Tensor, timestep: paddle.Tensor) -> paddle.Tensor:
        """Latents as the denoiser takes them, with variance near one."""
        return self.scheduler.scale_model_input(latents, timestep)

    def step(self, prediction: paddle.Tensor, timestep: paddle.Tensor, latents: paddle.Tensor) -> paddle.Tensor:
        """Latents (N, C, h, w) after one step."""
        extra = {}
        if takes_eta(self.scheduler):
            extra["eta"] = self.eta
            if self.eta:
                extra["variance_noise"] = self._step_noise(latents.shape)
        return self.scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]

    def clean(self, sample: paddle.Tensor, prediction: paddle.Tensor, timestep: float) -> paddle.Tensor:
        """The clean latents that a prediction for the model input `sample` points to (DDIM, equation 12)."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return prediction
        alphas = self.scheduler.alphas_cumprod.astype("float64").numpy()
        sigmas = np.sqrt((1 - alphas) / np.maximum(alphas, 1e-12))
        alpha = 1 / (1 + np.interp(timestep, np.arange(len(sigmas)), sigmas) ** 2)  # timesteps may be fractional
        signal, spread = float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))
        if kind == "v_prediction":
            return signal * sample - spread * prediction
        return (sample - spread * prediction) / signal

    def _check_timesteps(self) -> None:
        values = np.asarray([float(timestep) for timestep in self.timesteps])
        limit = self.scheduler.config.num_train_timesteps
        order = np.diff(values) <= 0 if isinstance(self.scheduler, PNDMScheduler) else np.diff(values) < 0
        if not (len(values) and np.isfinite(values).all() and values.min() >= 0 and values.max() < limit):
            raise ValueError(
                f"{self.name} gives timesteps outside [0, {limit}) at {self.steps} steps: {self._settings}"
            )
        if not order.all() and not has_runge_kutta_steps(self.scheduler):
            raise ValueError(
                f"{self.name} gives one timestep twice at {self.steps} steps with this noise schedule and cannot tell "
                f"them apart: {self._settings}"
            )

    @property
    def _settings(self) -> str:
        if self.scheduler.config.get("use_karras_sigmas"):
            return "set use_karras_sigmas=False or use fewer steps"
        return f"use other steps or another timestep_spacing than {self.scheduler.config.get('timestep_spacing')!r}"

    def _step_noise(self, shape) -> paddle.Tensor:
        return self.noise.normal(shape[1:])


def _keep_roots_real(scheduler: DDIMScheduler, eta: float) -> None:
    """Keeps DDIM's `1 - alpha_prev - std**2` from rounding below zero, whose root would make the picture black.

    At eta 1 and few steps it is zero but for rounding. Where it is not negative no bit changes.
    """
    stock = scheduler._get_variance

    def variance(timestep, prev_timestep):
        value = stock(timestep, prev_timestep)
        alpha_prev = scheduler.alphas_cumprod[prev_timestep] if prev_timestep >= 0 else scheduler.final_alpha_cumprod
        while float(1 - alpha_prev - (eta * value ** (0.5)) ** 2) < 0 and float(value) > 0:
            value = value * (1 - 2.0**-22)
        return value

    scheduler._get_variance = variance


def _draw_from(scheduler, noise) -> None:
    """Gives a scheduler's `step` another source of random numbers than Paddle's process-wide generator.

    The stock function takes them from the name `randn_tensor` of its module; the copy for this scheduler finds `noise`
    under it. Euler draws numbers that it uses only with s_churn, which no call sets: it gets zeros.
    """
    step = type(scheduler).step
    if "randn_tensor" not in step.__globals__:
        return
    unused = isinstance(scheduler, EulerDiscreteScheduler)

    def randn_tensor(shape, generator=None, dtype=None):
        return paddle.zeros(shape, dtype) if unused else noise(shape).cast(dtype)

    names = {**step.__globals__, "randn_tensor": randn_tensor}
    copied = types.FunctionType(step.__code__, names, step.__name__, step.__defaults__, step.__closure__)
    scheduler.step = types.MethodType(copied, scheduler)
