"""Stage lora: the base is frozen, a stopped run ends with the same file, and the file does what was trained."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import yaml
from engine_tiny import RECIPE, differences

from ppvilg import ErnieViLG2Pipeline
from ppvilg.config import ConfigError, load_config
from ppvilg.engine import CheckpointStore, Run, Trainer
from ppvilg.engine.checkpoint import hash_folder
from ppvilg.engine.lora.base import base_folder, chosen_experts
from ppvilg.engine.lora.stage import LoraStage
from ppvilg.engine.lora.words import chosen_words
from ppvilg.engine.parallel.layout import Axes
from ppvilg.engine.planning import plan
from ppvilg.engine.planning.memory import Form, rank_memory
from ppvilg.models.lora import adaptable_layers
from ppvilg.models.lora_files import read_adapter

STEPS = 6
WITH_WORDS = ("train.lora.text_encoder=true", "train.lora.words=[{word: 方块, like: 蓝色, key_token_weight: 0.2}]")
CALL = {"prompt": "红色背景上的蓝色方块", "height": 16, "width": 16, "num_inference_steps": 3, "generator": 0}


@pytest.fixture(scope="module")
def lora_recipe(world, finished, tmp_path_factory):
    """lora_recipe(output, "a.b=value", ...) -> Recipe that teaches the tiny world's experts."""
    stage = {**RECIPE["train"]["experts"], "steps": STEPS, "learning_rate": 0.05, "warmup_steps": 0, "rank": 2}
    recipe = {"seed": 3, "data": RECIPE["data"], "sample": RECIPE["sample"],
              "train": {"lora": {**stage, "base": str(finished / "experts")}}}  # fmt: skip
    path = tmp_path_factory.mktemp("lora") / "lora.yml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    places = (f"data.train={world[0]}",)
    return lambda output, *overrides: load_config(path, [f"output={output}", *places, *overrides])


@pytest.fixture(scope="module")
def taught(lora_recipe, finished, tmp_path_factory):
    """Output of an undisturbed run, an adapter for each expert and the text encoder."""
    output = tmp_path_factory.mktemp("taught") / "out"
    before = hash_folder(finished)
    assert Run(lora_recipe(output, *WITH_WORDS)).run() == output / "lora"
    assert hash_folder(finished) == before, "the base stays as it is"
    return output


def stage_of(recipe) -> LoraStage:
    run = Run(recipe)
    run.output.mkdir(parents=True, exist_ok=True)
    data = run.prepare_denoising()
    words = chosen_words(run.recipe, data.conditioning.tokenizer, run.training.captions())
    folders = (run.output / "lora", base_folder(recipe))
    return LoraStage(run.recipe, data, *folders, chosen_experts(run.recipe), words=words)


def pictures(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**CALL, output_type="np").images


def test_stopped_anywhere_the_file_is_the_same(lora_recipe, taught, tmp_path, monkeypatch):
    class Stop(KeyboardInterrupt):
        pass

    real, left = Trainer.run_step, [1, 4]

    def step_and_stop(self, passes, step):
        samples = real(self, passes, step)
        if left and step == left[0]:
            left.pop(0)
            raise Stop
        return samples

    monkeypatch.setattr(Trainer, "run_step", step_and_stop)
    for _ in range(3):
        try:
            Run(lora_recipe(tmp_path / "out", *WITH_WORDS)).run()
        except Stop:
            continue
    assert not left and differences(tmp_path / "out", taught, ("lora",)) == []


def test_the_file_does_in_a_pipeline_what_was_trained(lora_recipe, taught, finished):
    pipeline = ErnieViLG2Pipeline.from_pretrained(finished / "experts")
    fresh = pictures(pipeline)
    pipeline.load_lora_weights(taught / "lora")
    adapter = pipeline._lora.adapters["adapter"]
    assert sorted(adapter.experts) == [0, 1, 2] and adapter.text_encoder and adapter.settings.mark
    card = (taught / "lora" / "README.md").read_text(encoding="utf-8")
    assert "16 pictures" in card and adapter.settings.base_sha256 in card

    stage = stage_of(lora_recipe(taught.parent / "again", *WITH_WORDS))
    weights = dict(stage.lora.named_parameters())
    (word,) = adapter.words
    assert (word.word, word.mark, word.key_token_weight) == ("方块", "n", 0.2)
    assert np.abs(word.row - weights["words"].numpy()[0]).max() > 1e-3, "it has moved from where it began"
    weights["words"].set_value(paddle.to_tensor(word.row[None]))
    groups = {f"unet.experts.{k}": changes for k, changes in adapter.experts.items()}
    for group, changes in (groups | {"text_encoder": adapter.text_encoder}).items():
        for path, change in changes.items():
            for part in ("down", "up"):
                value = paddle.to_tensor(np.ascontiguousarray(getattr(change, part).T))
                weights[f"{group}.{path}.{part}.weight"].set_value(value)
    drawn = pictures(ErnieViLG2Pipeline(**stage.components()))
    np.testing.assert_allclose(drawn, pictures(pipeline), atol=1e-5)
    assert np.abs(drawn - fresh).max() > 1e-3


def test_an_adapter_that_has_learnt_nothing_changes_no_bit(lora_recipe, finished, tmp_path):
    stage = stage_of(lora_recipe(tmp_path / "out", "train.lora.text_encoder=true"))
    fresh = pictures(ErnieViLG2Pipeline.from_pretrained(finished / "experts"))
    assert np.array_equal(pictures(ErnieViLG2Pipeline(**stage.components())), fresh)


def test_words_of_the_captions_that_the_model_lacks_become_tokens(lora_recipe, tmp_path):
    run = Run(lora_recipe(tmp_path / "out"))
    captions = ["红色背景上的一只狐狸", "两只狐狸和一个方块"]
    found = chosen_words(run.recipe, run._build_tokenizer(), captions)
    assert [(word.word, word.mark, like) for word, like in found] == [("狐狸", "n", None)]


def test_pictures_of_the_base_come_among_those_that_are_taught(lora_recipe, tmp_path):
    prior = ("prompts=[红色背景,蓝色背景]", "pictures=4", "weight=0.5")
    run = Run(lora_recipe(tmp_path / "out", *(f"train.lora.prior.{each}" for each in prior)))
    run.output.mkdir()
    mixed = run._with_prior()
    counts = [len(source) for source in mixed.sources]
    assert counts == [16, 4] and mixed.repeats == [1.0, 2.0]  # 16 of the lesson for 8 of the prior
    assert [mixed.read_text(16 + i).captions["zh"] for i in range(4)] == ["红色背景", "蓝色背景"] * 2
    assert {tuple(size) for size in np.asarray(mixed.sources[1].sizes).tolist()} <= {(16, 16), (16, 32)}
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "prior").glob("*.png")}
    run._with_prior()
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn and len(drawn) == 4, "drawn once"


def test_only_the_chosen_expert_is_in_memory_and_only_low_rank_layers_learn(lora_recipe, tmp_path):
    stage = stage_of(lora_recipe(tmp_path / "out", "train.lora.experts=[1]", "train.lora.targets=[to_k,conv1]"))
    assert stage.unet.loaded_experts == [1]
    trainer = Trainer(stage, CheckpointStore(tmp_path / "checkpoints"), tmp_path / "logs", 0)
    trainer.run_step(stage.batches(0), 1)
    assert all(name.startswith("lora.unet.experts.1.") for name in trainer.parameters)
    assert not any(p.grad is not None for p in [*stage.unet.parameters(), *stage.text_encoder.parameters()])
    stage.export(tmp_path)
    expert = stage.unet.experts[1]
    adapter = read_adapter(tmp_path, expert, stage.text_encoder)
    assert list(adapter.experts) == [1] and not adapter.shared
    assert {path.rpartition(".")[2] for path in adapter.experts[1]} == {"to_k", "conv1"}
    assert adapter.experts[1].keys() <= adaptable_layers(expert).keys()


def test_shared_changes_are_learnt_at_all_timesteps_and_are_counted(lora_recipe, tmp_path):
    stage = stage_of(lora_recipe(tmp_path / "out", "train.lora.shared=true"))
    batch = next(iter(stage.batches(0)))
    terms, groups = stage.losses(batch, 0)
    terms["denoising"].mean().backward()
    assert len(set(groups.tolist())) > 1
    assert set(stage.lora.changes()) == {"unet.shared"}
    shapes = plan.layer_shapes(stage.recipe)
    form = Form.of(stage.recipe, "lora", Axes())
    counted = rank_memory(form, shapes, plan.trace(stage.recipe, 16, 16))
    parameters = stage.lora.parameters()
    assert sorted(form.adapter) == sorted(tuple(p.shape) for p in parameters)
    size = sum(p.size for p in parameters)
    assert counted["optimizer"] == 8.0 * size and counted["gradients"] == 4.0 * size


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["train.lora.rank=0"], "train.lora.rank=0: must be at least 1"),
        (["train.lora.base=null"], "train.lora.base is not set"),
        (["train.lora.base=no/where"], "train.lora.base=no/where: 'no/where' is neither a folder nor a model"),
        (["train.lora.experts=[3]"], "different numbers from 0 to 2 are wanted"),
        (["train.lora.experts=some"], "train.lora.experts=some: all, or different numbers"),
        (["train.lora.experts=[1]", "train.lora.shared=true"], "all experts change alike"),
        (["train.lora.targets=[to_x]"], "no layer's path ends in 'to_x'; their last names are conv, "),
        (["train.lora.targets=[]"], "nothing would be trained"),
        (["train.lora.words=[{word: 狐 狸}]"], "train.lora.words: a new word has 1 to 32 letters"),
        (["train.lora.prior.prompt_file=none.txt"], "train.lora.prior.prompt_file=none.txt: "),
        (["train.lora.words=some"], "train.lora.words=some: auto, or a list such as"),
        (["model.num_experts=4"], "model.num_experts=4: with stage lora the model is train.lora.base's, which has 3"),
        (["knowledge.text.key_token_weight=0.5"], "knowledge.text.key_token_weight=0.5: with stage lora"),
        (["train.base.steps=4", "train.base.ema_every=1"], "an adapter is trained in a recipe of its own"),
    ],
)
def test_settings_that_do_not_fit_are_said_in_one_sentence(lora_recipe, tmp_path, overrides, said):
    with pytest.raises(ConfigError) as raised:
        Run(lora_recipe(tmp_path / "out", *overrides))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
