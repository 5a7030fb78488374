"""Preprocessing as PaddleDetection and PaddleX write it into an export, with their results to the last pixel.

The operators are those of PaddleDetection's deploy/python/preprocess.py; others are refused by name. Where a side does
not come out whole, PaddleDetection resizes by the factor and PaddleX to the rounded size, which moves pixels a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_GREY = 127.5  # around a letter box
_INTERPOLATIONS = {"NEAREST": 0, "LINEAR": 1, "CUBIC": 2, "BICUBIC": 2, "AREA": 3, "LANCZOS4": 4}


@dataclass
class Prepared:
    """A picture on its way into a detector: (H, W, 3) or, in the end, (3, H, W) float32.

    scale: (vertical, horizontal) factor of its size. shape: (height, width) without what pads it. offset: (x, y) of
    the picture within the padding, in its pixels.
    """

    pixels: np.ndarray
    scale: tuple[float, float] = (1.0, 1.0)
    shape: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)


class Preprocessing:
    """The `Preprocess` list of an export as a function of an RGB picture (H, W, 3) of uint8.

    ValueError names an operator that is not known, or a setting of one.
    """

    def __init__(self, operators: Sequence[dict], source: str, to_rounded_size: bool = False):
        if not isinstance(operators, list) or not all(isinstance(each, dict) for each in operators):
            raise ValueError(f"{source}: Preprocess must be a list of operators, not {operators!r}")
        self.steps = [_step(dict(operator), source, to_rounded_size) for operator in operators]

    def __call__(self, pixels: np.ndarray) -> Prepared:
        prepared = Prepared(pixels, shape=tuple(map(float, pixels.shape[:2])))
        for step in self.steps:
            step(prepared)
        if prepared.pixels.shape[0] != 3:  # an export without Permute takes pictures as they lie
            return prepared
        prepared.pixels = np.ascontiguousarray(prepared.pixels, dtype=np.float32)
        return prepared


def _step(settings: dict, source: str, to_rounded_size: bool) -> Callable[[Prepared], None]:
    kind = settings.pop("type", None)
    if kind not in _OPERATORS:
        raise ValueError(f"{source}: Preprocess has the operator {kind!r}, which is not among {', '.join(_OPERATORS)}")
    make, allowed = _OPERATORS[kind]
    unknown = set(settings) - allowed
    if unknown:
        raise ValueError(f"{source}: {kind} has the setting {sorted(unknown)[0]!r}, which is not known here")
    more = {"to_rounded_size": to_rounded_size} if make is _resize else {}
    try:
        return make(**settings, **more)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {kind} cannot be used ({error})") from None


def _resize(target_size, keep_ratio: bool = False, interp: int | str = 1, to_rounded_size: bool = False) -> Callable:
    """Both sides to the target, or with `keep_ratio` the shorter to its shorter, unless the longer would not fit."""
    height, width = _pair(target_size)
    interpolation = _INTERPOLATIONS[interp.upper()] if isinstance(interp, str) else int(interp)

    def apply(prepared: Prepared) -> None:
        old_height, old_width = prepared.pixels.shape[:2]
        scale = (height / old_height, width / old_width)
        if keep_ratio:
            factor = min(height, width) / min(old_height, old_width)
            if round(factor * max(old_height, old_width)) > max(height, width):
                factor = max(height, width) / max(old_height, old_width)
            scale = (factor, factor)
        size = round(scale[1] * old_width), round(scale[0] * old_height)
        if to_rounded_size or min(size) < 1:  # a stripe of a pixel stays one
            size = max(1, size[0]), max(1, size[1])
            scale = size[1] / old_height, size[0] / old_width
        down, across = scale
        prepared.pixels = cv2.resize(prepared.pixels, None, fx=across, fy=down, interpolation=interpolation)
        prepared.scale, prepared.shape = scale, tuple(map(float, prepared.pixels.shape[:2]))

    return apply


def _letter_box(target_size) -> Callable:
    """The whole picture within the target, in its middle, grey around it."""
    height, width = _pair(target_size)

    def apply(prepared: Prepared) -> None:
        old_height, old_width = prepared.pixels.shape[:2]
        ratio = min(height / old_height, width / old_width)
        size = max(1, round(old_width * ratio)), max(1, round(old_height * ratio))
        left, top = (width - size[0]) / 2, (height - size[1]) / 2
        sides = round(top - 0.1), round(top + 0.1), round(left - 0.1), round(left + 0.1)
        small = cv2.resize(prepared.pixels, size, interpolation=cv2.INTER_AREA)
        grey = cv2.BORDER_CONSTANT
        prepared.pixels = cv2.copyMakeBorder(small.astype(np.float32), *sides, grey, value=(_GREY,) * 3)
        prepared.scale, prepared.shape = (ratio, ratio), (float(size[1]), float(size[0]))
        prepared.offset = (float(sides[2]), float(sides[0]))

    return apply


def _normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), is_scale: bool = True,
               norm_type: str | None = "mean_std") -> Callable:
    """1/255 of each value if `is_scale`; less the mean, over the deviation unless `norm_type` is none."""
    if norm_type not in ("mean_std", "none", None):
        raise ValueError(f"norm_type {norm_type!r} is neither mean_std nor none")
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if norm_type == "mean_std" and (mean.shape != (3,) or std.shape != (3,) or not std.all()):
        raise ValueError("mean and std must be three numbers each, those of std not 0")

    def apply(prepared: Prepared) -> None:
        pixels = prepared.pixels.astype(np.float32, copy=False)
        pixels = pixels * np.float32(1 / 255) if is_scale else pixels
        prepared.pixels = (pixels - mean) / std if norm_type == "mean_std" else pixels

    return apply


def _permute(to_bgr: bool = False, channel_first: bool = True) -> Callable:
    """Channels first."""
    if to_bgr or not channel_first:
        raise ValueError("to_bgr and channel_first: false are not known here")

    def apply(prepared: Prepared) -> None:
        prepared.pixels = prepared.pixels.transpose(2, 0, 1)

    return apply


def _pad_stride(stride: int = 0) -> Callable:
    """Zeros to the right and below, to multiples of `stride`."""

    def apply(prepared: Prepared) -> None:
        if stride > 0:
            height, width = (math.ceil(side / stride) * stride for side in prepared.pixels.shape[1:])
            prepared.pixels = _padded(prepared.pixels, height, width)

    return apply


def _padded(pixels: np.ndarray, height: int, width: int, value: float = 0.0) -> np.ndarray:
    """(3, H, W) with `value` to the right and below."""
    missing = (0, 0), (0, height - pixels.shape[1]), (0, width - pixels.shape[2])
    return np.pad(pixels, missing, constant_values=np.float32(value))


def _pair(size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"target_size {size!r} is not [height, width]")
    return pair


_OPERATORS = {
    "Resize": (_resize, {"target_size", "keep_ratio", "interp"}),
    "LetterBoxResize": (_letter_box, {"target_size"}),
    "NormalizeImage": (_normalize, {"mean", "std", "is_scale", "norm_type"}),
    "Permute": (_permute, {"to_bgr", "channel_first"}),
    "PadStride": (_pad_stride, {"stride"}),
}
