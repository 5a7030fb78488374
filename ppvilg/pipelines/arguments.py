"""The arguments of a call, in one place: what each may be, and what the model makes of those left out.

`Arguments(...)` takes what a user wrote; `.checked(pipeline)` gives the same dataclass with every value checked and in
one form, before anything is computed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import paddle

from ppvilg.knowledge import MARKS, apply_style

from .canvas import check_memory, picture_entries, size_of
from .noise import Generator, NoiseSource
from .schedulers import Solver, check_scheduler, has_runge_kutta_steps, takes_eta

OUTPUT_TYPES = ("pil", "np", "pd", "latent")
CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")


@dataclass(frozen=True)
class Arguments:
    """What a call of ErnieViLG2Pipeline takes; comments beside the fields: what `checked` makes of them.

    prompt: what the model cannot read of it is said in a warning, in result.unknown_words and .ignored_text.
    height, width: pixels, multiples of the pipeline's `size_multiple`; None: the size of `image`, rounded down to them,
        else of the unet's training.
    num_inference_steps, guidance_scale: None: the model's defaults. guidance_scale: one number or one per expert; 1
        and less is no guidance, and the negative prompt is not used.
    eta: DDIM's share of fresh noise in every step, 0 to 1; None: the model's default where the scheduler takes one.
    generator: seed or Generator, or one per picture (see NoiseSource). Picture i of seed s is picture 0 of seed s + i,
        alone, in any batch and in any thread, with every scheduler.
    latents: initial standard normal noise (N, C, h, w) instead of drawing it.
    prompt_embeds, negative_prompt_embeds: what `encode_prompt` gives instead of prompts, or its hidden states (P, L, D)
        alone, without key-token weights.
    output_type: "pil", "np" (N, H, W, 3), "pd" (N, 3, H, W), both in [0, 1], or "latent" (N, C, h, w).
    callback_on_step_end: called as f(pipeline, step, timestep, tensors) with those tensors of "latents",
        "prompt_embeds" and "negative_prompt_embeds" that callback_on_step_end_tensor_inputs names; may return a dict of
        new ones. `pipeline._interrupt = True` in it ends the loop.
    style: one of ppvilg.knowledge.STYLES.
    image: start from this picture, `strength` (default 0.8) of the way to noise; 0 is its reconstruction.
    mask_image: repaint where it is white (default strength 1, pure noise); other pixels of `image` stay exact.
    """

    prompt: str | Sequence[str] | None = None  # list[str] | None
    height: int | None = None  # int
    width: int | None = None  # int
    num_inference_steps: int | None = None  # int
    guidance_scale: float | Sequence[float] | None = None  # list[float], one per expert
    negative_prompt: str | Sequence[str] | None = None  # list[str]
    num_images_per_prompt: int = 1
    eta: float | None = None  # float
    generator: Generator = None
    latents: object = None  # Tensor (N, C, h, w) | None
    prompt_embeds: object = None  # Tensor (P, L, D), Conditioning or None
    negative_prompt_embeds: object = None
    output_type: str = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    style: str | Sequence[str] | None = None  # list[str | None]
    image: object = None  # list of pictures | None
    mask_image: object = None  # list of pictures | None
    strength: float | None = None  # float

    @property
    def prompt_count(self) -> int:
        """Prompts, or embeddings of prompts; of checked arguments."""
        return len(self.prompt) if self.prompt is not None else len(embeddings(self.prompt_embeds))

    @property
    def count(self) -> int:
        """Pictures N; of checked arguments."""
        return self.prompt_count * self.num_images_per_prompt

    @property
    def texts(self) -> list[str]:
        """Prompts with their styles; of checked arguments."""
        return [apply_style(*pair) for pair in zip(self.prompt or [], self.style)]

    def checked(self, pipeline) -> Arguments:
        """With every value in one form, those left out from the model's own defaults. ValueError names the first fault.

        TypeError for a generator that is none.
        """
        check_components(pipeline)
        each = whole_number("num_images_per_prompt", self.num_images_per_prompt)
        known = replace(self, num_images_per_prompt=each).with_texts()
        known = known._with_numbers(pipeline)
        known = known._with_pictures(pipeline)
        noise = NoiseSource(0 if self.generator is None else self.generator, known.count)  # a fault is found now
        if known.image is not None and has_runge_kutta_steps(pipeline.scheduler):
            raise ValueError("PNDMScheduler can start from an image only with skip_prk_steps=True")
        Solver(pipeline.scheduler, known.num_inference_steps, known.eta, noise)
        known._check_tensors(pipeline)
        return known

    def with_texts(self) -> Arguments:
        """With prompts, negative prompts and styles as lists, one entry per prompt; needs no model."""
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise ValueError("give a prompt or prompt_embeds, one of them")
        if self.prompt_embeds is not None and self.style is not None:
            raise ValueError("a style is a word of the prompt: it cannot be added to prompt_embeds")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if prompts is not None and not (
            isinstance(prompts, (list, tuple)) and prompts and all(isinstance(text, str) for text in prompts)
        ):
            raise ValueError(f"prompt must be a text or a list of texts, got {prompts!r}")
        count = len(embeddings(self.prompt_embeds)) if prompts is None else len(prompts)
        negatives = one_each("negative_prompt", self.negative_prompt, count)
        styles = one_each("style", self.style, count)
        for style in styles:
            apply_style("", style)  # ValueError for an unknown one
        prompts = None if prompts is None else list(prompts)
        return replace(self, prompt=prompts, negative_prompt=[text or "" for text in negatives], style=styles)

    def _with_numbers(self, pipeline) -> Arguments:
        config, limit = pipeline.config, pipeline.scheduler.config.num_train_timesteps
        check_scheduler(pipeline.scheduler)
        steps = config.default_num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {self.output_type!r}")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be a function, got {self.callback_on_step_end!r}")
        tensors = self.callback_on_step_end_tensor_inputs
        unknown = [name for name in tensors if name not in CALLBACK_TENSORS]
        if isinstance(tensors, str) or unknown:
            known = ", ".join(CALLBACK_TENSORS)
            raise ValueError(f"callback_on_step_end_tensor_inputs must be a list of {known}, got {tensors!r}")
        return replace(
            self,
            num_inference_steps=whole_number("num_inference_steps", steps, 1, limit),
            guidance_scale=resolve_guidance(pipeline, self.guidance_scale),
            eta=resolve_eta(pipeline, self.eta),
        )

    def _with_pictures(self, pipeline) -> Arguments:
        """Sizes, and pictures as lists of what is opened later."""
        if self.image is None and (self.mask_image is not None or self.strength is not None):
            raise ValueError("mask_image and strength need an image to start from")
        if self.image is not None and self.latents is not None:
            raise ValueError("give latents or image to start from, not both")
        strength = self.strength
        if strength is not None:
            strength = number("strength", strength)
            if not 0 <= strength <= 1:
                raise ValueError(f"strength must be from 0 (keep the image) to 1 (pure noise), got {strength}")
        elif self.image is not None:
            strength = 0.8 if self.mask_image is None else 1.0
        image = picture_entries("image", self.image, self.count)
        mask = picture_entries("mask_image", self.mask_image, self.count)
        height, width = self._size(pipeline, image)
        check_memory(pipeline, height, width)
        return replace(self, image=image, mask_image=mask, strength=strength, height=height, width=width)

    def _size(self, pipeline, image: list | None) -> tuple[int, int]:
        """(height, width) in pixels: given ones must fit, those of a picture are rounded down to what fits."""
        multiple = pipeline.size_multiple
        if image is not None:
            own = size_of(image[0])
            default = tuple(side // multiple * multiple for side in own)
            if not all(default):
                raise ValueError(f"image of {own[1]}x{own[0]} pixels is smaller than {multiple}x{multiple}")
        else:
            cells = pipeline.unet.sample_size
            cells = (cells, cells) if cells is None or isinstance(cells, int) else cells
            default = tuple(None if cell is None else cell * pipeline.vae_scale_factor for cell in cells)
        sizes = []
        for name, given, fallback in (("height", self.height, default[0]), ("width", self.width, default[1])):
            if given is None and fallback is None:
                raise ValueError(f"{name} must be given: the unet's config has no sample_size")
            value = whole_number(name, fallback if given is None else given)
            if value % multiple:
                low = value // multiple * multiple
                valid = f"{low} and {low + multiple}" if low > 0 else f"{multiple}"
                raise ValueError(f"{name}={value} is not a multiple of {multiple}; the nearest valid: {valid}")
            sizes.append(value)
        return tuple(sizes)

    def _check_tensors(self, pipeline) -> None:
        factor, features = pipeline.vae_scale_factor, pipeline.unet.config.unet["cross_attention_dim"]
        shape = [self.count, pipeline.unet.in_channels, self.height // factor, self.width // factor]
        if self.latents is not None and list(tensor_of("latents", self.latents).shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {list(self.latents.shape)}")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if getattr(self, name) is not None:
                found = list(embeddings(getattr(self, name), name).shape)
                if len(found) != 3 or found[0] != self.prompt_count or found[2] != features or not found[1]:
                    wanted = f"({self.prompt_count}, tokens, {features})"
                    raise ValueError(f"{name} must have shape {wanted}, got {found}")
        lengths = [
            pipeline.config.max_length if embeds is None else embeddings(embeds).shape[1]
            for embeds in (self.prompt_embeds, self.negative_prompt_embeds)
        ]
        if lengths[0] != lengths[1] and any(scale > 1 for scale in self.guidance_scale):
            raise ValueError(
                f"prompt and negative prompt have {lengths[0]} and {lengths[1]} tokens, guidance needs as many: "
                "give embeddings of one length"
            )


# ---- one value ----


def whole_number(name: str, value: object, low: int = 1, high: int | None = None) -> int:
    """A whole number of any type as int; ValueError unless it is one from `low` to `high`."""
    found = None
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__index__"):
        try:
            found = operator.index(value)
        except TypeError:
            found = None  # an array or tensor of another kind
    if found is None or found < low or (high is not None and found > high):
        limits = f"from {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {limits}, got {_shown(name, value)}")
    return found


def number(name: str, value: object) -> float:
    """A number of any type, arrays and tensors with one entry too, as float; ValueError unless it is finite."""
    if isinstance(value, (np.ndarray, paddle.Tensor)) and value.size == 1:
        value = value.item()
    if isinstance(value, (bool, np.bool_, str, bytes)) or not hasattr(value, "__float__"):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {found}")
    return found


def one_each(name: str, value: str | Sequence[str] | None, count: int) -> list[str | None]:
    """A text for all prompts or one for each, as a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} prompts")
    if not all(entry is None or isinstance(entry, str) for entry in values):
        raise ValueError(f"{name} must be a text or a list of texts, got {value!r}")
    return values


def tensor_of(name: str, value: object) -> paddle.Tensor:
    """An array or tensor of numbers as a tensor; ValueError for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return paddle.to_tensor(value)
    if not isinstance(value, paddle.Tensor):
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {type(value).__name__}")
    return value


def embeddings(value: object, name: str = "prompt_embeds") -> paddle.Tensor:
    """Hidden states (P, L, D) of prompts, given as such or as the Conditioning that encode_prompt returns."""
    states = tensor_of(name, getattr(value, "hidden_states", value))
    if states.ndim != 3:
        raise ValueError(f"{name} must have shape (prompts, tokens, features), got {list(states.shape)}")
    return states


def _shown(name: str, value: object) -> str:
    return f"{name}={value!r}" if name in ("height", "width") else repr(value)


# ---- what the model says ----


def resolve_eta(pipeline, eta: float | None) -> float:
    """DDIM's share of fresh noise: None is the model's default where the scheduler takes one."""
    taken = takes_eta(pipeline.scheduler)
    if eta is None:
        return float(pipeline.config.default_eta) if taken else 0.0
    if not isinstance(eta, float) or not math.isnan(eta):
        eta = number("eta", eta)
    if eta and not taken:
        raise ValueError(f"{type(pipeline.scheduler).__name__} takes no eta, got eta={eta}; use DDIMScheduler")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (no fresh noise) to 1 (as much as DDPM), got {eta}")
    return eta


def resolve_guidance(pipeline, guidance_scale: float | Sequence[float] | None) -> list[float]:
    """One guidance scale per expert: None is the model's default."""
    given = pipeline.config.default_guidance_scale if guidance_scale is None else guidance_scale
    experts = pipeline.unet.num_experts
    several = isinstance(given, (list, tuple)) or (isinstance(given, (np.ndarray, paddle.Tensor)) and given.ndim)
    scales = list(given) if several else [given] * experts
    if len(scales) != experts:
        raise ValueError(f"guidance_scale has {len(scales)} numbers for {experts} experts")
    return [number("guidance_scale", scale) for scale in scales]


def check_components(pipeline) -> None:
    """ValueError if the components of a pipeline do not fit together, naming every fault."""
    unet, text, vae = pipeline.unet.config, pipeline.text_encoder.config, pipeline.vae.config
    steps, faults = pipeline.scheduler.config.num_train_timesteps, []
    if steps != unet.num_train_timesteps:
        faults.append(f"scheduler has num_train_timesteps={steps}, unet {unet.num_train_timesteps}")
    if vae.latent_channels != unet.unet["in_channels"]:
        faults.append(f"vae has {vae.latent_channels} channels, unet takes {unet.unet['in_channels']}")
    if text.hidden_size != unet.unet["cross_attention_dim"]:
        faults.append(f"text_encoder gives {text.hidden_size} features, unet takes {unet.unet['cross_attention_dim']}")
    if pipeline.config.max_length > text.max_position_embeddings:
        faults.append(
            f"max_length={pipeline.config.max_length}, text_encoder has {text.max_position_embeddings} positions"
        )
    vocabulary = pipeline.tokenizer.get_vocab()
    if max(vocabulary.values()) >= text.vocab_size:
        faults.append(
            f"tokenizer has ids up to {max(vocabulary.values())}, text_encoder embeds {text.vocab_size} tokens"
        )
    missing = [mark for mark in MARKS.values() if mark not in vocabulary]
    if pipeline.config.mark and missing:
        faults.append(f"tokenizer lacks {' '.join(missing)}: add_marks(tokenizer, text_encoder), or mark=False")
    if faults:
        raise ValueError(f"the components do not fit together: {'; '.join(faults)}")
