"""What a step of the denoiser learns from: knowledge and its switches, dropout of captions, experts, validation."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from engine_tiny import newest

from ppvilg.data import ObjectBox, sample_rng
from ppvilg.engine import CheckpointStore, Run, Trainer, builder
from ppvilg.engine.caches.latents import latents_of
from ppvilg.engine.stages import denoiser
from ppvilg.engine.stages.conditioning import normal_noise
from ppvilg.engine.stages.denoiser import DenoiserData, DenoiserStage
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


@dataclass
class Prepared:
    """A recipe, its output, and what stages base and experts learn from."""

    recipe: object
    output: Path
    data: DenoiserData


@pytest.fixture(scope="module")
def prepare(make_recipe, finished, tmp_path_factory):
    """prepare("a.b=value", ...) -> `Prepared` over the finished autoencoder."""

    def build(*overrides) -> Prepared:
        output = tmp_path_factory.mktemp("prepared") / "out"
        for name in ("vae", "cache", "base", "tokenizer"):
            shutil.copytree(finished / name, output / name)
        recipe = make_recipe(output, *overrides)
        return Prepared(recipe, output, Run(recipe).prepare_denoising())

    return build


@pytest.fixture(scope="module")
def run(prepare):
    return prepare()


def build_stage(run, name="base") -> DenoiserStage:
    base = run.output / "base" if name == "experts" else None
    return DenoiserStage(run.recipe, run.data, name, run.output / name, base)


def build_trainer(run, name, folder) -> Trainer:
    stage = build_stage(run, name)
    return Trainer(stage, CheckpointStore(folder / "checkpoints"), folder / "logs", run.recipe.seed)


def test_labels_of_another_language_and_doubtful_objects_by_the_recipe(make_recipe, tmp_path):
    settings = ("knowledge.vision.synonyms={cat: [猫, 猫咪], dog: [狗]}", "knowledge.vision.min_score=0.3")
    knowledge = builder.build_visual_knowledge(make_recipe(tmp_path / "out", *settings))
    objects = [ObjectBox(label, (0, 0, 8, 8), score) for label, score in (("cat", 0.4), ("dog", 0.4), ("fish", 0.2))]
    draw = np.random.default_rng(0)
    assert knowledge.choose_caption({"zh": "一只猫咪"}, objects, draw, marks=False)[0] == "一只猫咪，狗"
    assert knowledge.choose_caption({"en": "a cat"}, objects, draw, marks=False)[0] == "a cat, dog"
    assert knowledge.key_objects(objects, "一只猫咪") == objects[:1]


def array(batch, name) -> np.ndarray | None:
    """What a pass holds under a name."""
    if name in ("indices", "timesteps"):
        return getattr(batch, name)
    return batch.loaded.latents if name == "latents" else batch.loaded.finished.get(name)


def same(one, other, name) -> bool:
    return array(one, name).tobytes() == array(other, name).tobytes()


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
    assert batch.loaded.finished.keys() == {"input_ids", "noise"}
    terms, _ = stage.losses(batch, 2)
    terms["denoising"].mean().backward()

    unet = UNet2DConditionModel(**stage.unet.config.unet)
    unet.set_state_dict(stage.unet.experts[0].state_dict())
    use_tile_upsampling(unet)  # the same values; stock nearest upsampling sums its gradients in another order
    text_encoder = ErnieModel(stage.text_encoder.config)
    text_encoder.set_state_dict(stage.text_encoder.state_dict())
    records = [off.data.training_latents.records[i] for i in batch.indices]
    tokens = off.data.conditioning.tokenizer([r.captions["zh"] for r in records], padding="max_length", max_length=24)
    assert array(batch, "input_ids").tolist() == tokens["input_ids"]
    latents, noise, timesteps = stage.latents(batch), batch.tensor("noise"), paddle.to_tensor(batch.timesteps)
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
            assert array(on, name).tobytes() == array(other, name).tobytes(), name
    assert array(on, "key_token_weights") is not None and array(text_off, "key_token_weights") is None
    assert array(on, "loss_weights") is not None and array(loss_off, "loss_weights") is None
    assert same(text_off, on, "loss_weights")  # the same captions were drawn
    assert same(loss_off, on, "input_ids")


def test_key_tokens_weigh_more_and_objects_cost_more(run):
    batch = next(build_stage(run).batches(0))
    weights = np.unique(array(batch, "key_token_weights"))
    assert weights.tolist() == pytest.approx([1.0, 1.01])
    assert array(batch, "loss_weights").shape == (4, 1, *array(batch, "latents").shape[2:])
    assert np.unique(array(batch, "loss_weights")).tolist() == pytest.approx([1.0, 1.1])


# ---- captions


def drawn_texts(run, count=600, dropout=0.0, seed=0):
    """Decoded texts of one record drawn many times."""
    record = replace(run.data.training_latents.records[1], captions={"zh": "红色背景上的蓝色方块"})
    rngs = [sample_rng(seed, step, 1) for step in range(count)]
    made = run.data.conditioning.training([record] * count, rngs, (16, 16), (2, 2), dropout)
    ids, weights = made["input_ids"], made["key_token_weights"]
    tokenizer = run.data.conditioning.tokenizer
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
    batches = trainer.stage.batches(0)
    for step in range(4):
        before = trainer.state.state_dict()
        trainer.run_step(batches, step)
        after = trainer.state.state_dict()
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
    encoder = trainer.stage.text_encoder
    before = {name: p.numpy() for name, p in encoder.named_parameters()}
    trainer.run_step(trainer.stage.batches(0), 0)
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
        assert stage.sample(1).shape == (2, 2, 3)
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


def test_latents_made_on_the_way_are_those_of_the_cache(run, prepare):
    """The posterior's mean where the draw is zero: the same samples in the same order, by the same network."""
    uncached = build_stage(prepare("data.cache_latents=false"))
    for one, other, _ in zip(build_stage(run).batches(0), uncached.batches(0), range(3)):
        for name in ("indices", "noise", "timesteps", "input_ids", "key_token_weights", "loss_weights"):
            assert same(one, other, name), name
        drawn = uncached.latents(other).numpy()
        other.loaded.finished["posterior"][:] = 0.0
        exact = uncached.latents(other).numpy()
        np.testing.assert_allclose(array(one, "latents").astype(np.float32), exact, rtol=1e-3, atol=1e-6)
        assert np.abs(drawn - exact).max() > 1e-3


@pytest.mark.parametrize("cached", ["true", "false"])
def test_passes_are_pieces_of_one_share(prepare, cached):
    """However a batch is cut, its samples get the same texts, noise, draws of the posterior and timesteps."""
    settings = ("train.base.batch_size=4", f"data.cache_latents={cached}")
    whole, cut = (build_stage(prepare(*settings, f"train.base.accumulation={n}")).batches(3) for n in (1, 4))
    for _ in range(2):
        one, parts = next(whole), [next(cut) for _ in range(4)]
        for name in ("indices", "timesteps", *one.loaded.finished):
            assert np.concatenate([array(part, name) for part in parts]).tobytes() == array(one, name).tobytes(), name


def test_worker_processes_make_what_this_one_does(run):
    stage = build_stage(run)
    made = pickle.loads(pickle.dumps(stage._loader().finish))
    batch = next(stage.batches(5))
    records = [run.data.training_latents.records[i] for i in batch.indices]
    for name, value in made(5, batch.indices, records, batch.loaded.size).items():
        assert value.tobytes() == array(batch, name).tobytes(), name


def test_noise_is_normal_and_belongs_to_step_and_sample():
    one = normal_noise(1, 2, 12, 7, np.arange(200), (4, 8, 8))
    assert abs(one.mean()) < 0.02 and abs(one.std() - 1.0) < 0.02
    assert normal_noise(1, 2, 12, 7, np.array([150, 3]), (4, 8, 8)).tobytes() == one[[150, 3]].tobytes()
    others = [normal_noise(*words, np.arange(200), (4, 8, 8)) for words in ((1, 2, 12, 8), (1, 2, 13, 7), (1, 1, 12, 7),
                                                                           (2, 2, 12, 7))]
    for other in [*others, one[::-1]]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


READS = ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__", "__index__")


@pytest.mark.parametrize("stage", ["base", "experts"])
def test_between_logs_nothing_is_read_from_the_device(prepare, stage, monkeypatch):
    """Steps of two passes, as on a GPU, which would have to be waited for; a log reads."""
    settings = [f"train.{stage}.{each}" for each in ("accumulation=2", "log_every=100", "ema=power", "optimizer=lion")]
    run = prepare(*settings, "data.cache_latents=false")
    trained = build_stage(run, stage)
    trainer = Trainer(trained, CheckpointStore(run.output / "reads"), run.output / "logs", 0)
    trainer.checks_every_step, passes, reads = False, trained.batches(0), []

    def counted(name, real):
        def read(tensor, *arguments, **options):
            if sys._getframe(1).f_code.co_name != "reshape":  # of sizes, which paddle.shape leaves on the host
                reads.append(name)
            return real(tensor, *arguments, **options)

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(paddle.Tensor, name, counted(name, getattr(paddle.Tensor, name)))
        for step in range(4):
            trainer.run_step(passes, step)
        assert reads == []
        assert trainer.window.scalars()["loss"] > 0 and reads


def test_noise_offset_is_one_number_per_sample_and_channel_and_parts_have_rates(run, prepare):
    other = prepare("train.base.noise_offset=0.25", "train.base.learning_rates={text_encoder: 1e-4}")
    plain, stage = build_stage(run), build_stage(other)
    added = [array(offset, "noise") - array(batch, "noise")
             for batch, offset, _ in zip(plain.batches(0), stage.batches(0), range(24))]
    assert max(np.ptp(each, axis=(2, 3)).max() for each in added) < 1e-6  # but for rounding
    assert np.std([each[:, :, 0, 0] for each in added]) == pytest.approx(0.25, rel=0.2)
    trainer = Trainer(stage, CheckpointStore(other.output / "rates"), other.output / "logs", 0)
    factors = {name: p.optimize_attr["learning_rate"] for name, p in trainer.parameters.items()}
    assert {round(f, 6) for name, f in factors.items() if name.startswith("text_encoder.")} == {0.05}
    assert {f for name, f in factors.items() if name.startswith("unet.")} == {1.0}


def test_cached_latents_have_unit_variance(run):
    cache = run.data.training_latents
    samples = [cache.latents(int(cache.buckets[i]), np.array([i])) for i in range(len(cache))]
    values = np.concatenate([latents.reshape(-1).astype(np.float32) for latents in samples])
    assert values.std() == pytest.approx(1.0, rel=0.2)


def test_an_autoencoder_whose_latents_no_file_can_hold_is_named(run, tmp_path):
    data = run.data
    vae = builder.build_vae(run.recipe, run.output / "vae")
    vae.register_to_config(scaling_factor=1e9)
    with pytest.raises(FloatingPointError, match="latents up to .*scaling_factor"):
        latents_of(vae, "other", data.training, data.transform, tmp_path, "training", 0.1)
    assert not list(tmp_path.rglob("*.npy")) or not list(tmp_path.rglob("manifest.json"))
