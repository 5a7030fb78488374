"""Inputs that a part is proven on, and what the model itself gives for them: kept in the bundle as safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle
from ppdiffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

STEPS = 20
Case = list[paddle.Tensor]


def text_cases(vocabulary: int, positions: int, prompt_ids: np.ndarray) -> list[Case]:
    """Token ids: random ones at three sizes, and those of the prompts (N, L)."""
    random = np.random.default_rng(0)
    sizes = ((1, positions), (2, max(positions // 2, 2)), (3, 2))
    random_ids = (random.integers(0, vocabulary, size) for size in sizes)
    return [[paddle.to_tensor(ids)] for ids in (*random_ids, prompt_ids)]


def autoencoder_cases(channels: int, sizes: Sequence[tuple[int, int]]) -> list[Case]:
    """Standard normal pictures or latents of the given sizes in the cells of the input."""
    random = np.random.default_rng(1)
    return [[_normal(random, 1 + i, channels, *size)] for i, size in enumerate(sizes)]


def expert_cases(
    unet: UNet2DConditionModel,
    block: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    prompts: tuple[paddle.Tensor, paddle.Tensor] | None,
) -> list[Case]:
    """Random latents at the expert's first, middle and last timestep with random text, and with two prompts' states."""
    random = np.random.default_rng(2)
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    cases, moments = [], (block[1] - 1, sum(block) / 2, block[0])
    for count, (size, moment, length) in enumerate(zip(sizes, moments, (77, 13, 1)), 1):
        text = _normal(random, count, length, width)
        weights = paddle.to_tensor(1 + random.random((count, length), dtype=np.float32))
        cases.append([_normal(random, count, channels, *size), _moments(moment, count), text, weights])
    if prompts is not None:
        text, weights = (value[:2] for value in prompts)
        count = text.shape[0]
        cases.append([_normal(random, count, channels, *sizes[1]), _moments(block[0], count), text, weights])
    return cases


def proof_sizes(side: int | Sequence[int] | None, multiple: int) -> list[tuple[int, int]]:
    """The model's own size, a wide smaller one, and the smallest that is not square; multiples of `multiple`."""
    height, width = (side or 8 * multiple,) * 2 if side is None or isinstance(side, int) else side

    def round_to(value: float) -> int:
        return max(int(value // multiple), 1) * multiple

    own = round_to(height), round_to(width)
    return [own, (round_to(height / 2), round_to(3 * width / 4)), (2 * multiple, multiple)]


def _normal(random: np.random.Generator, *shape: int) -> paddle.Tensor:
    return paddle.to_tensor(random.standard_normal(shape, dtype=np.float32))


def _moments(moment: float, count: int) -> paddle.Tensor:
    return paddle.full([count], float(moment), "float32")


# ---- in the bundle ----


def save_cases(file: Path, cases: list[Case], outputs: list[list[np.ndarray]]) -> None:
    """Writes inputs and outputs as `<case>.input.<i>` and `<case>.output.<i>`."""
    tensors = {}
    for number, (case, output) in enumerate(zip(cases, outputs)):
        tensors |= {f"{number}.input.{i}": value.numpy() for i, value in enumerate(case)}
        tensors |= {f"{number}.output.{i}": value for i, value in enumerate(output)}
    save_tensors(file, tensors)


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, which keeps arrays as they lie in memory: rows first, whatever they were."""
    file.parent.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(file))


def load_cases(file: Path) -> tuple[list[Case], list[list[np.ndarray]]]:
    """What `save_cases` wrote; ValueError: something else is in the file."""
    tensors = load_file(str(file))
    cases: list[Case] = []
    outputs: list[list[np.ndarray]] = []
    while f"{len(cases)}.input.0" in tensors:
        number = len(cases)
        cases.append([paddle.to_tensor(value) for value in _numbered(tensors, f"{number}.input")])
        outputs.append(_numbered(tensors, f"{number}.output"))
    if not cases or sum(map(len, cases)) + sum(map(len, outputs)) != len(tensors):
        raise ValueError(f"{file} holds no inputs and outputs of a part: export the model again")
    return cases, outputs


def _numbered(tensors: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    values = []
    while f"{prefix}.{len(values)}" in tensors:
        values.append(tensors[f"{prefix}.{len(values)}"])
    return values


@paddle.no_grad()
def outputs_of(run: Callable, cases: list[Case]) -> list[list[np.ndarray]]:
    """What a layer or graph gives for each case."""
    given = (run(*case) for case in cases)
    return [[value.numpy() for value in (one if isinstance(one, (list, tuple)) else [one])] for one in given]


def latent_case(shape: Sequence[int], text_width: int) -> Case:
    """Noise of `shape` (N, C, h, w) and random text, for `denoise`."""
    random = np.random.default_rng(3)
    return [_normal(random, *shape), _normal(random, shape[0], 16, text_width)]


@paddle.no_grad()
def denoise(unet, scheduler_config: Mapping, latents: paddle.Tensor, text: paddle.Tensor) -> np.ndarray:
    """Latents after 20 DDIM steps from noise (N, C, h, w) with text (N, L, D): for experts without a pipeline.

    `unet` is called like MoDEUNet2DConditionModel.
    """
    weights = paddle.ones(text.shape[:2])
    scheduler = DDIMScheduler(**scheduler_config)
    scheduler.set_timesteps(STEPS)
    with unet.expecting(scheduler.timesteps):
        for timestep in scheduler.timesteps:
            prediction = unet(latents, float(timestep), text, weights).sample
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents.numpy()
