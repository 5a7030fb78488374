"""A picture has the same bits alone, in any batch, in any thread, in a queue and among other people's drawings."""

from __future__ import annotations

import copy
import threading
import warnings

import numpy as np
import paddle
import pytest
from PIL import Image
from ppdiffusers import DDIMScheduler

from ppvilg.pipelines import SCHEDULERS, NoiseSource, build_scheduler
from ppvilg.pipelines.schedulers import Solver

PROMPTS = ["三只企鹅", "左边是一只猫", "红色的车"]
JOBS = [(PROMPTS[0], 7, 4), (PROMPTS[1], 11, 6), (PROMPTS[2], 3, 5)]  # prompt, seed, steps


def with_scheduler(pipeline, name: str, **changes):
    pipeline.scheduler = build_scheduler(name, {**pipeline.scheduler.config, **changes})
    return pipeline


def draw(pipeline, prompt, seed, steps=4, **arguments) -> np.ndarray:
    return pipeline(prompt, generator=seed, num_inference_steps=steps, output_type="np", **arguments).images


@pytest.fixture(params=list(SCHEDULERS))
def scheduled(pipeline, request):
    return with_scheduler(pipeline, request.param)


def test_alone_in_a_batch_and_in_a_queue(scheduled):
    seeds = [7, 11, 3]
    alone = [draw(scheduled, prompt, seed)[0] for prompt, seed in zip(PROMPTS, seeds)]
    assert np.array_equal(draw(scheduled, PROMPTS, seeds), alone)
    queued = scheduled.generate_queue(
        PROMPTS, batch_size=2, generator=seeds, num_inference_steps=4, output_type="np"
    ).images
    assert np.array_equal(queued, alone)
    unguided = [draw(scheduled, prompt, seed, guidance_scale=1)[0] for prompt, seed in zip(PROMPTS, seeds)]
    assert np.array_equal(draw(scheduled, PROMPTS, seeds, guidance_scale=1), unguided)


def test_in_three_threads_of_one_pipeline(scheduled):
    expected, found = [draw(scheduled, *job) for job in JOBS], {}

    def work(index):
        found[index] = draw(scheduled, *JOBS[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[index], expected[index]) for index in range(3))


def test_drawings_of_many_kinds_share_steps(pipeline, monkeypatch):
    """Other samplers, steps, guidance, sizes and beginnings at other times: each as alone."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    kinds = [
        ("ddim", {"eta": 1.0}),
        ("ddim", {}),
        ("ddpm", {"guidance_scale": [1, 3, 1, 5]}),
        ("euler", {"guidance_scale": 1}),
        ("unipc", {"height": 24}),
        ("pndm", {"image": picture, "strength": 0.7}),
        ("euler_ancestral", {"num_images_per_prompt": 2}),
    ]
    pipelines = [with_scheduler(copy.copy(pipeline), name) for name, _ in kinds]
    expected = [draw(each, PROMPTS[i % 3], i, 3 + i, **kinds[i][1]) for i, each in enumerate(pipelines)]
    rows, forward = [], pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    drawings = []
    for i, each in enumerate(pipelines):
        drawings.append(
            each.begin(PROMPTS[i % 3], generator=i, num_inference_steps=3 + i, output_type="np", **kinds[i][1])
        )
        pipeline.step(drawings)
    assert len(pipeline.preview(drawings[0])) == 1
    while not all(drawing.done for drawing in drawings):
        pipeline.step(drawings)
    for drawing, pixels in zip(drawings, expected):
        assert np.array_equal(pipeline.finish(drawing).images, pixels)
    assert len(rows) < sum(len(drawing.timesteps) for drawing in drawings) and max(rows) > 3


def test_preview_is_what_the_last_step_points_to(pipeline):
    drawing = pipeline.begin(PROMPTS[0], generator=0, num_inference_steps=4)
    assert pipeline.preview(drawing) is None
    with pytest.raises(ValueError, match="4 steps left"):
        pipeline.finish(drawing)
    while not drawing.done:
        pipeline.step([drawing])
    clean = pipeline.preview(drawing, "np")
    assert np.abs(clean - draw(pipeline, PROMPTS[0], 0)).max() < 0.02  # DDIM's last step lands on it


# ---- seeds in any form ----


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_numpy_seeds_count_in_python(pipeline, dtype):
    last = np.iinfo(dtype).max if dtype != np.int64 else 2**40
    expected = [draw(pipeline, PROMPTS[0], int(last) + i)[0] for i in range(2)]
    queued = pipeline.generate_queue(
        PROMPTS[:1] * 2, batch_size=1, generator=dtype(last), num_inference_steps=4, output_type="np"
    ).images
    assert np.array_equal(queued, expected)


def test_paddle_generators_stand_for_their_seeds():
    paddle.seed(3)
    expected = paddle.rand([2]).numpy()
    paddle.seed(3)
    one = paddle.Generator().manual_seed(7)
    assert NoiseSource(one, 2).seeds == [7, 8]
    assert np.array_equal(paddle.rand([2]).numpy(), expected)  # seeding one generator is not seeding all
    real = paddle.framework.random.Generator().manual_seed(9)
    assert NoiseSource([one, real, np.uint8(255), np.array(4)], 4).seeds == [7, 9, 255, 4]
    with pytest.raises(TypeError, match="paddle.Generator without a seed"):
        NoiseSource(paddle.Generator(), 1)
    with pytest.raises(TypeError, match="got float 7.0"):
        NoiseSource(7.0, 1)


# ---- numbers that are no longer finite ----


@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddim_takes_no_root_of_a_negative_number(zero_snr):
    """At eta 1 the direction's share is zero but for rounding, at which the stock step gives NaN."""
    stock = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=zero_snr,
    )
    black, sample = [], paddle.ones([1, 1, 1, 1])
    for steps in (4, 5, 18, 24, 40, 97, 250):
        solver = Solver(stock, steps, 1.0, NoiseSource(0, 1))
        for timestep in solver.timesteps:
            assert bool(paddle.isfinite(solver.step(sample, timestep, sample)).all()), (steps, float(timestep))
            plain = solver.scheduler
            del plain._get_variance
            black.append(not bool(paddle.isfinite(plain.step(sample, timestep, sample, eta=1.0).prev_sample).all()))
            solver = Solver(stock, steps, 1.0, NoiseSource(0, 1))
    assert any(black)  # or the stock scheduler was mended, and this is no longer needed


def test_eta_one_at_few_steps_is_a_picture(pipeline):
    pipeline.scheduler = DDIMScheduler(
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=False
    )
    for steps in range(1, 13):
        assert np.isfinite(draw(pipeline, PROMPTS[0], 1, steps, eta=1.0)).all()


def test_what_is_not_finite_is_said_and_spares_the_others(pipeline):
    def spoil(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("nan")} if step == 1 else None

    with pytest.raises(FloatingPointError, match=r"after step 2 of 4 .*DDIMScheduler, eta 0.5"):
        draw(pipeline, PROMPTS[0], 0, eta=0.5, callback_on_step_end=spoil)
    good = pipeline.begin(PROMPTS[1], generator=1, num_inference_steps=4, output_type="np")
    bad = pipeline.begin(PROMPTS[0], generator=0, num_inference_steps=4, callback_on_step_end=spoil)
    while not (good.done and bad.done):
        pipeline.step([bad, good])
    assert bad.steps_done == 2 and np.array_equal(pipeline.finish(good).images, draw(pipeline, PROMPTS[1], 1))
    with pytest.raises(FloatingPointError):
        pipeline.finish(bad)


# ---- ending early ----


def test_interrupt_ends_one_call_and_not_the_next(pipeline):
    seen = []

    def stop(caller, step, timestep, tensors):
        seen.append(step)
        caller._interrupt = True
        assert caller.interrupt

    pipeline(PROMPTS[0], generator=0, num_inference_steps=6, callback_on_step_end=stop)
    assert seen == [0] and not pipeline.interrupt
    assert np.isfinite(draw(pipeline, PROMPTS[0], 0)).all()
    drawing = pipeline.begin(PROMPTS[0], generator=0)
    drawing.interrupt()
    pipeline.step([drawing])
    assert drawing.done and drawing.steps_done == 0 and len(pipeline.finish(drawing).images) == 1


# ---- queues ----


def test_a_queue_gives_pictures_as_they_are_finished(pipeline):
    calls, forward = [], pipeline.unet.forward
    pipeline.unet.forward = lambda *arguments: calls.append(1) or forward(*arguments)
    try:
        stream = pipeline.stream_queue(PROMPTS * 2, batch_size=2, num_inference_steps=2, generator=0)
        assert not calls
        first = next(stream)
        assert len(first.images) == 2 and len(calls) == 2  # the first batch alone
        assert sum(len(result.images) for result in stream) == 4
    finally:
        del pipeline.unet.forward


def test_a_queue_finds_faults_before_it_draws(pipeline):
    with pytest.raises(ValueError, match="unknown style '水墨'"):
        pipeline.stream_queue(PROMPTS, batch_size=1, style=[None, None, "水墨"])
    with pytest.raises(ValueError, match="batches_per_turn must be a whole number from 1"):
        pipeline.stream_queue(PROMPTS, batches_per_turn=0)


# ---- schedulers that nobody tried ----


def test_untried_schedulers_and_settings_are_refused_by_name(pipeline):
    import ppdiffusers

    config, calls = pipeline.scheduler.config, []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    for name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "IPNDMScheduler", "LMSDiscreteScheduler"):
        pipeline.scheduler = getattr(ppdiffusers, name).from_config(config)
        with pytest.raises(ValueError, match=f"{name} is not one of the schedulers"):
            draw(pipeline, PROMPTS[0], 0)
    cosine = {**config, "beta_schedule": "squaredcos_cap_v2"}
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        pipeline.scheduler = getattr(ppdiffusers, name).from_config(cosine, use_karras_sigmas=True)
        with pytest.raises(ValueError, match=f"{name} gives one timestep twice at 20 steps.*use_karras_sigmas=False"):
            draw(pipeline, PROMPTS[0], 0, 20)
    assert not calls


# ---- words that the model does not know ----


def test_unknown_words_are_named(pipeline):
    with pytest.warns(UserWarning, match=r"vocabulary lacks .*text 0: 宇 航 员"):
        result = pipeline(["三只宇航员", "三只企鹅"], generator=0, num_inference_steps=1)
    assert result.unknown_words == [["宇", "航", "员"], []] and result.ignored_text == ["", ""]
    with pytest.warns(UserWarning, match="text 0: cat"):
        pipeline("a red cat", generator=0, num_inference_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline("a red car 42", generator=0, num_inference_steps=1)
