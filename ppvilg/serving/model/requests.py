"""What may be asked of the model: every setting checked, defaults filled in, nothing changed without a note."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from ppvilg.knowledge import NO_STYLE, STYLES

from ..errors import ServiceError
from .adapters import chosen
from .info import SAMPLERS, ModelInfo

SETTINGS = (
    "prompt",
    "negative_prompt",
    "style",
    "width",
    "height",
    "num_images",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "sampler",
    "eta",
    "image",
    "mask",
    "strength",
    "word_weights",
    "lora",
)
MAX_SEED = 2**32 - 1  # what other services and their clients use
MAX_WORD_WEIGHTS = 64


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for; of pictures sent in, what is read of them."""

    num_images: int = 64
    num_inference_steps: int = 250
    prompt_characters: int = 2000
    guidance_scale: float = 50.0
    word_weight: float = 3.0
    picture_bytes: int = 10 * 2**20
    picture_pixels: int = 16 * 10**6
    body_bytes: int = 16 * 2**20


def describe_limits(limits: Limits, info: ModelInfo) -> dict:
    """The limits as JSON."""
    return {
        **{name: value for name, value in vars(limits).items() if name not in ("word_weight", "guidance_scale")},
        "word_weight": [0, limits.word_weight],
        "guidance_scale": [0, limits.guidance_scale],
        "pixels": info.max_pixels,
    }


def resolve(asked: Mapping, info: ModelInfo, limits: Limits, picture_size: tuple[int, int] | None = None):
    """(settings, notes): every setting with the value that will be used, and sentences on what was chosen otherwise.

    picture_size: of `image`, if there is one. ServiceError names the field that does not fit.
    """
    unknown = sorted(set(asked) - set(SETTINGS))
    if unknown:
        raise ServiceError("invalid", f"unknown setting {unknown[0]!r}; there are {', '.join(SETTINGS)}", unknown[0])
    given = {name: value for name, value in asked.items() if value is not None}
    notes: list[str] = []
    width, height = _size(given, info, picture_size, notes)
    sampler = _one_of("sampler", given.get("sampler", info.default_sampler), SAMPLERS, "invalid")
    settings = {
        "prompt": _text("prompt", given.get("prompt", ""), limits.prompt_characters),
        "negative_prompt": _text("negative_prompt", given.get("negative_prompt", ""), limits.prompt_characters),
        "style": _one_of("style", given.get("style") or NO_STYLE, STYLES, "unknown_style"),
        "width": width,
        "height": height,
        "num_images": _whole("num_images", given.get("num_images", 1), 1, limits.num_images),
        "seed": _whole("seed", given.get("seed", secrets.randbelow(2**31)), 0, MAX_SEED),
        "num_inference_steps": _whole(
            "num_inference_steps",
            given.get("num_inference_steps", info.default_num_inference_steps),
            1,
            min(limits.num_inference_steps, info.num_train_timesteps),
        ),
        "guidance_scale": _guidance(given.get("guidance_scale", info.default_guidance_scale), info, limits),
        "sampler": sampler,
        "eta": _eta(given, info, sampler),
        "image": given.get("image"),
        "mask": given.get("mask"),
        "strength": _strength(given),
        "word_weights": _word_weights(given.get("word_weights", {}), limits),
        "lora": chosen(given.get("lora", {}), info.adapters, info.num_experts),
    }
    if not settings["prompt"].strip() and settings["style"] == NO_STYLE and settings["image"] is None:
        raise ServiceError("invalid", "the prompt is empty", "prompt")
    return settings, notes


def fit_size(width: int, height: int, info: ModelInfo, strict: bool) -> tuple[tuple[int, int], list[str]]:
    """The size that the model draws for one asked for, and a note where they differ. ServiceError size, if strict."""
    if width < 1 or height < 1:
        raise ServiceError("size", f"a picture of {width}x{height} pixels cannot be drawn", "size")
    if info.fits(width, height):
        return (width, height), []
    size = info.nearest_shape(width, height)
    if strict:
        drawn = ", ".join(f"{shape[0]}*{shape[1]}" for shape in info.shapes.values())
        raise ServiceError("size", f"{info.name} does not draw {width}*{height} pixels, but {drawn}", "size")
    return size, [f"drawn at {size[0]}x{size[1]}, the model's own shape nearest to {width}x{height}"]


def _size(given, info: ModelInfo, picture_size, notes: list[str]) -> tuple[int, int]:
    if picture_size is not None and "width" not in given and "height" not in given:
        size, fitted = fit_size(*picture_size, info, strict=False)
        notes += fitted
        return size
    sizes = []
    for name, default in zip(("width", "height"), info.default_size):
        value = _whole(name, given.get(name, default), 1, 2**16, "size")
        if value % info.size_multiple:
            low = max(info.size_multiple, value // info.size_multiple * info.size_multiple)
            nearest = f"{low} and {low + info.size_multiple}"
            message = f"{name} {value} is not a multiple of {info.size_multiple}; the nearest are {nearest}"
            raise ServiceError("size", message, name)
        sizes.append(value)
    if sizes[0] * sizes[1] > info.max_pixels:
        message = f"{sizes[0]}x{sizes[1]} has more than the {info.max_pixels} pixels that {info.name} is allowed"
        raise ServiceError("size", message, "width")
    return sizes[0], sizes[1]


def _text(name: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise ServiceError("invalid", f"{name} must be a text", name)
    if len(value) > longest:
        raise ServiceError("invalid", f"{name} has {len(value)} characters, at most {longest} are read", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ServiceError("invalid", f"{name} holds half of a surrogate pair, which is no character", name) from None
    if "\0" in value:
        raise ServiceError("invalid", f"{name} holds a zero character", name)
    return value


def _one_of(name: str, value: object, choices, code: str) -> str:
    if value not in choices:
        raise ServiceError(code, f"unknown {name} {str(value)[:40]!r}; there are {'、'.join(choices)}", name)
    return value


def _whole(name: str, value: object, least: int, most: int, code: str = "invalid") -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ServiceError(code, f"{name} must be a whole number from {least} to {most}, got {str(value)[:40]}", name)
    return value


def _number(name: str, value: object, least: float, most: float) -> float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not least <= value <= most:
        raise ServiceError("invalid", f"{name} must be a number from {least} to {most}, got {str(value)[:40]}", name)
    return float(value)


def _guidance(value: object, info: ModelInfo, limits: Limits) -> float | list[float]:
    if not isinstance(value, (list, tuple)):
        return _number("guidance_scale", value, 0, limits.guidance_scale)
    if len(value) != info.num_experts:
        message = f"guidance_scale has {len(value)} numbers, the model {info.num_experts} experts"
        raise ServiceError("invalid", message, "guidance_scale")
    return [_number("guidance_scale", each, 0, limits.guidance_scale) for each in value]


def _eta(given: Mapping, info: ModelInfo, sampler: str) -> float:
    if "eta" not in given:
        return info.default_eta if sampler == "ddim" else 0.0
    eta = _number("eta", given["eta"], 0, 1)
    if eta and sampler != "ddim":
        raise ServiceError("invalid", f"only the sampler ddim takes an eta, not {sampler}", "eta")
    return eta


def _strength(given: Mapping) -> float | None:
    if given.get("image") is None:
        for name in ("mask", "strength"):
            if given.get(name) is not None:
                raise ServiceError("invalid", f"{name} needs an image to start from", name)
        return None
    default = 0.8 if given.get("mask") is None else 1.0
    return _number("strength", given.get("strength", default), 0, 1)


def _word_weights(value: object, limits: Limits) -> dict[str, float]:
    words = isinstance(value, Mapping) and all(isinstance(word, str) and len(word) <= 100 for word in value)
    if not words or len(value) > MAX_WORD_WEIGHTS:
        message = f"word_weights must be an object of up to {MAX_WORD_WEIGHTS} words and their weights"
        raise ServiceError("invalid", message, "word_weights")
    return {word: _number("word_weights", weight, 0, limits.word_weight) for word, weight in sorted(value.items())}
