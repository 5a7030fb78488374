"""Recipes: what is merged in which order, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from ppvilg.config import ConfigError, fingerprint, load_config

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
output: out
data: {train: somewhere}
model:
  text_encoder: {config: {hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 64}}
  vae: {config: {block_out_channels: [8, 16], latent_channels: 4, norm_num_groups: 4}}
  unet: {config: {block_out_channels: [8, 16], in_channels: 4, cross_attention_dim: 16, norm_num_groups: 4}}
"""


@pytest.fixture
def recipe(tmp_path):
    """recipe(text) -> file with it; the small recipe by default."""

    def write(text=SMALL, name="recipe.yml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(path, *overrides) -> str:
    """What ConfigError says about a recipe."""
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides))
    return str(error.value)


# ---- merging


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    if "train" not in OmegaConf.load(path):
        pytest.skip("not a training recipe")
    config = load_config(path)
    train = config.train
    assert train.base.steps or (train.experts.steps and train.experts.start) or (train.lora.steps and train.lora.base)
    for width, height in config.data.shapes:
        assert width % 16 == 0 and height % 16 == 0


def test_later_bases_and_the_recipe_itself_win(recipe):
    recipe(SMALL + "seed: 1\nsample: {seed: 1, guidance_scale: 1.5, num_inference_steps: 11}\n", "one.yml")
    recipe("seed: 2\nsample: {seed: 2, guidance_scale: 2.5}\n", "_base_/two.yml")
    config = load_config(recipe("_base_: [one.yml, _base_/two.yml]\nsample: {seed: 3}\n"))
    assert (config.seed, config.sample.guidance_scale, config.sample.num_inference_steps) == (2, 2.5, 11)
    assert config.sample.seed == 3
    assert load_config(recipe("_base_: one.yml\n", "single.yml")).seed == 1


def test_bases_of_bases_are_found_beside_the_file_that_names_them(recipe):
    recipe(SMALL, "parts/model.yml")
    recipe("_base_: model.yml\nseed: 5\n", "parts/all.yml")
    assert load_config(recipe("_base_: parts/all.yml\n")).seed == 5


def test_a_circle_of_bases_is_named(recipe):
    recipe("_base_: b.yml\n", "a.yml")
    recipe("_base_: a.yml\n", "b.yml")
    assert "circle" in message(recipe("_base_: a.yml\n"))


def test_one_base_by_two_ways_is_no_circle(recipe):
    recipe(SMALL, "model.yml")
    recipe("_base_: model.yml\nseed: 1\n", "a.yml")
    recipe("_base_: model.yml\nsample: {seed: 4}\n", "b.yml")
    config = load_config(recipe("_base_: [a.yml, b.yml]\n"))
    assert config.sample.seed == 4
    assert config.seed == 1


def test_overrides_come_last_and_in_order(recipe):
    config = load_config(recipe(), ["seed=3", "seed=4", "train.base.steps=20", "data.shapes=[[8,16],[16,8]]"])
    assert config.seed == 4 and config.train.base.steps == 20
    assert config.data.shapes == [[8, 16], [16, 8]]


def test_equals_signs_and_colons_stay_in_values(recipe):
    config = load_config(recipe(), ["data.train=/data/a=b/x-{000..009}.tar", "output=s3://bucket/key=1"])
    assert config.data.train == "/data/a=b/x-{000..009}.tar"
    assert config.output == "s3://bucket/key=1"


def test_null_takes_a_base_value_away(recipe):
    recipe(SMALL + "train: {base: {min_snr_gamma: 5.0}}\n", "base.yml")
    config = load_config(recipe("_base_: base.yml\ntrain: {base: {min_snr_gamma: null}}\n"))
    assert config.train.base.min_snr_gamma is None


def test_the_result_is_read_only(recipe):
    config = load_config(recipe())
    with pytest.raises(ReadonlyConfigError):
        config.seed = 1
    with pytest.raises(ReadonlyConfigError):
        config.model.unet.config["in_channels"] = 8


def test_fingerprint_is_of_the_content_not_of_its_order():
    one = OmegaConf.create({"a": 1, "b": {"c": [1, 2], "d": "x"}})
    other = OmegaConf.create({"b": {"d": "x", "c": [1, 2]}, "a": 1})
    assert fingerprint(one) == fingerprint(other) == fingerprint({"b": {"d": "x", "c": [1, 2]}, "a": 1})
    assert fingerprint(one) != fingerprint(OmegaConf.create({"a": 1, "b": {"c": [2, 1], "d": "x"}}))


# ---- what is wrong with it


def test_unknown_keys_name_file_key_and_the_likely_one(recipe):
    text = message(recipe(SMALL + "train: {base: {weight_decat: 0.1}}\n"))
    assert "recipe.yml" in text and "train.base.weight_decat" in text and "did you mean train.base.weight_decay" in text


def test_unknown_overrides_are_named(recipe):
    text = message(recipe(), "model.num_expert=4")
    assert "-o model.num_expert=4" in text and "did you mean model.num_experts" in text
    assert "known:" in message(recipe(), "zzz=4")
    assert "train.vae.caption_dropout" in message(recipe(), "train.vae.caption_dropout=0.1")  # of other stages only


def test_keys_of_components_are_free(recipe):
    config = load_config(recipe(), ["model.unet.config.act_fn=gelu", "model.scheduler.beta_schedule=linear"])
    assert config.model.unet.config["act_fn"] == "gelu"


@pytest.mark.parametrize(
    "override, key",
    [
        ("train.base.steps=many", "train.base.steps"),
        ("train.base.steps=1.5", "train.base.steps"),
        ("data.cache_latents=perhaps", "data.cache_latents"),
        ("data.shapes=[[8,wide]]", "data.shapes"),
        ("train.base=5", "train.base"),
        ("model.boundaries=half", "model.boundaries"),
        ("seed=null", "seed"),
        ("data.shapes.0=[8,8]", "data.shapes"),
    ],
)
def test_values_of_the_wrong_type(recipe, override, key):
    text = message(recipe(), override)
    assert override.split("=")[0] in text and key in text


@pytest.mark.parametrize(
    "override, expected",
    [
        ("data.cache_latents=15", "neither true nor false"),
        ("sample.prompts=[[猫,狗]]", "sample.prompts: ['猫', '狗'] stands where one value is needed"),
        ("train.experts.only=[0,{a: 1}]", "train.experts.only: {'a': 1} stands where one value is needed"),
        (f"train.base.learning_rate={'9' * 400}", "int too large to convert to float"),
        (f"train.base.learning_rate={'x' * 5000}", "train.base.learning_rate"),
        ("sample.eta=${nope}", "sample.eta: Interpolation key 'nope' not found"),
        ("sample.eta=${sample.eta}", "sample.eta: Recursive interpolation detected"),
        ("model.unet.config={a: &a [*a]}", "aliases"),
        ("model.unet.config=" + "[" * 3000, "not readable as YAML"),
    ],
)
def test_odd_values_are_one_sentence_that_names_them(recipe, override, expected):
    text = message(recipe(), override)
    assert expected in text and override.split("=")[0] in text
    assert "\n" not in text and len(text) < 1000


def test_aliases_that_would_fill_the_memory(recipe):
    lines = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else 'x'] * 10)}]" for i in range(9)]
    assert "aliases" in message(recipe("\n".join(lines)))


def test_bases_without_end(recipe, tmp_path):
    for number in range(40):  # two ways to each: 2^40 to the last
        following = [] if number == 39 else [f"d{number + 1}.yml"] * 2
        (tmp_path / f"d{number}.yml").write_text(f"_base_: {following}\n", encoding="utf-8")
    assert "256 times" in message(recipe("_base_: d0.yml\n" + SMALL))


@pytest.mark.parametrize("name", ['"\\0"', "link.yml", "'" + "a" * 300 + "'"])
def test_names_of_bases_that_no_file_can_have(recipe, tmp_path, name):
    (tmp_path / "link.yml").symlink_to("link.yml")
    with pytest.raises(FileNotFoundError, match="named as _base_ in .*recipe.yml"):
        load_config(recipe(f"_base_: {name}\n"))


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_overrides_need_a_key_and_a_value(recipe, override):
    assert "a.b=value" in message(recipe(), override)


def test_values_that_are_not_given(recipe):
    assert "output" in message(recipe("data: {train: here}\n"))
    assert "data.train" in message(recipe("output: there\n"))


def test_files_that_are_not_there_or_not_recipes(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yml"):
        load_config(tmp_path / "nowhere.yml")
    with pytest.raises(FileNotFoundError, match="gone.yml.*recipe.yml"):
        load_config(recipe("_base_: gone.yml\n"))
    assert "YAML" in message(recipe("a: [1\n"))
    assert "mapping" in message(recipe("- 1\n- 2\n"))
    assert "no value for" in message(recipe(""))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["data.crop=left"], "data.crop"),
        (["data.crop=random"], "data.cache_latents"),
        (["data.horizontal_flip=0.5"], "data.cache_latents"),
        (["data.horizontal_flip=1.5", "data.cache_latents=false"], "data.horizontal_flip=1.5"),
        (["data.caption=de"], "data.caption"),
        (["knowledge.text.probability=2"], "knowledge.text.probability=2"),
        (["knowledge.text.key_token_weight=-0.1"], "knowledge.text.key_token_weight"),
        (["knowledge.vision.loss.object_weight=-1"], "knowledge.vision.loss.object_weight"),
        (["knowledge.vision.min_score=-1"], "knowledge.vision.min_score"),
        (["knowledge.vision.synonyms=[cat]"], "knowledge.vision.synonyms"),
        (["train.experts.caption_dropout=-0.1"], "train.experts.caption_dropout"),
        (["seed=-1"], "seed=-1"),
        (["train.base.batch_size=0"], "train.base.batch_size=0"),
        (["train.base.batch_size=10", "train.base.accumulation=4"], "accumulation=4"),
        (["train.base.steps=-5"], "train.base.steps=-5"),
        (["train.base.steps=20", "train.base.warmup_steps=21"], "warmup_steps=21"),
        (["train.base.decay=step"], "train.base.decay"),
        (["train.base.ema_decay=1.0"], "train.base.ema_decay"),
        (["train.base.learning_rate=-1e-4"], "train.base.learning_rate"),
        (["train.base.min_snr_gamma=0"], "train.base.min_snr_gamma"),
        (["train.experts.validation_timesteps=0"], "train.experts.validation_timesteps"),
        (["sample.guidance_scale=high"], "sample.guidance_scale=high"),
        (["sample.eta=1.5"], "sample.eta=1.5"),
        (["model.num_experts=0"], "model.num_experts=0"),
        (["data.sets=[{path: a}]"], "not both"),
        (["data.train=null"], "data.sets"),
        (["data.train=null", "data.sets=[{pth: a}]"], "pth"),
        (["data.train=null", "data.sets=[{weight: 2}]"], "data.sets[0].path"),
        (["data.train=null", "data.sets=[{path: a, weight: 0}]"], "data.sets[0].weight=0"),
        (["data.train=null", "data.sets=[{path: a, repeats: 0.5}]"], "data.sets[0].repeats=0.5"),
        (["data.train=null", "data.sets=[{path: a, weight: 1}, {path: b}]"], "data.sets[1]"),
        (["data.train=null", "data.sets=[{path: a}]", "data.annotations=b"], "data.annotations=b"),
        (["data.buckets=none"], "data.buckets"),
    ],
)
def test_values_out_of_range(recipe, overrides, expected):
    assert expected in message(recipe(), *overrides)


def test_averages_that_would_never_see_a_trained_weight(recipe):
    text = message(recipe(), "train.vae.steps=9", "train.vae.ema_every=10")
    assert "train.vae.ema_every=10" in text and "9 steps" in text
    assert load_config(recipe(), ["train.vae.steps=10", "train.vae.ema_every=10"]).train.vae.steps == 10
    assert load_config(recipe(), ["train.vae.steps=0", "train.vae.ema_every=10"]).train.vae.steps == 0


def test_sizes_of_published_weights_are_not_guessed(recipe):
    config = load_config(recipe(), ["model.unet.pretrained=some/folder", "model.unet.config.in_channels=8"])
    assert config.model.unet.pretrained == "some/folder"
