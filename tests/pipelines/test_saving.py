"""Pipeline folders: what is written, what comes back, what a folder may not do."""

from __future__ import annotations

import json
import socket

import numpy as np
import paddle
import ppdiffusers
import pytest

import ppvilg
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler, save_fp16, zoo_folder
from ppvilg.pipelines.folders import zoo

PROMPT = "三只企鹅"


def draw(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(PROMPT, generator=0, output_type="np").images


@pytest.fixture(scope="module")
def folder(components, tmp_path_factory):
    """A saved pipeline and what it draws."""
    pipeline = ErnieViLG2Pipeline(
        **components,
        key_token_weight=0.5,
        max_length=16,
        default_num_inference_steps=3,
        default_guidance_scale=[2.0] * 4,
    )
    place = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(place)
    return place, draw(pipeline)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_folder_draws_the_same_pixels_without_network(folder, no_network):
    place, pixels = folder
    loaded = ErnieViLG2Pipeline.from_pretrained(place)
    assert np.array_equal(draw(loaded), pixels)
    assert loaded.dtype == paddle.float32
    assert loaded.config.default_guidance_scale == [2.0] * 4 and loaded.config.key_token_weight == 0.5
    assert not any(layer.training for layer in (loaded.vae, loaded.text_encoder, loaded.unet))


def test_a_loaded_and_saved_folder_names_no_place(folder, tmp_path):
    place, pixels = folder
    ErnieViLG2Pipeline.from_pretrained(place).save_pretrained(tmp_path / "again")
    files = sorted((tmp_path / "again").rglob("*.json"))
    assert files and not [file for file in files if str(place) in file.read_text(encoding="utf-8")]
    assert np.array_equal(draw(ErnieViLG2Pipeline.from_pretrained(tmp_path / "again")), pixels)


def test_ppdiffusers_finds_the_pipeline_class(folder, no_network):
    place, pixels = folder
    assert ppvilg.ErnieViLG2Pipeline is ErnieViLG2Pipeline
    loaded = ppdiffusers.DiffusionPipeline.from_pretrained(str(place))
    assert type(loaded) is ErnieViLG2Pipeline
    assert np.array_equal(draw(loaded), pixels)


def test_layout_of_the_folder(folder):
    place, _ = folder
    weights = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.stat().st_size > 5000)
    assert weights and all(path.endswith(".safetensors") for path in weights)
    assert {path.split("/")[0] for path in weights} == {"vae", "text_encoder", "unet"}
    index = json.loads((place / "model_index.json").read_text())
    assert index["unet"] == ["ppvilg.models.unet", "MoDEUNet2DConditionModel"]
    assert not any(str(place) in path.read_text(encoding="utf-8") for path in place.rglob("*.json"))


def test_replaced_components_are_saved_so_that_they_load(components, pipeline, tmp_path):
    from paddlenlp.transformers import ErnieModel

    encoder = ErnieModel(components["text_encoder"].config)
    pipeline.text_encoder = encoder
    pipeline.unet = type(pipeline.unet).from_base(pipeline.unet, 2)
    pipeline.scheduler = build_scheduler("euler", pipeline.scheduler.config)
    pixels = draw(pipeline)
    pipeline.save_pretrained(tmp_path)
    loaded = ErnieViLG2Pipeline.from_pretrained(tmp_path)
    assert np.array_equal(draw(loaded), pixels)
    assert loaded.unet.num_experts == 2 and type(loaded.scheduler).__name__ == "EulerDiscreteScheduler"


def test_autoencoder_of_patches(pipeline, tmp_path):
    from ppvilg.models import PatchAutoencoderKL

    pipeline.vae = PatchAutoencoderKL(block_out_channels=[8, 16], latent_channels=4, norm_num_groups=4)
    pipeline.vae.eval()
    assert pipeline.size_multiple == 16
    pixels = draw(pipeline)
    assert pixels.shape == (1, 64, 64, 3)
    save_fp16(pipeline, tmp_path)
    loaded = ErnieViLG2Pipeline.from_pretrained(tmp_path)
    assert type(loaded.vae) is PatchAutoencoderKL
    np.testing.assert_allclose(draw(loaded), pixels, atol=0.02)


def test_release_folder_is_half_as_large_and_loads_to_float32(folder, pipeline, tmp_path):
    place, pixels = folder
    size = save_fp16(pipeline, tmp_path)
    full = sum(path.stat().st_size for path in place.rglob("*.safetensors"))
    assert size == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 0.7 * full
    for loaded in (
        ErnieViLG2Pipeline.from_pretrained(tmp_path),
        ppdiffusers.DiffusionPipeline.from_pretrained(str(tmp_path)),
    ):
        parameters = [p for layer in (loaded.vae, loaded.text_encoder, loaded.unet) for p in layer.parameters()]
        assert {parameter.dtype for parameter in parameters} == {paddle.float32}
        np.testing.assert_allclose(draw(loaded), pixels, atol=0.02)
    assert np.array_equal(draw(pipeline), pixels)  # the one that was saved is as it was


def test_weights_too_large_for_float16_are_named(pipeline, tmp_path):
    weight = pipeline.vae.quant_conv.bias
    before = weight.clone()
    weight.set_value(weight + 1e6)
    try:
        with pytest.raises(ValueError, match="quant_conv.bias reaches 1e\\+06"):
            save_fp16(pipeline, tmp_path)
    finally:
        weight.set_value(before)


# ---- names ----


def test_unknown_names_and_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a model of the zoo \(emoji64\)"):
        ErnieViLG2Pipeline.from_pretrained("emoji65")
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        ErnieViLG2Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not in the zoo: emoji64"):
        zoo_folder("emoji65")


@pytest.fixture
def packaged(folder, monkeypatch, tmp_path):
    """A package folder whose zoo has emoji64."""
    (tmp_path / "package" / "zoo").mkdir(parents=True)
    (tmp_path / "package" / "zoo" / "emoji64").symlink_to(folder[0])
    monkeypatch.setattr(zoo.importlib.resources, "files", lambda name: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_zoo_name_loads_from_the_package(packaged, folder, no_network):
    assert np.array_equal(draw(ErnieViLG2Pipeline.from_pretrained("emoji64")), folder[1])


def test_local_pipeline_folder_wins_over_the_zoo_aloud(packaged, folder):
    (packaged / "emoji64").mkdir()
    assert zoo.resolve("emoji64") == zoo_folder("emoji64")  # an empty folder is no pipeline
    (packaged / "emoji64" / "model_index.json").write_text("{}")
    with pytest.warns(UserWarning, match="is a folder here and a zoo model"):
        assert zoo.resolve("emoji64").resolve() == packaged / "emoji64"
    assert zoo.resolve("./emoji64").resolve() == packaged / "emoji64"


def test_zoo_model_that_is_not_installed(packaged):
    (packaged / "package" / "zoo" / "emoji64").unlink()
    with pytest.raises(FileNotFoundError, match="is not installed"):
        zoo_folder("emoji64")


# ---- published weights ----


@pytest.fixture(scope="module")
def published(components, tmp_path_factory):
    """Folders like those of published weights: ERNIE without marks, UNet and VAE with PyTorch diffusers' names."""
    from paddlenlp.transformers import ErnieConfig, ErnieModel, ErnieTokenizer
    from ppdiffusers import UNet2DConditionModel

    place = tmp_path_factory.mktemp("published")
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *"三只企鹅红色的车"]
    (place / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    ErnieTokenizer(str(place / "vocab.txt")).save_pretrained(str(place / "ernie"))
    config = ErnieConfig(**{**components["text_encoder"].config.to_dict(), "vocab_size": len(words)})
    ErnieModel(config).save_pretrained(str(place / "ernie"))
    unet = UNet2DConditionModel(**components["unet"].config.unet)
    unet.save_pretrained(str(place / "unet"), to_diffusers=True)
    components["vae"].save_pretrained(str(place / "vae"), to_diffusers=True)
    build_scheduler("ddim", {"num_train_timesteps": 50}).save_pretrained(str(place / "scheduler"))
    return place, unet


def test_published_weights_become_a_pipeline(published, no_network, tmp_path):
    place, unet = published
    names = {name: place / name for name in ("ernie", "unet", "vae", "scheduler")}
    pipeline = ErnieViLG2Pipeline.from_published(**names, num_experts=3, max_length=16, default_num_inference_steps=2)
    assert pipeline.unet.num_experts == 3 and pipeline.unet.num_train_timesteps == 50
    assert pipeline.tokenizer.tokenize("[n]车") == ["[n]", "车"]
    inputs = paddle.ones([1, 4, 8, 8]), 7, paddle.ones([1, 5, 16])
    np.testing.assert_allclose(pipeline.unet(*inputs).sample.numpy(), unet(*inputs).sample.numpy(), atol=1e-5)
    pixels = draw(pipeline)
    assert np.isfinite(pixels).all()
    pipeline.save_pretrained(tmp_path)
    assert np.array_equal(draw(ErnieViLG2Pipeline.from_pretrained(tmp_path)), pixels)


def test_published_weights_without_a_scheduler_get_stable_diffusions(published):
    place, _ = published
    pipeline = ErnieViLG2Pipeline.from_published(place / "ernie", unet=place / "unet", vae=place / "vae", max_length=16)
    config = pipeline.scheduler.config
    assert (config.num_train_timesteps, config.beta_schedule, config.clip_sample) == (1000, "scaled_linear", False)


def test_missing_published_folder_is_named(published):
    place, _ = published
    with pytest.raises(FileNotFoundError, match="vae: .*nowhere' is not a folder"):
        ErnieViLG2Pipeline.from_published(place / "ernie", unet=place / "unet", vae=place / "nowhere")
