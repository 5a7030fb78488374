"""Memory of a rank: counted as the allocator counts it, refused before the first step with what would fit."""

from __future__ import annotations

import gc
import time

import paddle
import pytest
from engine_tiny import ROOT

from ppvilg.config import ConfigError, load_config
from ppvilg.engine import CheckpointStore, Run, Trainer, builder
from ppvilg.engine.parallel.layout import Axes
from ppvilg.engine.planning import plan
from ppvilg.engine.planning.memory import Form, check_memory, rank_memory, variants, what_fits
from ppvilg.engine.stages.autoencoder import AutoencoderStage
from ppvilg.engine.stages.denoiser import DenoiserStage

PAPER, FINETUNE, SMALL = (ROOT / "configs" / f"{name}.yml" for name in ("ernie_vilg2_24b", "finetune_sd1",
                                                                        "finetune_sd1_24gb"))  # fmt: skip


def allocated() -> int:
    gc.collect()
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0)


def settled() -> int:
    """What is allocated once the threads of earlier tests have let go of theirs."""
    last, now = None, allocated()
    while now != last:
        time.sleep(0.3)
        last, now = now, allocated()
    return now


@pytest.mark.parametrize("name, settings", [("base", ()), ("experts", ()), ("base", ("optimizer=lion",)),
                                            ("base", ("optimizer=adafactor", "ema=none"))])  # fmt: skip
def test_states_are_what_the_allocator_counts(make_recipe, finished, tmp_path, name, settings):
    """Weights, gradients, moments and averages of a stage that really runs a step; wider, so that rounding up of small
    allocations does not count."""
    wide = ("model.unet.config.block_out_channels=[64,128]", "model.unet.config.norm_num_groups=8",
            "model.text_encoder.config.intermediate_size=2048", f"model.vae.pretrained={finished / 'vae'}",
            "train.vae.steps=0", "train.vae.warmup_steps=0", "train.base.ema_every=1")  # fmt: skip
    recipe = make_recipe(tmp_path / "out", *wide, *(f"train.{name}.{setting}" for setting in settings))
    run = Run(recipe)
    data = run.prepare_denoising()
    if name == "experts":
        base = DenoiserStage(recipe, data, "base", tmp_path / "out" / "base")
        (tmp_path / "out" / "base").mkdir()
        base.export(tmp_path / "out" / "base")
        del base
    before = settled()
    stage = DenoiserStage(recipe, data, name, tmp_path / "out" / name,
                          tmp_path / "out" / "base" if name == "experts" else None)  # fmt: skip
    trainer = Trainer(stage, CheckpointStore(tmp_path / "checkpoints"), tmp_path / "logs", 0)
    states = allocated() - before
    trainer.forward_backward(stage.batches(0), 0)
    gradients = allocated() - before - states
    shapes, work = plan.layer_shapes(recipe), plan.trace(recipe, 16, 16)
    words = stage.text_encoder.embeddings.word_embeddings.weight
    shapes["text_encoder"]["embeddings.word_embeddings.weight"] = tuple(words.shape)  # of the captions' vocabulary
    counted = rank_memory(Form.of(recipe, name, Axes()), shapes, work)
    vae = 4.0 * plan.count(shapes["vae"])  # was there before
    expected = counted["weights"] - vae + counted["optimizer"] + counted["average"]
    assert states == pytest.approx(expected, rel=0.05)
    assert gradients == pytest.approx(counted["gradients"], rel=0.05)


def test_so_are_those_of_the_autoencoder(make_recipe, tmp_path):
    """Also what a step keeps for its backward pass: more than counted by what autograd keeps twice, never less."""
    recipe = make_recipe(tmp_path / "out", "model.vae.config.block_out_channels=[64,128]", "train.vae.batch_size=16",
                         "data.shapes=[[32,32]]")  # fmt: skip
    run, before = Run(recipe), settled()
    stage = AutoencoderStage(recipe, builder.build_vae(recipe), run.training, run.validation, run.transform,
                             run.validation_transform, tmp_path / "out" / "vae")  # fmt: skip
    trainer = Trainer(stage, CheckpointStore(tmp_path / "checkpoints"), tmp_path / "logs", 0)
    states = allocated() - before
    terms, _ = stage.losses(next(stage.batches(0)), 0)
    step = allocated() - before - states
    del terms
    trainer.forward_backward(stage.batches(0), 0)
    gradients = allocated() - before - states
    form = Form.of(recipe, "vae", Axes())
    counted = rank_memory(form, plan.layer_shapes(recipe), plan.trace(recipe, 32, 32))
    assert states == pytest.approx(counted["weights"] + counted["optimizer"] + counted["average"], rel=0.05)
    assert gradients == pytest.approx(counted["gradients"], rel=0.05)
    assert 0.5 * counted["step"] < step < 1.05 * counted["step"]
    limit = sum(counted.values()) - 0.5 * counted["step"]
    fitting = what_fits(form, plan.layer_shapes(recipe), plan.trace(recipe, 32, 32), limit)
    assert fitting == {"train.vae.accumulation": 2}


def sized(recipe):
    return plan.layer_shapes(recipe), plan.trace(recipe, *recipe.data.shapes[0])


def test_shipped_recipes_fit_the_machines_that_they_are_for(tmp_path):
    places = [f"output={tmp_path}"]
    one_machine = ["distributed.expert=1", "train.experts=[0]", "train.base.accumulation=40"]
    for file, overrides, world, memory in ((PAPER, [], 80, 80e9), (PAPER, [], 320, 80e9), (FINETUNE, [], 8, 80e9),
                                           (PAPER, one_machine, 8, 80e9),
                                           (SMALL, [], 8, 24e9)):  # fmt: skip
        found = check_memory(load_config(file, [*places, *overrides]), world, memory)
        assert [form.stage for form, _ in found] == ["base", "experts"], file


def test_the_paper_s_size_is_counted_in_float32_gradients(tmp_path):
    recipe = load_config(PAPER, [f"output={tmp_path}"])
    (base, memory), _ = check_memory(recipe, 80, 80e9)
    parameters = plan.count(plan.layer_shapes(recipe)["unet"]) + plan.count(plan.layer_shapes(recipe)["text_encoder"])
    assert memory["gradients"] == 6.0 * parameters and base.samples_per_pass == 8
    assert memory["optimizer"] == 12.0 * parameters / 8 and memory["average"] == 4.0 * parameters / 8


def test_a_stage_that_does_not_fit_is_refused_with_what_would(tmp_path):
    """The documented way of old: ten experts of SD-1 size in float32 without sharding."""
    old = [f"output={tmp_path}", "precision.level=O0", "distributed.sharding=1", "recompute=false"]
    recipe = load_config(FINETUNE, [*old, "train.base.accumulation=64", "train.experts.accumulation=64"])
    with pytest.raises(ConfigError, match="train.experts takes 1[0-9]{2}.* GB of a rank's 80.0 GB .*10 denoisers.*"
                                          "it fits with .*=") as error:  # fmt: skip
        check_memory(recipe, 8, 80e9)
    advice = str(error.value).partition("it fits with ")[2]
    overrides = advice.split(", ")
    check_memory(load_config(FINETUNE, [*old, "train.base.accumulation=64", "train.experts.accumulation=64",
                                        *overrides]), 8, 80e9)  # fmt: skip
    with pytest.raises(ConfigError, match="take more or larger devices"):
        check_memory(recipe, 1, 3e9)


def test_what_fits_changes_as_little_as_it_can(make_recipe, tmp_path):
    recipe = make_recipe(tmp_path / "out", "train.experts.batch_size=16")
    shapes, work = sized(recipe)
    form = Form.of(recipe, "experts", Axes(data=4))
    whole = sum(rank_memory(form, shapes, work, 0.0).values())
    assert what_fits(form, shapes, work, whole, 0.0) == {}
    less = rank_memory(form, shapes, work, 0.0)["step"] / 2
    assert what_fits(form, shapes, work, whole - less, 0.0) == {"train.experts.accumulation": 2}
    assert all(len(settings) <= 5 for settings, _ in variants(form))
    assert what_fits(form, shapes, work, 1.0, 0.0) is None


def test_a_run_says_what_it_takes_and_refuses_before_anything_is_written(make_run, tmp_path, monkeypatch, caplog):
    from ppvilg.engine.checks import rehearsal

    caplog.set_level("INFO")
    monkeypatch.setattr(rehearsal, "device_limit", lambda ranks: (1e6, 0.0))
    with pytest.raises(ConfigError, match="train.vae takes 0.0 GB of a rank's 0.0 GB"):
        make_run(tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


def test_low_weights_are_counted_with_masters(make_recipe, tmp_path):
    recipe = make_recipe(tmp_path / "out")
    shapes, work = sized(recipe)
    recipes = (make_recipe(tmp_path / "out", f"precision.level={level}") for level in ("O0", "O2"))
    whole, low = (rank_memory(Form.of(recipe, "base", Axes()), shapes, work) for recipe in recipes)
    trained = plan.count(shapes["unet"]) + plan.count(shapes["text_encoder"])
    assert whole["weights"] - low["weights"] == 2.0 * trained and low["optimizer"] - whole["optimizer"] == 4.0 * trained
    assert low["gradients"] == whole["gradients"] == 4.0 * trained and low["step"] == whole["step"] / 2
