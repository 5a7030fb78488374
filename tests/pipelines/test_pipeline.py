"""What must hold for every picture the pipeline draws, whatever the weights."""

from __future__ import annotations

import warnings

import numpy as np
import paddle
import pytest
from PIL import Image

from ppvilg.knowledge import TextKnowledge
from ppvilg.pipelines import ErnieViLG2Pipeline, NoiseSource, build_scheduler

PROMPT = "三只企鹅"
PROMPTS = ["三只企鹅", "左边是一只猫"]


def draw(pipeline, prompt=PROMPT, **arguments) -> np.ndarray:
    """Pictures as an array (N, H, W, 3)."""
    return pipeline(prompt, **{"generator": 0, "output_type": "np", **arguments}).images


def picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def unet_calls(pipeline, monkeypatch) -> list[dict]:
    """What the unet is called with, call by call."""
    calls, forward = [], pipeline.unet.forward

    def record(sample, timestep, encoder_hidden_states, key_token_weights=None):
        calls.append(
            {
                "batch": sample.shape[0],
                "timestep": timestep,
                "hidden": encoder_hidden_states.numpy(),
                "weights": key_token_weights.numpy(),
            }
        )
        return forward(sample, timestep, encoder_hidden_states, key_token_weights)

    monkeypatch.setattr(pipeline.unet, "forward", record)
    return calls


# ---- randomness ----


def test_same_seed_same_pixels_and_other_seed_other_pixels(pipeline):
    first = draw(pipeline)
    assert np.array_equal(draw(pipeline), first)
    assert np.abs(draw(pipeline, generator=1) - first).max() > 0.01


def test_without_generator_paddle_seed_decides(pipeline):
    paddle.seed(3)
    first, second = draw(pipeline, generator=None), draw(pipeline, generator=None)
    paddle.seed(3)
    assert np.array_equal(draw(pipeline, generator=None), first)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "ddpm", "euler_ancestral"])
def test_drawing_leaves_paddles_generator_alone(pipeline, scheduler):
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler.config)
    paddle.seed(5)
    expected = paddle.rand([3]).numpy()
    paddle.seed(5)
    draw(pipeline)
    assert np.array_equal(paddle.rand([3]).numpy(), expected)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_batch_with_a_list_of_generators_equals_single_pictures(pipeline, eta):
    batch = draw(pipeline, PROMPTS, generator=[7, 11], eta=eta)
    single = [draw(pipeline, prompt, generator=seed, eta=eta)[0] for prompt, seed in zip(PROMPTS, [7, 11])]
    np.testing.assert_allclose(batch, single, atol=1e-5)


def test_picture_i_of_a_seed_is_the_first_of_seed_plus_i(pipeline):
    batch = draw(pipeline, PROMPTS, generator=20, num_images_per_prompt=2)
    for i, prompt in enumerate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]):
        np.testing.assert_allclose(batch[i], draw(pipeline, prompt, generator=20 + i)[0], atol=1e-5)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_ancestral"])
def test_schedulers_that_draw_noise_repeat(pipeline, scheduler):
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler.config)
    first = draw(pipeline)
    paddle.seed(99)
    assert np.array_equal(draw(pipeline), first)


def test_numpy_generator_is_drawn_from_in_turn():
    source = NoiseSource(np.random.default_rng(4), 2)
    expected = np.random.default_rng(4).standard_normal((2, 3), dtype=np.float32)
    assert np.array_equal(source.normal([3]).numpy(), expected)
    assert source.seeds == [None, None]


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        ([1, 2, 3], ValueError, "3 entries for 2"),
        (-1, ValueError, "negative"),
        ("state", TypeError, "must be a seed .*got str 'state'"),
        (True, TypeError, "must be a seed"),
    ],
)
def test_wrong_generator(generator, error, message):
    with pytest.raises(error, match=message):
        NoiseSource(generator, 2)


# ---- guidance and experts ----


def test_guidance_of_one_is_no_guidance(pipeline, unet_calls):
    plain = draw(pipeline, guidance_scale=1, negative_prompt="红色")
    assert [call["batch"] for call in unet_calls] == [1, 1, 1]
    np.testing.assert_allclose(draw(pipeline, guidance_scale=1 + 1e-6), plain, atol=1e-4)
    assert np.abs(draw(pipeline, guidance_scale=5) - plain).max() > 0.01


def test_equal_guidance_scales_equal_one_number(pipeline):
    assert np.array_equal(draw(pipeline, guidance_scale=[3.0] * 4), draw(pipeline, guidance_scale=3.0))


def test_each_expert_has_its_own_guidance_scale(pipeline, unet_calls):
    draw(pipeline, guidance_scale=[1, 1, 1, 5], num_inference_steps=4)  # timesteps 75, 50, 25, 0
    assert [call["batch"] for call in unet_calls] == [2, 1, 1, 1]


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmsolver++"])
def test_only_the_experts_of_the_visited_timesteps_run(pipeline, monkeypatch, scheduler):
    called = []
    for k, expert in enumerate(pipeline.unet.experts):
        forward = expert.forward
        monkeypatch.setattr(expert, "forward", lambda *a, k=k, f=forward, **b: called.append(k) or f(*a, **b))
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler.config)
    draw(pipeline, num_inference_steps=8)
    own = build_scheduler(scheduler, pipeline.scheduler.config)
    own.set_timesteps(8)
    assert called == [min(int(t) // 25, 3) for t in own.timesteps.numpy()]
    assert len(set(called)) == 4
    called.clear()
    draw(pipeline, num_inference_steps=8, image=picture(), strength=0.25)
    assert set(called) == {0}


# ---- prompts ----


def test_style_is_added_to_the_prompt(pipeline):
    styled = draw(pipeline, style="水彩")
    assert np.array_equal(styled, draw(pipeline, PROMPT + "，水彩"))
    assert np.abs(styled - draw(pipeline)).max() > 1e-3
    assert np.array_equal(draw(pipeline, style="探索无限"), draw(pipeline))
    each = draw(pipeline, [PROMPT, PROMPT], style=["水彩", None])
    np.testing.assert_allclose(each[0], styled[0], atol=1e-5)


def test_key_token_weights_reach_the_denoiser_and_spare_the_negative_prompt(pipeline, unet_calls):
    draw(pipeline, negative_prompt="红色出租车")
    negative, positive = unet_calls[0]["weights"]
    expected = TextKnowledge(pipeline.tokenizer, 16, key_token_weight=0.5).encode([PROMPT]).key_token_weights[0]
    assert np.array_equal(positive, expected) and positive.max() == 1.5
    assert np.array_equal(negative, np.ones(16, dtype=np.float32))


def test_unconditional_prompt_is_the_empty_text(pipeline, unet_calls):
    draw(pipeline)
    empty = pipeline.encode_prompt([""], apply=False)
    np.testing.assert_allclose(unet_calls[0]["hidden"][0], empty.hidden_states[0].numpy(), atol=1e-6)
    assert np.array_equal(draw(pipeline, negative_prompt=""), draw(pipeline))
    assert not np.array_equal(draw(pipeline, negative_prompt="红色"), draw(pipeline))


def test_config_switches_marks_off(pipeline, unet_calls):
    pipeline.register_to_config(mark=False, key_token_weight=0.0)
    draw(pipeline)
    plain = pipeline.encode_prompt([PROMPT], apply=False)
    np.testing.assert_allclose(unet_calls[0]["hidden"][1], plain.hidden_states[0].numpy(), atol=1e-6)


def test_long_prompt_warns_with_the_part_cut_off(pipeline):
    with pytest.warns(UserWarning, match="一棵松树"):
        images = draw(pipeline, "左边是一只猫，右边是一棵松树，蓝色背景上的一辆红色出租车")
    assert images.shape == (1, 16, 16, 3)


def test_an_ordinary_call_warns_of_nothing(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = draw(pipeline, style="水彩", image=picture(), mask_image=Image.new("L", (16, 16), 255))
    assert images.shape == (1, 16, 16, 3)


# ---- sizes and outputs ----


def test_size_comes_from_the_unet_or_from_the_call(pipeline):
    assert pipeline.size_multiple == 4
    assert draw(pipeline).shape == (1, 16, 16, 3)
    assert draw(pipeline, height=24, width=16).shape == (1, 24, 16, 3)


def test_output_types_agree(pipeline):
    array = draw(pipeline)
    tensor = pipeline(PROMPT, generator=0, output_type="pd").images
    latents = pipeline(PROMPT, generator=0, output_type="latent").images
    (images,) = pipeline(PROMPT, generator=0, return_dict=False)
    assert np.array_equal(tensor.transpose([0, 2, 3, 1]).numpy(), array)
    assert latents.shape == [1, 4, 8, 8]
    assert np.array_equal(pipeline.decode_latents(latents).numpy(), tensor.numpy())
    assert np.array_equal(np.asarray(images[0]), np.round(array[0] * 255).astype(np.uint8))


def test_given_latents_are_the_noise(pipeline):
    noise = NoiseSource(8, 1).normal([4, 8, 8])
    assert np.array_equal(draw(pipeline, latents=noise, generator=1), draw(pipeline, generator=8))


def test_callback_sees_every_step_and_may_change_the_latents(pipeline):
    seen = []

    def replace(caller, step, timestep, tensors):
        assert caller is pipeline
        seen.append((step, int(timestep), tensors["latents"].shape))
        return {"latents": paddle.zeros_like(tensors["latents"])}

    images = draw(pipeline, callback_on_step_end=replace)
    assert seen == [(i, timestep, [1, 4, 8, 8]) for i, timestep in enumerate([66, 33, 0])]
    blank = pipeline.decode_latents(paddle.zeros([1, 4, 8, 8])).transpose([0, 2, 3, 1]).numpy()
    assert np.array_equal(images, blank)
    assert np.array_equal(draw(pipeline, callback_on_step_end=lambda *_: None), draw(pipeline))


def test_training_layers_draw_as_in_evaluation_and_go_on_training(pipeline):
    expected = draw(pipeline)
    pipeline.text_encoder.train()
    try:
        assert np.array_equal(draw(pipeline), expected)
        assert pipeline.text_encoder.training and pipeline.text_encoder.encoder.training
        assert not pipeline.unet.training
    finally:
        pipeline.text_encoder.eval()


# ---- image to image, inpainting ----


def reconstruction(pipeline, image) -> np.ndarray:
    pixels = paddle.to_tensor(np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    with paddle.no_grad():
        return pipeline.decode_latents(pipeline.encode_image(pixels)).transpose([0, 2, 3, 1]).numpy()


def test_strength_leads_from_the_reconstruction_to_a_new_picture(pipeline):
    image = picture()
    same = reconstruction(pipeline, image)
    np.testing.assert_allclose(draw(pipeline, image=image, strength=0), same, atol=1e-5)
    distances = [
        np.abs(draw(pipeline, image=image, strength=strength, num_inference_steps=20) - same).mean()
        for strength in (0.05, 0.5, 1)
    ]
    assert distances[0] < 0.3 * distances[1] and distances[1] < distances[2]
    assert np.array_equal(draw(pipeline, image=image, strength=1), draw(pipeline))


def test_image_may_be_a_picture_an_array_or_a_tensor(pipeline):
    image = picture(size=(16, 24))
    array = np.asarray(image, dtype=np.float32) / 255
    first = draw(pipeline, image=image)
    assert first.shape == (1, 24, 16, 3)
    assert np.array_equal(draw(pipeline, image=array), first)
    assert np.array_equal(draw(pipeline, image=paddle.to_tensor(array.transpose(2, 0, 1))), first)
    both = draw(pipeline, PROMPTS, image=[image, picture(1, (16, 24))])
    np.testing.assert_allclose(both[0], first[0], atol=1e-5)
    assert draw(pipeline, image=image, height=16, width=16).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("strength", [None, 0.5])
@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpmsolver++", "unipc", "euler"])
def test_inpainting_keeps_the_unmasked_pixels(pipeline, scheduler, strength):
    pipeline.scheduler = build_scheduler(scheduler, pipeline.scheduler.config)
    image, mask = picture(), np.zeros((16, 16), dtype=np.uint8)
    mask[3:9, 5:12] = 255
    arguments = {"image": image, "mask_image": Image.fromarray(mask), "strength": strength, "generator": 0}
    result = np.asarray(pipeline(PROMPT, num_inference_steps=6, **arguments).images[0])
    assert np.array_equal(result[mask == 0], np.asarray(image)[mask == 0])
    assert (result[mask > 0] != np.asarray(image)[mask > 0]).mean() > 0.5
    latents = pipeline(PROMPT, num_inference_steps=6, output_type="latent", **arguments).images
    kept = pipeline.encode_image(paddle.to_tensor(np.asarray(image, "float32").transpose(2, 0, 1)[None] / 127.5 - 1))
    np.testing.assert_allclose(latents[:, :, 6:].numpy(), kept[:, :, 6:].numpy(), atol=1e-5)


# ---- wrong input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 18}, "height=18 is not a multiple of 4; the nearest valid: 16 and 20"),
        ({"width": 2}, "width=2 is not a multiple of 4; the nearest valid: 4"),
        ({"width": 16.0}, "width=16.0"),
        ({"style": "水墨"}, "unknown style '水墨'.*水彩"),
        ({"style": ["水彩", "油画"]}, "style has 2 entries for 1 prompts"),
        ({"negative_prompt": [3]}, "negative_prompt must be a text"),
        ({"prompt": []}, "prompt must be"),
        ({"prompt": [PROMPT, None]}, "prompt must be"),
        ({"guidance_scale": [1, 2]}, "2 numbers for 4 experts"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"num_inference_steps": 0}, "from 1 to 100, got 0"),
        ({"num_inference_steps": 101}, "from 1 to 100, got 101"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"output_type": "jpeg"}, "pil, np, pd, latent"),
        ({"strength": 0.5}, "need an image"),
        ({"image": picture(), "strength": 1.5}, "strength must be"),
        ({"image": picture(size=(18, 3))}, "image of 18x3 pixels is smaller than 4x4"),
        ({"image": [picture(), picture(), picture()]}, "must be one picture, got 3"),
        ({"image": np.full((16, 16, 3), 255, dtype=np.uint8)}, r"must be in \[0, 1\]"),
        ({"image": picture(), "latents": paddle.zeros([1, 4, 8, 8])}, "not both"),
        ({"latents": paddle.zeros([1, 4, 4, 4])}, "latents must have shape"),
    ],
)
def test_wrong_arguments(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline, **arguments)


def test_scheduler_with_other_timesteps_is_refused(pipeline):
    pipeline.scheduler = type(pipeline.scheduler)(num_train_timesteps=1000)
    with pytest.raises(ValueError, match="scheduler has num_train_timesteps=1000, unet 100"):
        draw(pipeline)


def test_components_that_do_not_fit_are_refused(components):
    with pytest.raises(ValueError, match="max_length=64, text_encoder has 32 positions"):
        ErnieViLG2Pipeline(**components, max_length=64)


def test_eta_is_refused_where_it_means_nothing(pipeline):
    pipeline.scheduler = build_scheduler("euler", pipeline.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler takes no eta"):
        draw(pipeline, eta=0.5)


def test_the_models_own_eta_is_used_saved_and_no_hindrance_to_other_schedulers(pipeline, tmp_path):
    expected, without = draw(pipeline, eta=1.0), draw(pipeline)
    pipeline.register_to_config(default_eta=1.0)
    assert np.array_equal(draw(pipeline), expected)
    assert np.array_equal(draw(pipeline, eta=0.0), without) and not np.array_equal(without, expected)
    pipeline.save_pretrained(tmp_path)
    assert np.array_equal(draw(ErnieViLG2Pipeline.from_pretrained(tmp_path)), expected)
    pipeline.scheduler = build_scheduler("euler", pipeline.scheduler.config)
    assert np.isfinite(draw(pipeline)).all()


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_out_of_range(pipeline, eta):
    with pytest.raises(ValueError, match="eta must be from 0"):
        draw(pipeline, eta=eta)
