"""What a step of the denoiser learns from: knowledge and its switches, dropout of captions, experts, validation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from engine_tiny import newest

from ppvilg.data import ObjectBox, sample_rng
from ppvilg.engine import CheckpointStore, Run, Trainer, builder
from ppvilg.engine.stages import denoiser
from ppvilg.engine.stages.denoiser import DenoiserStage
from ppvilg.models import use_tile_upsampling

KNOWLEDGE_OFF = (
    "knowledge.text.enabled=false",
    "knowledge.vision.loss.enabled=false",
    "knowledge.vision.completion.enabled=false",
    "knowledge.vision.replacement.enabled=false",
)
NO_DROPOUT = (
    "model.text_encoder.config.hidden_dropout_prob=0.0",
    "model.text_encoder.config.attention_probs_dropout_prob=0.0",
)


@pytest.fixture(scope="module")
def prepare(make_recipe, finished, tmp_path_factory):
    """prepare("a.b=value", ...) -> Run over the finished autoencoder, ready to build stages."""

    def build(*overrides) -> Run:
        output = tmp_path_factory.mktemp("prepared") / "out"
        for name in ("vae", "cache", "base", "tokenizer"):
            shutil.copytree(finished / name, output / name)
        run = Run(make_recipe(output, *overrides))
        run.prepare_denoising()
        return run

    return build


@pytest.fixture(scope="module")
def run(prepare):
    return prepare()


def build_stage(run, name="base") -> DenoiserStage:
    return DenoiserStage(run, name, run.output / name, run.output / "base" if name == "experts" else None)


def build_trainer(run, name, folder) -> Trainer:
    stage = build_stage(run, name)
    return Trainer(stage, CheckpointStore(folder / "checkpoints", "any"), folder / "logs", run.recipe.seed)


def test_labels_of_another_language_and_doubtful_objects_by_the_recipe(make_recipe, tmp_path):
    settings = ("knowledge.vision.synonyms={cat: [猫, 猫咪], dog: [狗]}", "knowledge.vision.min_score=0.3")
    knowledge = builder.build_visual_knowledge(make_recipe(tmp_path / "out", *settings))
    objects = [ObjectBox(label, (0, 0, 8, 8), score) for label, score in (("cat", 0.4), ("dog", 0.4), ("fish", 0.2))]
    draw = np.random.default_rng(0)
    assert knowledge.choose_caption({"zh": "一只猫咪"}, objects, draw, marks=False)[0] == "一只猫咪，狗"
    assert knowledge.choose_caption({"en": "a cat"}, objects, draw, marks=False)[0] == "a cat, dog"
    assert knowledge.key_objects(objects, "一只猫咪") == objects[:1]


# ---- knowledge off is plain latent diffusion


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_without_knowledge_a_step_is_plain_latent_diffusion_bit_for_bit(prepare, prediction_type):
    """Loss and every gradient against the textbook step, written out over stock components with the same weights."""
    from paddlenlp.transformers import ErnieModel
    from ppdiffusers import DDPMScheduler, UNet2DConditionModel

    off = prepare(*KNOWLEDGE_OFF, *NO_DROPOUT, "train.base.caption_dropout=0.0",
                  f"model.scheduler.prediction_type={prediction_type}")
    stage = build_stage(off)
    batch = next(stage.batches(2))
    assert batch.loss_weights is None and batch.key_token_weights is None
    terms, _ = stage.losses(batch, 2, slice(None))
    terms["denoising"].mean().backward()

    unet = UNet2DConditionModel(**stage.unet.config.unet)
    unet.set_state_dict(stage.unet.experts[0].state_dict())
    use_tile_upsampling(unet)  # the same values; stock nearest upsampling sums its gradients in another order
    text_encoder = ErnieModel(stage.text_encoder.config)
    text_encoder.set_state_dict(stage.text_encoder.state_dict())
    records = [off.training_latents.records[i] for i in batch.indices]
    tokens = off.conditioning.tokenizer([r.captions["zh"] for r in records], padding="max_length", max_length=24)
    assert batch.input_ids.tolist() == tokens["input_ids"]
    latents, noise, timesteps = map(paddle.to_tensor, (batch.latents, batch.noise, batch.timesteps))
    alphas = np.asarray(DDPMScheduler(num_train_timesteps=90).alphas_cumprod, np.float64)[batch.timesteps]
    signal, sigma = (paddle.to_tensor(np.sqrt(share).astype(np.float32)).reshape([-1, 1, 1, 1])
                     for share in (alphas, 1 - alphas))
    target = noise if prediction_type == "epsilon" else signal * noise - sigma * latents
    hidden = text_encoder(paddle.to_tensor(tokens["input_ids"]))[0]
    prediction = unet(signal * latents + sigma * noise, timesteps, encoder_hidden_states=hidden).sample
    loss = (prediction - target).square().mean(axis=[1, 2, 3])
    loss.mean().backward()

    assert terms["denoising"].numpy().tobytes() == loss.numpy().tobytes()
    stock = {**{f"unet.experts.0.{name}": p for name, p in unet.named_parameters()},
             **{f"text_encoder.{name}": p for name, p in text_encoder.named_parameters()}}
    compared = 0
    for network, layer in stage.networks.items():
        for name, parameter in layer.named_parameters():
            expected = stock[f"{network}.{name}"].grad
            if expected is None:  # the pooler of ERNIE feeds nothing
                assert parameter.grad is None, name
            else:
                assert parameter.grad.numpy().tobytes() == expected.numpy().tobytes(), name
                compared += 1
    assert compared > 50


def test_each_switch_changes_only_its_own_part(prepare):
    """The same samples, noise and timesteps whatever is on; weights and captions follow their switches."""
    on = next(build_stage(prepare("knowledge.text.probability=1.0")).batches(0))
    text_off = next(build_stage(prepare("knowledge.text.enabled=false")).batches(0))
    loss_off = next(build_stage(prepare("knowledge.text.probability=1.0", KNOWLEDGE_OFF[1])).batches(0))
    for other in (text_off, loss_off):
        for name in ("indices", "latents", "noise", "timesteps"):
            assert getattr(on, name).tobytes() == getattr(other, name).tobytes(), name
    assert on.key_token_weights is not None and text_off.key_token_weights is None
    assert on.loss_weights is not None and loss_off.loss_weights is None
    assert text_off.loss_weights.tobytes() == on.loss_weights.tobytes()  # the same captions were drawn
    assert loss_off.input_ids.tobytes() == on.input_ids.tobytes()


def test_key_tokens_weigh_more_and_objects_cost_more(run):
    batch = next(build_stage(run).batches(0))
    weights = np.unique(batch.key_token_weights)
    assert weights.tolist() == pytest.approx([1.0, 1.01])
    assert batch.loss_weights.shape == (4, 1, *batch.latents.shape[2:])
    assert np.unique(batch.loss_weights).tolist() == pytest.approx([1.0, 1.1])


# ---- captions


def drawn_texts(run, count=600, dropout=0.0, seed=0):
    """Decoded texts of one record drawn many times."""
    record = replace(run.training_latents.records[1], captions={"zh": "红色背景上的蓝色方块"})
    rngs = [sample_rng(seed, step, 1) for step in range(count)]
    ids, weights, _ = run.conditioning.training([record] * count, rngs, (16, 16), (2, 2), dropout)
    tokenizer = run.conditioning.tokenizer
    special = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    return [tokenizer.convert_ids_to_tokens([i for i in row if i not in special]) for row in ids], weights


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6, 1.0])
def test_the_share_of_dropped_captions(run, dropout):
    texts, _ = drawn_texts(run, dropout=dropout)
    share = np.mean([not text for text in texts])
    assert abs(share - dropout) <= 4 * np.sqrt(dropout * (1 - dropout) / len(texts))


def test_the_share_of_captions_with_textual_knowledge(run):
    texts, weights = drawn_texts(run)
    marked = np.array(["[n]" in text for text in texts])
    assert abs(marked.mean() - 0.5) < 0.09
    assert (weights[marked].max(axis=1) > 1).all()
    assert (weights[~marked] == 1).all()


def test_what_is_drawn_depends_on_seed_step_and_sample_only(run):
    assert drawn_texts(run, 50, 0.3)[0] == drawn_texts(run, 50, 0.3)[0]
    assert drawn_texts(run, 50, 0.3)[0] != drawn_texts(run, 50, 0.3, seed=1)[0]


# ---- experts


def test_a_step_moves_one_expert_and_its_moments(run, tmp_path):
    trainer = build_trainer(run, "experts", tmp_path)
    trainer.resume()
    trainer._reset_window()
    batches = trainer.stage.batches(0)
    for step in range(4):
        before = trainer.state()
        trainer.run_step(next(batches), step)
        after = trainer.state()
        for name in ("net", "optimizer"):
            changed = {key.split("experts.")[1].split(".")[0] for key in before[name]
                       if before[name][key].tobytes() != after[name][key].tobytes()}
            assert changed == {str(step % 3)}, (step, name)


def test_timesteps_of_a_step_lie_in_its_experts_block(run):
    experts, base = build_stage(run, "experts"), build_stage(run)
    for step, batch in zip(range(6), experts.batches(0)):
        low = 30 * (step % 3)
        assert ((batch.timesteps >= low) & (batch.timesteps < low + 30)).all()
    seen = np.concatenate([batch.timesteps for _, batch in zip(range(12), base.batches(0))])
    assert len(np.unique(seen // 30)) == 3


def test_experts_leave_the_text_encoder_alone(run, tmp_path):
    trainer = build_trainer(run, "experts", tmp_path)
    trainer.resume()
    trainer._reset_window()
    encoder = trainer.stage.text_encoder
    before = {name: p.numpy() for name, p in encoder.named_parameters()}
    trainer.run_step(next(trainer.stage.batches(0)), 0)
    assert list(trainer.stage.networks) == ["unet"] and not encoder.training
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is None and parameter.numpy().tobytes() == before[name].tobytes(), name


def test_the_base_stage_trains_the_text_encoder_too(finished):
    state = newest(finished, "base")
    moved = [name for name, value in state["optimizer"].items()
             if name.startswith("moment1/text_encoder.") and np.abs(value).max() > 0]
    assert any("embeddings.word_embeddings" in name for name in moved) and len(moved) > 10


def test_a_run_can_train_the_text_encoder_with_the_experts_or_not_with_the_base(prepare):
    both = prepare("train.base.train_text_encoder=false", "train.experts.train_text_encoder=true")
    assert list(build_stage(both).networks) == ["unet"]
    assert list(build_stage(both, "experts").networks) == ["unet", "text_encoder"]


# ---- validation


def test_validation_is_the_same_every_time(run):
    stage = build_stage(run)
    paddle.seed(1)
    one = stage.validate()
    paddle.seed(2)
    np.random.seed(3)
    assert stage.validate() == one
    assert set(one) == {"loss", "loss/expert_00", "loss/expert_01", "loss/expert_02"}
    assert one["loss"] == pytest.approx(np.mean([one[f"loss/expert_{k:02d}"] for k in range(3)]))
    assert stage.unet.training and stage.text_encoder.training


def test_experts_start_from_the_loss_of_their_base(finished):
    """Step 0 of the experts and the end of the base are the same denoiser under the same measure."""
    def validations(stage, step):
        lines = [json.loads(line) for line in (finished / "logs" / f"{stage}.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k.startswith("validation/")} for line in lines
                if line["step"] == step and "validation/loss" in line]

    (base,), (experts,) = validations("base", 4), validations("experts", 0)
    assert base.keys() == experts.keys() and len(base) == 4
    for name, value in base.items():
        assert experts[name] == pytest.approx(value, rel=1e-5), name


def test_logs_say_how_it_goes_per_expert(finished):
    lines = [json.loads(line) for line in (finished / "logs" / "experts.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 7]
    for key in ("loss", "denoising", "plain", "gradient_norm", "samples_per_second", "reader_seconds_per_step",
                "memory_mib", "loss/expert_00", "loss/expert_01"):
        assert steps[0][key] > 0 or key == "reader_seconds_per_step", key
    assert "loss/expert_02" not in steps[0] and "loss/expert_02" in steps[1]
    pauses = [line["step"] for line in lines if line.get("checkpoint_pause_seconds", 0.0) > 0.0]
    assert pauses == [2, 4, 6, 7]
    assert [file.name for file in (finished / "logs" / "visualdl").iterdir()] == ["vdlrecords.run.log"]


def test_pictures_are_drawn_without_dropout(run, monkeypatch):
    """Every network is in evaluation meanwhile, and the stage trains on afterwards."""
    seen = []

    def draw(components, settings):
        seen.append([components[name].training for name in ("unet", "text_encoder", "vae")])
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(denoiser, "draw_prompts", draw)
    run.recipe.sample._set_flag("readonly", False)
    run.recipe.sample.prompts = ["红色背景"]
    try:
        stage = build_stage(run)
        assert stage.draw(1).shape == (2, 2, 3)
    finally:
        run.recipe.sample.prompts = []
    assert seen == [[False, False, False]]
    assert stage.unet.training and stage.text_encoder.training


def test_how_the_recipe_samples_goes_into_the_pipeline(run):
    run.recipe.sample._set_flag("readonly", False)
    run.recipe.sample.guidance_scale, run.recipe.sample.eta = 1.5, 0.5
    try:
        components = build_stage(run).components()
    finally:
        run.recipe.sample.guidance_scale, run.recipe.sample.eta = 3.0, 0.0
    assert components["default_guidance_scale"] == 1.5 and components["default_eta"] == 0.5


# ---- latents


def test_latents_made_on_the_way_are_those_of_the_cache(run, prepare, monkeypatch):
    """The posterior's mean when the draw is zero: the same samples in the same order, encoded by the same network."""

    uncached = build_stage(prepare("data.cache_latents=false"))
    real = denoiser.sample_rng

    def without_noise(seed, step, index):
        zeros = SimpleNamespace(standard_normal=lambda shape: np.zeros(shape))
        return zeros if seed == uncached.recipe.seed + 1 else real(seed, step, index)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "sample_rng", without_noise)
        exact = [batch for _, batch in zip(range(3), uncached.batches(0))]
    drawn = next(uncached.batches(0))
    for one, other in zip(build_stage(run).batches(0), exact):
        np.testing.assert_allclose(one.latents, other.latents, rtol=1e-3, atol=1e-6)  # float16 on disk
        for name in ("indices", "noise", "timesteps", "input_ids", "key_token_weights", "loss_weights"):
            assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    assert np.abs(drawn.latents - exact[0].latents).max() > 1e-3


def test_cached_latents_have_unit_variance(run):
    cache = run.training_latents
    samples = [cache.latents(int(cache.buckets[i]), np.array([i])) for i in range(len(cache))]
    values = np.concatenate([latents.reshape(-1) for latents in samples])
    assert values.std() == pytest.approx(1.0, rel=0.2)
