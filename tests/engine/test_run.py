"""A whole run: stopped anywhere it ends the same, finished it is left alone, and its output is nobody else's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from engine_tiny import STAGES, differences, newest, write_pictures
from omegaconf import OmegaConf

from ppvilg.config import ConfigError
from ppvilg.engine import CheckpointError, Run, Trainer
from ppvilg.engine.checkpoint import hash_folder
from ppvilg.engine.training.resuming import changes, settings_of


class Stop(KeyboardInterrupt):
    """As if Ctrl-C had been pressed."""


def test_stopped_in_every_stage_the_end_is_the_same_bit_for_bit(make_run, finished, tmp_path, monkeypatch):
    """With a checkpoint every two steps, odd ones are done twice. Every step: test_trainer; kills: interrupt.py."""
    real, stops, stopped = Trainer.run_step, {("vae", 2), ("base", 1), ("experts", 2), ("experts", 5)}, set()

    def step_and_stop(self, passes, step):
        samples = real(self, passes, step)
        if (self.stage.name, step) in stops - stopped:
            stopped.add((self.stage.name, step))
            raise Stop
        return samples

    monkeypatch.setattr(Trainer, "run_step", step_and_stop)
    for _ in range(len(stops) + 1):
        try:
            make_run(tmp_path / "out").run()
            break
        except Stop:
            continue
    assert stopped == stops
    assert differences(tmp_path / "out", finished) == []


def test_stopped_while_anything_is_written_the_end_is_the_same_bit_for_bit(make_run, finished, tmp_path, monkeypatch):
    """Each attempt gets some writes further than the last: files flushed, folders and files renamed."""
    allowed, done = 0, 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done > allowed:
                raise Stop
            return real(*arguments, **options)

        return call

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    attempts = 0
    while not (tmp_path / "out" / "checkpoints" / "experts" / "exported.json").exists():
        attempts, allowed, done = attempts + 1, allowed + 7, 0
        try:
            make_run(tmp_path / "out").run()
        except Stop:
            continue
    assert attempts > 5
    assert differences(tmp_path / "out", finished) == []
    left = [path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"]
    assert left == [], "nothing half-written stays behind"


def test_a_finished_run_is_left_alone(make_run, finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)

    def state():
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.rglob("*")
                if path.is_file() and path.name not in (".lock", "recipe.yml")}

    before = state()
    assert make_run(output).run() == output / "experts"
    assert state() == before


def test_the_result_is_a_pipeline_that_draws(finished):
    from ppvilg import ErnieViLG2Pipeline

    for name in ("base", "experts"):
        pipeline = ErnieViLG2Pipeline.from_pretrained(finished / name)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.unet.num_experts == {"base": 1, "experts": 3}[name]
        image = pipeline("红色背景上的蓝色方块", height=16, width=32, num_inference_steps=2, generator=0).images[0]
        assert image.size == (32, 16)


def test_the_result_holds_the_averaged_weights_and_no_path_of_this_machine(finished):
    from safetensors.numpy import load_file

    averages = newest(finished, "experts")["ema"]
    expert = load_file(finished / "experts" / "unet" / "expert_01" / "diffusion_paddle_model.safetensors")
    for name, value in expert.items():
        assert value.tobytes() == averages[f"unet.experts.1.{name}"].tobytes(), name
    for name in STAGES:
        for path in (finished / name).rglob("*.json"):
            assert str(finished) not in path.read_text(encoding="utf-8"), path


def test_pictures_of_the_prompts_are_shown(make_run, finished, tmp_path, monkeypatch):
    output, shown = tmp_path / "out", []
    for name in ("vae", "cache", "tokenizer"):
        shutil.copytree(finished / name, output / name)
    shutil.copytree(finished / "checkpoints" / "vae", output / "checkpoints" / "vae")
    from ppvilg.engine.monitor import Monitor

    monkeypatch.setattr(Monitor, "image", lambda self, step, name, picture: shown.append((self.stage, step, picture)))
    make_run(output, "sample.prompts=[红色背景,蓝色方块]", "train.base.sample_every=2", "train.experts.steps=0",
             "train.experts.warmup_steps=0").run()
    assert [(stage, step) for stage, step, _ in shown] == [("base", 2), ("base", 4)]
    for _, _, picture in shown:
        assert picture.dtype == np.uint8 and picture.shape[0] >= 16 and picture.shape[1] >= 32
    assert newest(output, "base")["net"].keys() == newest(finished, "base")["net"].keys()
    assert differences(output, finished, stages=("base",)) == [], "drawing must not change what is learnt"


# ---- one output, one recipe


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may write into."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("override, stage", [("model.scheduler.prediction_type=epsilon", "base"),
                                             ("model.boundaries=[0,10,20,90]", "base"),
                                             ("model.unet.config.block_out_channels=[8,24]", "base"),
                                             ("model.vae.config.latent_channels=8", "vae")])
def test_checkpoints_of_another_model_are_refused(make_run, copied, override, stage):
    before, recipe = hash_folder(copied / "checkpoints"), (copied / "recipe.yml").read_bytes()
    unet = ["model.unet.config.in_channels=8", "model.unet.config.out_channels=8"] if stage == "vae" else []
    with pytest.raises(CheckpointError, match=f"checkpoints/{stage}/step_0000000.*another model"):
        make_run(copied, override, *unet).run()
    assert hash_folder(copied / "checkpoints") == before
    assert (copied / "recipe.yml").read_bytes() == recipe and not list(copied.glob("recipe.*.yml"))


CHANGED = {"train.experts.accumulation": 2, "train.experts.ema_decay": 0.5, "train.experts.beta2": 0.9,
           "train.experts.warmup_steps": 0, "train.experts.gradient_clip": 0.5, "knowledge.text.probability": 0.4,
           "train.experts.caption_dropout": 0.2, "train.experts.weight_decay": 0.1, "seed": 4}


def test_other_settings_and_more_data_go_on_and_are_logged(make_recipe, copied, tmp_path, caplog):
    """Two more pictures, with a character that the vocabulary lacks; every change is named with both its values."""
    data = write_pictures(tmp_path / "more", 18)
    lines = (data / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1]) | {"captions": {"zh": "紫色背景"}}
    (data / "annotations.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]), encoding="utf-8")
    overrides = [f"{key}={value}" for key, value in CHANGED.items()]
    before = (copied / "tokenizer" / "vocab.txt").read_bytes()
    Run(make_recipe(copied, f"data.train={data}", *overrides, "train.experts.steps=9")).run()
    assert newest(copied, "experts")["progress"]["next_step"] == 9
    rows = [json.loads(line) for line in (copied / "logs" / "changes.jsonl").read_text().splitlines()]
    (experts,) = [row for row in rows if row["stage"] == "experts"]
    assert experts["checkpoint"] == "step_00000007"
    for key, value in CHANGED.items():
        assert experts["changes"][key][1] == value and f"{key}: " in caplog.text
    assert {"data", "train.experts.steps"} <= experts["changes"].keys()
    assert (copied / "tokenizer" / "vocab.txt").read_bytes() == before
    assert "characters that are not in it" in caplog.text


def test_several_data_sets_with_weights_and_shapes_found_in_them(make_recipe, world, copied, tmp_path, caplog):
    """It goes on with half of its samples from a new set, in shapes that fit the pictures; both are logged."""
    more = write_pictures(tmp_path / "more", 4, first=200)
    sets = f"data.sets=[{{path: {world[0]}, weight: 1}}, {{path: {more}, weight: 1}}]"
    run = Run(make_recipe(copied, "data.train=null", sets, "data.buckets=auto", "data.shapes=[[64,64]]",
                          "train.experts.steps=9"))  # fmt: skip
    assert run.training.repeats == [1.0, 4.0] and len(run.training) == 20
    assert list(run.recipe.data.shapes) == [[64, 64], [48, 80]] and run.recipe.data.buckets == "listed"
    caplog.set_level("INFO")
    run.run()
    assert newest(copied, "experts")["progress"]["next_step"] == 9
    rows = [json.loads(line) for line in (copied / "logs" / "changes.jsonl").read_text().splitlines()]
    (experts,) = [row["changes"] for row in rows if row["stage"] == "experts"]
    assert experts["repeats"] == [None, [1.0, 4.0]] and experts["data.shapes"][1] == [[64, 64], [48, 80]]
    assert OmegaConf.load(copied / "recipe.yml").data.shapes == [[64, 64], [48, 80]]
    with pytest.raises(ConfigError, match=r"data.sets\[1\].path=nowhere"):
        Run(make_recipe(copied, "data.train=null", sets.replace(str(more), "nowhere")))


def test_strictly_nothing_that_changes_a_bit_may_change(make_run, copied):
    make_run(copied, "resume.strict=true", "train.experts.log_every=1").run()
    with pytest.raises(CheckpointError, match="resume.strict=true.*train.experts.beta2: none -> 0.9"):
        make_run(copied, "resume.strict=true", "train.experts.beta2=0.9").run()


FREE = ("train.experts.steps=9", "train.experts.log_every=1", "data.bad_sample_share=0.5", "recompute=true",
        "train.experts.keep_checkpoints=3", "sample.guidance_scale=2.0", "train.experts.keep_every=4",
        "distributed.find_unused_parameters=false", "precision.dtype=float16")


def test_what_does_not_change_a_step_may_change(make_run, copied):
    recipe = (copied / "recipe.yml").read_text(encoding="utf-8")
    make_run(copied, *FREE).run()
    assert (copied / "recipe.yml").read_text(encoding="utf-8") != recipe
    assert not list(copied.glob("recipe.*.yml")), "it is the same model's recipe"


def test_what_changes_a_step_is_among_the_settings(make_recipe, tmp_path):
    first = settings_of(make_recipe(tmp_path / "out"), "base")
    for override in ("knowledge.vision.min_score=0.4", "knowledge.vision.synonyms={cat: [猫]}", "precision.level=O1"):
        other = settings_of(make_recipe(tmp_path / "out", override), "base")
        assert list(changes(first, other))[0].startswith(override.partition("=")[0].removesuffix(".level")), override


def test_data_may_move(make_recipe, world, copied, tmp_path):
    shutil.copytree(world[0], tmp_path / "moved")
    before = hash_folder(copied / "experts")
    Run(make_recipe(copied, f"data.train={tmp_path / 'moved'}")).run()
    assert hash_folder(copied / "experts") == before


def test_a_recipe_that_cannot_run_leaves_that_of_the_checkpoints(make_run, copied):
    first = (copied / "recipe.yml").read_bytes()
    with pytest.raises(ConfigError, match="nowhere"):
        make_run(copied, "model.vae.pretrained=nowhere").run()
    assert (copied / "recipe.yml").read_bytes() == first and not list(copied.glob("recipe.*.yml"))


def test_the_recipe_of_another_model_is_kept_under_a_number(make_run, copied):
    first = (copied / "recipe.yml").read_text(encoding="utf-8")
    only_vae = [f"train.{stage}.{key}=0" for stage in ("base", "experts") for key in ("steps", "warmup_steps")]
    for seed in (4, 5):
        shutil.rmtree(copied / "checkpoints")  # else nothing is left to train
        make_run(copied, f"seed={seed}", *only_vae).run()
    assert (copied / "recipe.1.yml").read_text(encoding="utf-8") == first
    assert OmegaConf.load(copied / "recipe.2.yml").seed == 4
    assert OmegaConf.load(copied / "recipe.yml").seed == 5


def test_a_run_that_is_stopped_has_left_its_recipe(make_run, tmp_path, monkeypatch):
    from ppvilg.engine.training.trainer import Trainer

    def fail(self, batch, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run_step", fail)
    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "out", "seed=6").run()
    assert OmegaConf.load(tmp_path / "out" / "recipe.yml").seed == 6


def test_a_file_that_is_no_recipe_is_kept_too(make_run, copied):
    (copied / "recipe.yml").write_text("half a rec", encoding="utf-8")
    make_run(copied).run()
    assert (copied / "recipe.1.yml").read_text(encoding="utf-8") == "half a rec"
    assert OmegaConf.load(copied / "recipe.yml").seed == 3


def test_a_vocabulary_of_other_data_is_made_again(make_run, copied):
    shutil.rmtree(copied / "checkpoints")  # which were trained with it
    (copied / "tokenizer" / "made_of.json").write_text('{"data": "others", "files": {}}', encoding="utf-8")
    (copied / "tokenizer" / "vocab.txt").write_text("[PAD]\n[CLS]\n", encoding="utf-8")
    assert "色" in make_run(copied).prepare_denoising().conditioning.tokenizer.get_vocab()


def test_two_runs_into_one_output(make_run, tmp_path, monkeypatch):
    import ppvilg.engine.run as module
    from ppvilg.engine.checkpoint import claimed

    monkeypatch.setattr(module, "claimed", lambda folder: claimed(folder, wait_seconds=0))
    (tmp_path / "out").mkdir()
    with claimed(tmp_path / "out"), pytest.raises(CheckpointError, match="is training into it"):
        make_run(tmp_path / "out").run()
    assert os.listdir(tmp_path / "out") == [".lock"]


# ---- recipes that cannot be run, found before the first stage


@pytest.mark.parametrize(
    "override, expected",
    [
        ("model.text_encoder.config.hiden_size=16", "did you mean model.text_encoder.config.hidden_size"),
        ("model.text_encoder.config.vocab_size=100", "unknown key model.text_encoder.config.vocab_size"),
        ("model.vae.config.latent_chanels=4", "did you mean model.vae.config.latent_channels"),
        ("model.unet.config.cross_attention=16", "did you mean model.unet.config.cross_attention_dim"),
        ("model.scheduler.beta_shedule=linear", "did you mean model.scheduler.beta_schedule"),
    ],
)
def test_unknown_keys_of_components(make_recipe, tmp_path, override, expected):
    with pytest.raises(ConfigError, match=expected):
        Run(make_recipe(tmp_path / "out", override))
    assert not (tmp_path / "out").exists()


def test_batches_of_later_stages_are_checked_first(make_recipe, tmp_path, monkeypatch):
    from ppvilg.engine import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="train.experts.batch_size=5"):
        Run(make_recipe(tmp_path / "out", "train.experts.batch_size=5"))


def test_data_for_validation_are_needed(make_recipe, tmp_path):
    with pytest.raises(ConfigError, match="data.validation is not set"):
        Run(make_recipe(tmp_path / "out", "data.validation=null"))


def test_a_base_needs_an_autoencoder(make_recipe, tmp_path):
    with pytest.raises(ConfigError, match="there is no autoencoder"):
        Run(make_recipe(tmp_path / "out", "train.vae.steps=0", "train.vae.warmup_steps=0")).run()


def test_experts_need_a_base(make_recipe, tmp_path):
    with pytest.raises(ConfigError, match="stage base"):
        Run(make_recipe(tmp_path / "out", "train.base.steps=0", "train.base.warmup_steps=0"))


def test_published_weights_that_do_not_fit(make_recipe, finished, tmp_path):
    run = Run(make_recipe(tmp_path / "out", f"model.unet.pretrained={finished}/base/unet/expert_00",
                          "model.text_encoder.config.hidden_size=32", "train.vae.steps=0", "train.vae.warmup_steps=0",
                          f"model.vae.pretrained={finished}/vae"))
    data = run.prepare_denoising()
    with pytest.raises(ConfigError, match="hidden_size=32 does not fit .*cross_attention_dim=16"):
        run.run_denoiser("base", data)


def test_published_weights_are_where_the_base_starts(make_recipe, finished, tmp_path):
    from safetensors.numpy import load_file

    folder = Path(finished) / "base"
    parts = {"unet": "unet/expert_00", "text_encoder": "text_encoder", "tokenizer": "tokenizer", "vae": "vae"}
    pretrained = [f"model.{name}.pretrained={folder / place}" for name, place in parts.items()]
    still = ("train.base.learning_rate=0.0", "train.base.weight_decay=0.0", "train.vae.steps=0",
             "train.vae.warmup_steps=0", "train.experts.steps=0", "train.experts.warmup_steps=0")
    Run(make_recipe(tmp_path / "out", *pretrained, *still)).run()
    net = newest(tmp_path / "out", "base")["net"]
    for part, file in (("unet.experts.0", "unet/expert_00/diffusion_paddle_model.safetensors"),
                       ("text_encoder", "text_encoder/model.safetensors")):
        weights = load_file(folder / file)
        shared = [name for name in weights if f"{part}.{name.removeprefix('ernie.')}" in net]
        assert len(shared) > 10
        for name in shared:
            assert weights[name].tobytes() == net[f"{part}.{name.removeprefix('ernie.')}"].tobytes(), name


def test_progress_and_manifest_say_what_made_them(finished):
    (folder,) = (finished / "checkpoints" / "vae").glob("step_00000004")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["progress"]["stage"] == "vae" and manifest["progress"]["next_step"] == 4
    assert {"numpy", "paddle", "seed", "sample_order"} <= manifest["progress"].keys()
    assert manifest["files"].keys() == {"net.safetensors", "optimizer.safetensors", "ema.safetensors"}
