"""A picture has the same bits alone, in any batch, in any thread, in a queue and among other people's drawings."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from PIL import Image
from ppdiffusers import DDIMScheduler

from ppvilg.pipelines import SCHEDULERS, NoiseSource, build_scheduler, open_pipeline
from ppvilg.pipelines.schedulers import Solver

PROMPTS = ["三只企鹅", "左边是一只猫", "红色的车"]
JOBS = [(PROMPTS[0], 7, 3), (PROMPTS[1], 11, 3), (PROMPTS[2], 3, 3)]  # prompt, seed, steps


def with_scheduler(pipeline, name: str, **changes):
    pipeline.scheduler = build_scheduler(name, {**pipeline.scheduler.config, **changes})
    return pipeline


def draw(pipeline, prompt, seed, steps=4, **arguments) -> np.ndarray:
    return pipeline(prompt, generator=seed, num_inference_steps=steps, output_type="np", **arguments).images


@pytest.fixture(scope="module")
def opened(tiny, saved, bundle) -> dict:
    """The same model in three places."""
    found = {"memory": tiny, "streamed": open_pipeline(saved, max_resident_experts=1), "bundle": open_pipeline(bundle)}
    for each in found.values():
        each.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def expected(tiny) -> dict:
    """Scheduler -> the pictures of JOBS, each drawn alone in dygraph; filled as they are asked for."""
    return Pictures(tiny)


class Pictures(dict):
    def __init__(self, pipeline):
        super().__init__()
        self.pipeline = pipeline

    def __missing__(self, name: str) -> list[np.ndarray]:
        pipeline = with_scheduler(copy.copy(self.pipeline), name)
        self[name] = [draw(pipeline, *job)[0] for job in JOBS]
        return self[name]


def in_threads(pipeline) -> list[np.ndarray]:
    """The pictures of JOBS, each drawn by a thread of its own."""
    with ThreadPoolExecutor(len(JOBS)) as threads:
        return [drawn[0] for drawn in threads.map(lambda job: draw(pipeline, *job), JOBS)]


# An engine that chooses its kernels by the number of rows rounds otherwise in a batch than alone.
TOLERANCE = {"memory": 0, "streamed": 0, "bundle": 1 / 255}


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("place", list(TOLERANCE))
def test_a_picture_is_the_same_alone_in_a_batch_in_a_queue_and_in_threads(opened, expected, place, name):
    pipeline = with_scheduler(copy.copy(opened[place]), name)
    prompts, seeds, steps = zip(*JOBS)
    many = {"generator": list(seeds), "num_inference_steps": steps[0], "output_type": "np"}
    drawn = {
        "alone": [draw(pipeline, *job)[0] for job in JOBS],
        "batch": pipeline(list(prompts), **many).images,
        "queue": pipeline.generate_queue(list(prompts), batch_size=2, **many).images,
        "threads": in_threads(pipeline),
    }
    for way, pictures in drawn.items():
        for picture, alone in zip(pictures, expected[name]):
            assert np.abs(picture - alone).max() <= TOLERANCE[place], way


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_without_guidance_too(opened, name):
    pipeline = with_scheduler(copy.copy(opened["memory"]), name)
    seeds = [7, 11, 3]
    alone = [draw(pipeline, prompt, seed, guidance_scale=1)[0] for prompt, seed in zip(PROMPTS, seeds)]
    assert np.array_equal(draw(pipeline, PROMPTS, seeds, guidance_scale=1), alone)


def test_threads_at_different_steps(opened):
    """Drawings of one pipeline that are at different experts at one moment."""
    for place, tolerance in TOLERANCE.items():
        pipeline = opened[place]
        jobs = [(prompt, seed, 3 + index) for index, (prompt, seed, _) in enumerate(JOBS)]
        alone = [draw(pipeline, *job)[0] for job in jobs]
        with ThreadPoolExecutor(len(jobs)) as threads:
            found = list(threads.map(lambda job, pipeline=pipeline: draw(pipeline, *job)[0], jobs))
        assert np.abs(np.stack(found) - np.stack(alone)).max() <= tolerance, place


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
