"""Denoising loss per block: against the loss that trains, on the shipped model."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppvilg.diffusion import DenoisingLoss
from ppvilg.emoji.captions import held_out_prompts
from ppvilg.emoji.render import render
from ppvilg.evaluation.ablation.loss import block_edges, denoising_losses
from ppvilg.evaluation.drawing.painter import picture_seed
from ppvilg.evaluation.suites.objects import scene_of
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler
from ppvilg.pipelines.schedulers import SCHEDULERS


@pytest.fixture(scope="module")
def scenes():
    """(pictures of several shapes, their prompts)."""
    prompts = held_out_prompts("pair", 12)
    pictures = [render(scene_of(prompt, np.random.default_rng(i)))[0] for i, prompt in enumerate(prompts)]
    assert len({picture.size for picture in pictures}) > 1
    return pictures, [prompt["prompt"] for prompt in prompts]


@pytest.fixture(scope="module")
def pipeline():
    return ErnieViLG2Pipeline.from_pretrained("emoji64")


def test_equals_the_training_loss(pipeline, scenes):
    """One picture at a time through the loss that training minimises, which is written apart from this one."""
    pictures, prompts = scenes
    losses = denoising_losses(pipeline, pictures, prompts, blocks=3, seed=5, batch_size=4)
    loss, edges = DenoisingLoss(pipeline.scheduler), block_edges(1000, 3)
    assert edges == [0, 333, 667, 1000] and losses.shape == (12, 3)
    for i in (0, 5, 11):
        pixels = np.asarray(pictures[i], np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        latents = pipeline.encode_image(paddle.to_tensor(pixels))
        hidden, weights = pipeline.encode_prompt([prompts[i]])
        for block in range(3):
            rng = np.random.default_rng(picture_seed(5, i, block))
            noise = paddle.to_tensor(rng.standard_normal(latents.shape[1:], np.float32)[None])
            timestep = int(edges[block] + (i % 8 + 0.5) / 8 * (edges[block + 1] - edges[block]))
            with paddle.no_grad():
                terms = loss(
                    pipeline.unet,
                    latents,
                    noise,
                    paddle.to_tensor([timestep]),
                    encoder_hidden_states=hidden,
                    key_token_weights=weights,
                )
            assert float(terms["plain"].sum()) == pytest.approx(losses[i, block], rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_sampler_does_not_matter(pipeline, scenes, name, monkeypatch):
    pictures, prompts = scenes[0][:2], scenes[1][:2]
    losses = denoising_losses(pipeline, pictures, prompts, blocks=2)
    monkeypatch.setattr(pipeline, "scheduler", build_scheduler(name, pipeline.scheduler.config))
    np.testing.assert_array_equal(denoising_losses(pipeline, pictures, prompts, blocks=2), losses)


def test_a_wrong_prompt_costs(pipeline, scenes):
    """What the model knows of the prompt shows in the noisiest block."""
    pictures, prompts = scenes
    right = denoising_losses(pipeline, pictures, prompts, blocks=2)[:, 1].mean()
    assert right < denoising_losses(pipeline, pictures, prompts[1:] + prompts[:1], blocks=2)[:, 1].mean()


def test_pictures_and_prompts_must_pair_up(pipeline, scenes):
    with pytest.raises(ValueError, match="12 pictures and 11 prompts do not pair up"):
        denoising_losses(pipeline, scenes[0], scenes[1][1:], blocks=2)
