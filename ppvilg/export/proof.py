"""Is an exported part what the model is? Its outputs against dygraph's, on random inputs and real prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import paddle
from ppdiffusers import DDIMScheduler, UNet2DConditionModel

from ppvilg.pipelines import ErnieViLG2Pipeline

from .graphs import Plan
from .weights import stored_weights

STEPS = 20


class ProofError(ValueError):
    """An exported part, or a trajectory, is not what the dygraph model is."""


# A graph may differ from a dygraph layer with the same (stored, widened) weights by so much of the output's standard
# deviation, at its largest; pictures from those of the model as it was, by so much on average, in [0, 1]; latents,
# when experts are exported alone, by so much of their standard deviation, at its largest. Where a back end computes in
# bfloat16 (8 bits of mantissa) the largest of thousands of rounding errors says little about a fault: parts are held to
# a root mean square, and pictures and latents may be further off, also from what narrower weights allow.
PART_TOLERANCE = 1e-4
PICTURE_TOLERANCE = {"float32": 1 / 255, "float16": 1 / 255, "int8": 8 / 255}
LATENT_TOLERANCE = {"float32": 1e-2, "float16": 1e-1, "int8": 0.5}
BFLOAT16_TOLERANCE = {"part_rms": 1e-1, "pictures": 2 / 255, "latents": 0.3}


def in_bfloat16(backend: str) -> bool:
    """Whether a back end computes with 8 bits of mantissa."""
    return backend.endswith("bfloat16")


def picture_tolerance(weights: str, backend: str) -> float:
    """Mean error of a picture, in [0, 1], with weights stored like this on this back end."""
    return PICTURE_TOLERANCE[weights] + (BFLOAT16_TOLERANCE["pictures"] if in_bfloat16(backend) else 0.0)


def latent_tolerance(weights: str, backend: str) -> float:
    """Largest error of latents after a trajectory, in their standard deviations."""
    return LATENT_TOLERANCE[weights] + (BFLOAT16_TOLERANCE["latents"] if in_bfloat16(backend) else 0.0)


# ---- inputs ----


def text_cases(vocabulary: int, positions: int, prompt_ids: np.ndarray) -> list:
    """Token ids: random ones at three sizes, and those of the prompts (N, L)."""
    random = np.random.default_rng(0)
    sizes = ((1, positions), (2, max(positions // 2, 2)), (3, 2))
    random_ids = (random.integers(0, vocabulary, size) for size in sizes)
    return [[paddle.to_tensor(ids)] for ids in (*random_ids, prompt_ids)]


def autoencoder_cases(plan: Plan, sizes: Sequence[tuple[int, int]]) -> list:
    """Standard normal pictures or latents of the given sizes in the cells of the input."""
    random = np.random.default_rng(1)
    channels = plan.inputs[0].shape[1]
    return [[_normal(random, 1 + i, channels, *size)] for i, size in enumerate(sizes)]


def expert_cases(
    unet: UNet2DConditionModel,
    block: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    prompts: tuple[paddle.Tensor, paddle.Tensor] | None,
) -> list:
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


# ---- comparisons ----


@paddle.no_grad()
def outputs(run: Callable, cases: list) -> list[list[np.ndarray]]:
    """What a layer or predictor gives for each case."""
    given = (run(*case) for case in cases)
    return [[value.numpy() for value in (one if isinstance(one, (list, tuple)) else [one])] for one in given]


def reference_outputs(plan: Plan, cases: list, weights: str) -> tuple[list[list[np.ndarray]], float]:
    """What the dygraph layer gives with its weights stored as `weights`, and how far that is from what it is."""
    with stored_weights(plan.layer, weights):
        references = outputs(plan.layer, cases)
    return references, 0.0 if weights == "float32" else largest_error(references, outputs(plan.layer, cases))


def largest_error(found: list[list[np.ndarray]], expected: list[list[np.ndarray]], norm: Callable = np.max) -> float:
    """The largest `relative_error` of all outputs of all cases."""
    return max(relative_error(*pair, norm) for case in zip(found, expected) for pair in zip(*case))


def root_mean_square(values: np.ndarray) -> float:
    """A norm for `largest_error`."""
    return float(np.sqrt(np.mean(np.square(values))))


def relative_error(found: np.ndarray, expected: np.ndarray, norm: Callable = np.max) -> float:
    """norm |found - expected| / std(expected); infinite for other shapes or values that are not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(norm(np.abs(found - expected)) / max(float(expected.std()), 1e-12))


def draw(pipeline: ErnieViLG2Pipeline, prompts: Sequence[str], size: tuple[int, int] | None) -> np.ndarray:
    """Pictures (N, H, W, 3) in [0, 1] of the prompts after 20 steps, with the pipeline's guidance and seeds from 0.

    No fresh noise in the steps: with it a rounding error can decide what stands where, and pictures tell nothing.
    """
    height, width = size or (None, None)
    quiet = copy.copy(pipeline)
    quiet.set_progress_bar_config(disable=True)
    return quiet(
        list(prompts), num_inference_steps=STEPS, generator=0, output_type="np", height=height, width=width, eta=0.0
    ).images


@paddle.no_grad()
def denoise(unet, scheduler_config: Mapping, shape: Sequence[int], text_width: int) -> np.ndarray:
    """Latents after 20 DDIM steps from noise of `shape` (N, C, h, w), with random text: for experts without a pipeline.

    `unet` is called like MoDEUNet2DConditionModel.
    """
    random = np.random.default_rng(3)
    latents = _normal(random, *shape)
    text = _normal(random, shape[0], 16, text_width)
    weights = paddle.ones([shape[0], 16])
    scheduler = DDIMScheduler(**scheduler_config)
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        prediction = unet(latents, float(timestep), text, weights).sample
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents.numpy()


def picture_errors(found: np.ndarray, expected: np.ndarray) -> list[float]:
    """Mean |difference| of each picture; infinite for other shapes or values that are not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return [float("inf")]
    return [float(value) for value in np.abs(found - expected).mean(axis=(1, 2, 3))]
