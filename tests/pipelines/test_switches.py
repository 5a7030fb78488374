"""Every public method of ppdiffusers' pipeline class on plain, streamed and exported pipelines: works, or says no."""

from __future__ import annotations

import copy
import inspect
import os
import threading
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from ppdiffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)
from ppdiffusers.loaders import IPAdapterMixin, LoraLoaderMixin, TextualInversionLoaderMixin
from ppdiffusers.models.attention_processor import AttnProcessor
from ppdiffusers.utils import download_utils, hub_utils, paddle_utils
from ppdiffusers.utils.import_utils import is_ppxformers_available

from ppvilg.models import KeyWeightedAttnProcessor
from ppvilg.pipelines import ErnieViLG2Pipeline

PUBLIC = {name: member for name, member in inspect.getmembers(DiffusionPipeline) if not name.startswith("_")}
METHODS = sorted(name for name, member in PUBLIC.items() if callable(member))
PROPERTIES = sorted(name for name, member in PUBLIC.items() if isinstance(member, property))
UPLOADS = {"push_to_hub", "save_to_aistudio"}
# What changes the picture, and the call that takes it back.
UNDONE_BY = {
    "apply_tome": ("remove_tome", {}),
    "enable_freeu": ("disable_freeu", {}),
    "to": ("to", {"dtype": "float32"}),
}
NETWORKS = {
    "apply_tome",
    "attn_processors",
    "disable_attention_slicing",
    "disable_freeu",
    "disable_xformers_memory_efficient_attention",
    "enable_attention_slicing",
    "enable_freeu",
    "enable_xformers_memory_efficient_attention",
    "push_to_hub",
    "remove_tome",
    "save_pretrained",
    "save_to_aistudio",
    "set_attention_slice",
    "set_use_memory_efficient_attention_xformers",
    "to",
}
FUSED = set() if is_ppxformers_available() else {"enable_xformers_memory_efficient_attention"}  # a GPU's alone
REFUSED = {"plain": FUSED, "streamed": NETWORKS, "exported": NETWORKS | {"save_config"}}


def arguments_of(name: str, pipeline, saved, place) -> dict:
    """What a method is called with."""
    return {
        "enable_freeu": {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4},
        "extract_init_dict": {"config_dict": pipeline.config},
        "from_config": {"config": pipeline.config, **pipeline.components},
        "from_pretrained": {"pretrained_model_name_or_path": saved},
        "get_config_dict": {"pretrained_model_name_or_path": str(saved)},
        "load_config": {"pretrained_model_name_or_path": str(saved)},
        "numpy_to_pil": {"images": np.zeros((1, 4, 4, 3), np.float32)},
        "progress_bar": {"total": 1},
        "push_to_hub": {"repo_id": "a/b"},
        "save_config": {"save_directory": place / "config"},
        "save_pretrained": {"save_directory": place / "folder"},
        "save_to_aistudio": {"repo_id": "a/b"},
        "set_attention_slice": {"slice_size": 1},
        "set_progress_bar_config": {"disable": True},
        "set_use_memory_efficient_attention_xformers": {"valid": False},
        "to": {"dtype": "float64"},
        "to_json_file": {"json_file_path": place / "config.json"},
    }.get(name, {})


@pytest.fixture(params=["plain", "streamed", "exported"])
def kind(request, saved, bundle):
    if request.param == "plain":
        built = ErnieViLG2Pipeline.from_pretrained(saved)
    elif request.param == "streamed":
        built = ErnieViLG2Pipeline.from_pretrained(saved, max_resident_experts=1)
    else:
        built = ErnieViLG2Pipeline.from_exported(bundle)
    built.set_progress_bar_config(disable=True)
    built.test_name = request.param
    return built


@pytest.fixture
def uploads(monkeypatch) -> list:
    """What would be uploaded: names of files; making a repository counts too."""
    seen = []

    def listed(self, folder, *args, **kwargs):
        seen.append(sorted(os.listdir(folder)))
        return "uploaded"

    monkeypatch.setattr(
        hub_utils, "create_repo", lambda repo_id, **_: seen.append(repo_id) or SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr(download_utils, "aistudio_create_repo", lambda repo_id, **_: seen.append(repo_id) or {})
    monkeypatch.setattr(DiffusionPipeline, "_upload_folder", listed)
    monkeypatch.setattr(DiffusionPipeline, "_upload_folder_aistudio", listed)
    return seen


def draw(pipeline, seed: int = 0, **arguments) -> np.ndarray:
    return pipeline("红色的车", generator=seed, output_type="np", **arguments).images


def weighted_layers(pipeline) -> int:
    return sum(isinstance(p, KeyWeightedAttnProcessor) for p in pipeline.unet.attn_processors.values())


def test_every_public_method_works_or_refuses_by_its_name(kind, saved, tmp_path, uploads):
    expected, weighted, refused = draw(kind), weighted_layers(kind), set()
    for name in METHODS:
        try:
            result = getattr(kind, name)(**arguments_of(name, kind, saved, tmp_path))
        except ValueError as error:
            assert str(error) and "\n" not in str(error), name
            refused.add(name)
        else:
            if isinstance(result, DiffusionPipeline) and name.startswith("from_"):
                result.set_progress_bar_config(disable=True)
                np.testing.assert_allclose(draw(result), expected, atol=1e-4, err_msg=name)
            if name in UNDONE_BY:
                assert np.isfinite(draw(kind)).all(), name
                undo, arguments = UNDONE_BY[name]
                getattr(kind, undo)(**arguments)
        np.testing.assert_allclose(draw(kind), expected, atol=1e-4, err_msg=name)
        assert weighted_layers(kind) == weighted, name
    for name in [*PROPERTIES, "attn_processors", "interrupt"]:
        try:
            getattr(kind, name)
        except ValueError:
            refused.add(name)
    assert refused == REFUSED[kind.test_name]
    assert len(uploads) == (0 if refused & UPLOADS else 4)
    assert all("model_index.json" in each for each in uploads[1::2])
    files = {"to_json_file": "config.json", "save_config": "config", "save_pretrained": "folder"}
    written = {file for name, file in files.items() if name not in refused}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_freeu_filters_as_numpy_does(tiny):
    pipeline = copy.deepcopy(tiny)
    plain = draw(pipeline)
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert np.abs(draw(pipeline) - plain).max() > 0.01
    assert np.array_equal(draw(pipeline, num_images_per_prompt=2)[0], draw(pipeline)[0])
    pixels = np.random.default_rng(0).standard_normal((2, 3, 6, 8), dtype=np.float32)
    spectrum = np.fft.fftshift(np.fft.fftn(pixels, axes=(-2, -1)), axes=(-2, -1))
    spectrum[..., 2:4, 3:5] *= 0.2
    expected = np.fft.ifftn(np.fft.ifftshift(spectrum, axes=(-2, -1)), axes=(-2, -1)).real
    found = paddle_utils.fourier_filter(paddle.to_tensor(pixels), threshold=1, scale=0.2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_token_merging_takes_no_seed_away(tiny):
    pipeline = copy.deepcopy(tiny)
    plain = draw(pipeline)
    assert pipeline.apply_tome() is pipeline
    alone = [draw(pipeline, seed)[0] for seed in range(3)]
    assert np.abs(alone[0] - plain[0]).max() > 0.01
    assert np.array_equal(draw(pipeline, 0, num_images_per_prompt=3), alone)
    with pytest.raises(ValueError, match=r"apply_tome\(use_rand=True\).*seeds"):
        pipeline.apply_tome(use_rand=True)
    with pytest.raises(ValueError, match="sx must be a whole number from 1, got 0"):
        pipeline.apply_tome(sx=0)
    with pytest.raises(ValueError, match="remove_tome first"):
        copy.deepcopy(pipeline)
    assert np.array_equal(draw(pipeline)[0], alone[0])
    pipeline.remove_tome()
    assert np.array_equal(draw(pipeline), plain)


def test_token_merging_of_two_sizes_in_two_threads(tiny):
    pipeline, found = copy.deepcopy(tiny).apply_tome(), {}
    expected = {height: draw(pipeline, height=height) for height in (16, 32)}

    def work(height):
        found[height] = [draw(pipeline, height=height) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(height,)) for height in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each, expected[height]) for height, drawn in found.items() for each in drawn)
    assert found.keys() == expected.keys()


def test_loaders_of_stable_diffusion_are_not_there_and_say_so(tiny):
    assert hasattr(tiny, "load_lora_weights")
    for mixin in (LoraLoaderMixin, TextualInversionLoaderMixin, IPAdapterMixin):
        names = [name for name in vars(mixin) if not name.startswith("_") and not hasattr(ErnieViLG2Pipeline, name)]
        assert names
        for name in names:
            with pytest.raises(AttributeError, match=f"has no {name}"):
                getattr(tiny, name)


def test_no_switch_takes_text_knowledge_away(tiny):
    pipeline = copy.deepcopy(tiny)
    pipeline.set_progress_bar_config(disable=True)
    before, plain = draw(pipeline), weighted_layers(pipeline)
    assert plain == len(pipeline.attn_processors) > 0
    pipeline.set_attn_processor(AttnProcessor())
    pipeline.unet.experts[0].set_attn_processor(AttnProcessor())
    pipeline.disable_xformers_memory_efficient_attention()
    pipeline.unet.experts[1].set_attention_slice(1)
    assert weighted_layers(pipeline) == plain
    np.testing.assert_allclose(draw(pipeline), before, atol=1e-5)
    pipeline.set_attn_processor(dict(pipeline.attn_processors))
    with pytest.raises(ValueError, match="processors must be named as the"):
        pipeline.set_attn_processor({"experts.9.processor": AttnProcessor()})


def test_devices_and_dtypes_that_are_not_there(kind):
    expected = draw(kind)
    assert kind.to("cpu") is kind and kind.to(paddle.float32) is kind and str(kind.device) == "cpu"
    with pytest.raises(ValueError, match=r"to\(.*float16"):
        kind.to(paddle.float16)
    with pytest.raises(ValueError, match="gpu"):
        kind.to("gpu:7")
    with pytest.raises(ValueError, match="devices are"):
        kind.to("moon")
    assert np.array_equal(draw(kind), expected)


@pytest.mark.parametrize("form", [{"safe_serialization": False}, {"variant": "fp16"}, {"to_diffusers": True}])
def test_forms_that_could_not_be_read_again(tiny, form, tmp_path, uploads):
    for name, place in (("save_pretrained", tmp_path / "folder"), ("push_to_hub", "a/b"), ("save_to_aistudio", "a/b")):
        with pytest.raises(ValueError, match=f"{name}: weights are written as safetensors"):
            getattr(tiny, name)(place, **form)
    assert not uploads and not any(tmp_path.iterdir())


def test_copies(kind):
    if kind.is_exported or kind.is_streamed:
        with pytest.raises(ValueError, match="cannot be deep-copied"):
            copy.deepcopy(kind)
    else:
        assert np.array_equal(draw(copy.deepcopy(kind)), draw(kind))
    assert np.array_equal(draw(copy.copy(kind)), draw(kind))


def test_an_interrupted_copy_spares_the_original(tiny):
    """Copies share networks, and adapters must know of each other's drawings; calls are each one's own."""
    pipeline, seen = copy.deepcopy(tiny), []
    pipeline.set_progress_bar_config(disable=True)
    copied = copy.copy(pipeline)

    def inner(caller, step, *_):
        seen.append(step)
        assert pipeline.is_drawing and not copied.interrupt
        caller._interrupt = True

    def outer(caller, step, *_):
        assert caller is copied and copied.is_drawing
        draw(pipeline, num_inference_steps=3, callback_on_step_end=inner)
        assert not copied.interrupt

    expected = draw(pipeline, num_inference_steps=2)
    assert np.array_equal(draw(copied, num_inference_steps=2, callback_on_step_end=outer), expected)
    assert seen == [0, 0] and not pipeline.is_drawing
    assert paddle.is_grad_enabled()  # a call inside a call puts back what it found


def test_auto_pipelines_and_subfolder(saved):
    opened = AutoPipelineForText2Image.from_pretrained(str(saved))
    assert isinstance(opened, ErnieViLG2Pipeline)
    for auto in (AutoPipelineForImage2Image, AutoPipelineForInpainting):
        other = auto.from_pipe(opened)
        assert isinstance(other, ErnieViLG2Pipeline) and other.unet is opened.unet
        assert other.config.key_token_weight == 0.5
    assert ErnieViLG2Pipeline.from_pretrained(saved.parent, subfolder=saved.name).unet.num_experts == 2
