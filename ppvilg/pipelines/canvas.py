"""Where the loop starts, and what inpainting keeps: pictures in any form, masks, noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle
import PIL.Image
from ppdiffusers.image_processor import VaeImageProcessor

from ppvilg.files import picture_size, read_picture, to_rgb
from ppvilg.inference.options import as_options
from ppvilg.models.attention import query_blocks

from .noise import NoiseSource
from .schedulers import Solver

FORMS = "a PIL picture, a file, an array (H, W, 3) or (H, W) or a tensor (3, H, W) in [0, 1], or a list of them"


class Canvas(NamedTuple):
    """Where the loop starts, and what inpainting keeps."""

    timesteps: list[paddle.Tensor]
    latents: paddle.Tensor  # (N, C, h, w), as noisy as timesteps[0]
    noise: paddle.Tensor | None = None  # (N, C, h, w)
    pixels: paddle.Tensor | None = None  # (N, 3, H, W) in [0, 1], the given picture
    known: paddle.Tensor | None = None  # (N, C, h, w), its latents
    mask: paddle.Tensor | None = None  # (N, 1, H, W), 1 = repaint
    latent_mask: paddle.Tensor | None = None  # (N, 1, h, w), 1 = repaint


def prepare_canvas(pipeline, arguments, solver: Solver, noise: NoiseSource) -> Canvas:
    """The start of a drawing from checked arguments: pure noise, or a picture taken back to noise by its strength."""
    factor, height, width = pipeline.vae_scale_factor, arguments.height, arguments.width
    shape = [pipeline.unet.in_channels, height // factor, width // factor]
    given = arguments.latents
    drawn = noise.normal(shape) if given is None else paddle.to_tensor(given).cast("float32")  # (N, C, h, w)
    if arguments.image is None:
        return Canvas(solver.timesteps, solver.starting_noise(drawn))

    pixels = _read("image", arguments.image, height, width, arguments.count)  # (N, 3, H, W)
    known = pipeline.encode_image(2 * pixels - 1)  # (N, C, h, w)
    mask = latent_mask = None
    if arguments.mask_image is not None:
        mask = _read("mask_image", arguments.mask_image, height, width, arguments.count)  # (N, 1, H, W)
        latent_mask = paddle.nn.functional.max_pool2d(mask, factor)  # (N, 1, h, w), free if any pixel is
    timesteps = solver.last_timesteps(arguments.strength)
    if not timesteps:
        start = known
    elif arguments.strength == 1:
        start = solver.starting_noise(drawn)
    else:
        start = solver.add_noise(known, drawn, timesteps[0])
    return Canvas(timesteps, start, drawn, pixels, known, mask, latent_mask)


# ---- pictures in any form ----


def picture_entries(name: str, value: object, count: int) -> list | None:
    """Pictures of one of the accepted FORMS as a list of one or `count`, files not yet opened; ValueError otherwise."""
    if value is None:
        return None
    stacked = isinstance(value, (np.ndarray, paddle.Tensor)) and value.ndim == 4
    entries = [_entry(name, each) for each in (value if stacked or isinstance(value, (list, tuple)) else [value])]
    if len(entries) not in (1, count):
        needed = "one picture" if count == 1 else f"1 or {count} pictures"
        raise ValueError(f"{name} must be {needed}, got {len(entries)}")
    return entries


def _entry(name: str, value: object) -> PIL.Image.Image | str | np.ndarray | paddle.Tensor:
    """One picture: RGB, a path, float32 (H, W, channels) or a tensor (channels, H, W)."""
    if isinstance(value, PIL.Image.Image):
        return to_rgb(value)
    if isinstance(value, str) and value.partition(":")[0] in ("http", "https", "data", "file"):
        raise ValueError(f"{name}: URLs are not fetched, download the picture and give its path ({value[:60]})")
    if isinstance(value, (str, os.PathLike)):
        picture_size(value)  # FileNotFoundError, or PictureError for what is no picture
        return os.fspath(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return _array_entry(name, value)
    if isinstance(value, paddle.Tensor):
        return _tensor_entry(name, value)
    raise ValueError(f"{name} must be {FORMS}, got {type(value).__name__}")


def _array_entry(name: str, value: np.ndarray) -> np.ndarray:
    channels = _channels(name)
    if value.ndim == 2:
        value = value[..., None]
    if value.ndim == 3 and value.shape[-1] == 1:
        value = value.repeat(channels, axis=-1)
    if value.ndim != 3 or value.shape[-1] != channels or not value.size:
        raise ValueError(f"{name} as an array must have shape (H, W) or (H, W, {channels}), got {value.shape}")
    _check_range(name, value.min(), value.max())
    return value.astype(np.float32)


def _tensor_entry(name: str, value: paddle.Tensor) -> paddle.Tensor:
    channels = _channels(name)
    value = value.cast("float32")
    if value.ndim == 2:
        value = value.unsqueeze(0)
    if value.ndim == 3 and value.shape[0] == 1:
        value = value.expand([channels, *value.shape[1:]])
    if value.ndim != 3 or value.shape[0] != channels or not value.size:
        raise ValueError(f"{name} as a tensor must have shape (H, W) or ({channels}, H, W), got {list(value.shape)}")
    _check_range(name, float(value.min()), float(value.max()))
    return value


def _channels(name: str) -> int:
    return 1 if name == "mask_image" else 3


def _check_range(name: str, low: float, high: float) -> None:
    if name == "image" and not (low >= 0 and high <= 1):
        raise ValueError(f"{name} as an array must be in [0, 1], got [{low:.3g}, {high:.3g}]")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} as an array must be finite")


def size_of(entry: PIL.Image.Image | str | np.ndarray | paddle.Tensor) -> tuple[int, int]:
    """(height, width) of one of `picture_entries`."""
    if isinstance(entry, PIL.Image.Image):
        return entry.height, entry.width
    if isinstance(entry, str):
        return picture_size(entry)[::-1]
    return tuple(entry.shape[-2:]) if isinstance(entry, paddle.Tensor) else entry.shape[:2]


def _read(name: str, entries: Sequence, height: int, width: int, count: int) -> paddle.Tensor:
    """Entries as (count, channels, height, width) in [0, 1]; a mask is made 0 or 1."""
    binary = name == "mask_image"
    processor = VaeImageProcessor(
        vae_scale_factor=1,
        do_normalize=False,
        do_binarize=binary,
        do_convert_grayscale=binary,
        do_convert_rgb=not binary,
    )
    pictures = []
    for entry in entries:
        opened = read_picture(entry) if isinstance(entry, str) else entry
        opened = opened[None] if isinstance(opened, (np.ndarray, paddle.Tensor)) else opened
        pictures.append(processor.preprocess([opened], height, width).cast("float32"))  # (1, channels, H, W)
    pixels = paddle.concat(pictures)
    return pixels.expand([count, *pixels.shape[1:]])


# ---- memory ----


def check_memory(pipeline, height: int, width: int) -> None:
    """ValueError if one attention map of one picture alone is larger than the memory of this machine.

    Only for experts that Paddle computes on the CPU, where no fused kernel goes without the map.
    """
    fused = pipeline.is_exported and as_options(pipeline.vae.backend).library != "paddle_inference"
    if fused or not paddle.get_device().startswith("cpu"):
        return
    config, factor = pipeline.unet.config.unet, pipeline.vae_scale_factor
    heads, size = config["attention_head_dim"], pipeline.unet.sample_size
    own = size if isinstance(size, int) or size is None else max(size)
    needed = 0
    for level, block in enumerate(config["down_block_types"]):
        if "Attn" not in block:
            continue
        tokens = (height // factor >> level) * (width // factor >> level)
        count = heads if isinstance(heads, int) else heads[level]
        trained = (own >> level) ** 2 if own and pipeline.is_exported else 0
        needed = max(needed, 4 * count * tokens**2 // query_blocks(trained, count, 2**20))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(
            f"a picture of {width}x{height} pixels needs {needed / 2**30:.0f} GiB for one attention map, this machine "
            f"has {memory / 2**30:.0f}: give a smaller height and width"
        )
