"""Denoising loss of a pipeline on real scenes per block of timesteps, the same blocks whatever its experts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from PIL import Image

from ppvilg.data import in_batches

from ..drawing.painter import picture_seed

TIMESTEPS_PER_BLOCK = 8


def block_edges(num_train_timesteps: int, blocks: int) -> list[int]:
    """Edges of `blocks` equal parts of the timesteps, from low to high noise."""
    return [round(num_train_timesteps * i / blocks) for i in range(blocks + 1)]


@paddle.no_grad()
def denoising_losses(
    pipeline, pictures: Sequence[Image.Image], prompts: Sequence[str], blocks: int, seed: int = 0, batch_size: int = 32
) -> np.ndarray:
    """Mean squared error (N, blocks) of the prediction for each picture, given its prompt, once in each block.

    Picture i meets block k at one of eight fixed timesteps and with noise of (seed, i, k): models of one latent space
    are compared on the same tasks. Latents are the means of the autoencoder's posterior. ValueError: pictures and
    prompts do not pair up.
    """
    if len(pictures) != len(prompts) or not pictures:
        raise ValueError(f"{len(pictures)} pictures and {len(prompts)} prompts do not pair up")
    edges = block_edges(pipeline.scheduler.config.num_train_timesteps, blocks)
    losses = np.zeros((len(pictures), blocks))
    for part in in_batches(range(len(pictures)), lambda i: pictures[i].size, batch_size):
        pixels = np.stack([np.asarray(pictures[i].convert("RGB")) for i in part]).transpose(0, 3, 1, 2)
        latents = pipeline.encode_image(paddle.to_tensor(pixels.astype(np.float32) / 127.5 - 1))  # (N, C, h, w)
        conditioning = pipeline.encode_prompt([prompts[i] for i in part])
        for block, (low, high) in enumerate(zip(edges, edges[1:])):
            place = (np.asarray(part) % TIMESTEPS_PER_BLOCK + 0.5) / TIMESTEPS_PER_BLOCK
            timesteps = paddle.to_tensor((low + place * (high - low)).astype(np.int64))  # (N,)
            seeds = [picture_seed(seed, i, block) for i in part]
            drawn = [np.random.default_rng(s).standard_normal(latents.shape[1:], np.float32) for s in seeds]
            noise = paddle.to_tensor(np.stack(drawn))  # (N, C, h, w)
            losses[part, block] = _error(pipeline, latents, noise, timesteps, conditioning).numpy()
    return losses


def _error(pipeline, latents, noise, timesteps, conditioning) -> paddle.Tensor:
    """Squared error per sample (N,) of what the model predicts at `timesteps` (N,)."""
    # By hand: add_noise and get_velocity of some samplers are missing or want timesteps of a run first.
    alphas_cumprod = pipeline.scheduler.alphas_cumprod.astype("float32")
    signal = alphas_cumprod.gather(timesteps).reshape([-1, 1, 1, 1])  # (N, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise  # (N, C, h, w)
    targets = {
        "epsilon": noise,
        "sample": latents,
        "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * latents,
    }
    target = targets[pipeline.scheduler.config.prediction_type]  # (N, C, h, w)
    prediction = pipeline.unet(noisy.cast(pipeline.unet.dtype), timesteps, *conditioning).sample  # (N, C, h, w)
    return (prediction.cast("float32") - target).square().mean(axis=[1, 2, 3])  # (N,)
