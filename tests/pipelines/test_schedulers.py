"""Every scheduler must arrive at the picture that a denoiser who knows it points to."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from PIL import Image
from ppdiffusers.models.unet_2d_condition import UNet2DConditionOutput

from ppvilg.pipelines import SCHEDULERS, build_scheduler

DETERMINISTIC = ["ddim", "pndm", "dpmsolver++", "unipc", "euler"]


def know_the_answer(pipeline, monkeypatch, answer: paddle.Tensor) -> None:
    """Makes the unet predict exactly what leads to `answer`, at whole and fractional timesteps."""
    alphas = pipeline.scheduler.alphas_cumprod.numpy().astype(np.float64)
    sigmas = np.sqrt((1 - alphas) / alphas)
    prediction_type = pipeline.scheduler.config.prediction_type

    def forward(sample, timestep, encoder_hidden_states, key_token_weights=None):
        alpha = 1 / (1 + np.interp(timestep, np.arange(len(sigmas)), sigmas) ** 2)
        signal, spread = float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))
        noise = (sample - signal * answer) / spread
        prediction = noise if prediction_type == "epsilon" else signal * noise - spread * answer
        return UNet2DConditionOutput(sample=prediction)

    monkeypatch.setattr(pipeline.unet, "forward", forward)


@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"),
    [("epsilon", "linear"), ("v_prediction", "linear"), ("v_prediction", "squaredcos_cap_v2")],
)
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_scheduler_arrives(pipeline, monkeypatch, name, prediction_type, beta_schedule):
    config = {**pipeline.scheduler.config, "prediction_type": prediction_type, "beta_schedule": beta_schedule}
    pipeline.scheduler = build_scheduler(name, config)
    answer = paddle.to_tensor(np.random.default_rng(1).standard_normal((1, 4, 8, 8), dtype=np.float32))
    know_the_answer(pipeline, monkeypatch, answer)
    latents = pipeline("三只企鹅", generator=0, num_inference_steps=10, output_type="latent").images
    assert latents.dtype == paddle.float32
    assert type(pipeline.scheduler).__name__ == SCHEDULERS[name]
    noise_left = float(1 - pipeline.scheduler.alphas_cumprod[0]) ** 0.5  # some stop at the first timestep
    np.testing.assert_allclose(latents.numpy(), answer.numpy(), atol=5 * noise_left)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_scheduler_arrives_from_an_image(pipeline, monkeypatch, name, strength):
    pipeline.scheduler = build_scheduler(name, pipeline.scheduler.config)
    image = Image.new("RGB", (16, 16), "red")
    with paddle.no_grad():
        answer = pipeline.encode_image(
            paddle.to_tensor(np.asarray(image, "float32").transpose(2, 0, 1)[None] / 127.5 - 1)
        )
    know_the_answer(pipeline, monkeypatch, answer)
    steps = []
    latents = pipeline(
        "三只企鹅",
        generator=0,
        num_inference_steps=10,
        output_type="latent",
        image=image,
        strength=strength,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: steps.append(float(timestep)),
    ).images
    assert len(set(steps)) == round(10 * strength)
    np.testing.assert_allclose(latents.numpy(), answer.numpy(), atol=0.06)


def test_any_stock_scheduler_can_be_swapped_in(pipeline):
    from ppdiffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    images = pipeline("三只企鹅", generator=0, num_inference_steps=4, output_type="np").images
    assert np.isfinite(images).all() and images.std() > 0


def test_scheduler_names(pipeline):
    built = build_scheduler("ddim", build_scheduler("euler", pipeline.scheduler.config).config)
    assert not built.config.clip_sample  # Euler's config does not say, DDIM's default would clip latents
    assert built.config.num_train_timesteps == 100
    with pytest.raises(ValueError, match="unknown scheduler 'magic', choose one of ddim"):
        build_scheduler("magic", {})


def test_pndm_refuses_an_image_with_runge_kutta_steps(pipeline):
    from ppdiffusers import PNDMScheduler

    pipeline.scheduler = PNDMScheduler(num_train_timesteps=100, skip_prk_steps=False)
    with pytest.raises(ValueError, match="skip_prk_steps=True"):
        pipeline("三只企鹅", image=Image.new("RGB", (16, 16)))
