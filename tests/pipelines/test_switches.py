"""Every public method of ppdiffusers' pipeline class on plain, streamed and exported pipelines: works, or says no."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import paddle
import pytest
from ppdiffusers import AutoPipelineForText2Image, DiffusionPipeline
from ppdiffusers.loaders import IPAdapterMixin, LoraLoaderMixin, TextualInversionLoaderMixin
from ppdiffusers.models.attention_processor import AttnProcessor

from ppvilg.models import KeyWeightedAttnProcessor
from ppvilg.pipelines import ErnieViLG2Pipeline
from tests.bundles import bundle, tiny  # noqa: F401  (fixtures)

CALLS = {
    "register_modules": {},
    "set_progress_bar_config": {"disable": True},
    "progress_bar": {"total": 1},
    "numpy_to_pil": {"images": np.zeros((1, 4, 4, 3), np.float32)},
    "enable_freeu": {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4},
    "set_attention_slice": {"slice_size": 1},
    "set_use_memory_efficient_attention_xformers": {"valid": False},
    "to": {"dtype": "float64"},
}
UNLIKE = {"apply_tome", "enable_freeu", "to"}  # what may change the picture
NOT_CALLED = {"from_pretrained", "save_pretrained", "from_config", "load_config", "register_to_config", "save_config"}
NAMES = sorted(
    name
    for name, member in inspect.getmembers(DiffusionPipeline)
    if not name.startswith("_") and callable(member) and name in vars(DiffusionPipeline) and name not in NOT_CALLED
)
PROPERTIES = ("components", "device", "dtype", "name_or_path", "attn_processors", "interrupt")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):  # noqa: F811
    place = tmp_path_factory.mktemp("saved")
    tiny.save_pretrained(place)
    return place


@pytest.fixture(params=["plain", "streamed", "exported"])
def kind(request, saved, bundle):  # noqa: F811
    if request.param == "plain":
        built = ErnieViLG2Pipeline.from_pretrained(saved)
    elif request.param == "streamed":
        built = ErnieViLG2Pipeline.from_pretrained(saved, max_resident_experts=1)
    else:
        built = ErnieViLG2Pipeline.from_exported(bundle)
    built.set_progress_bar_config(disable=True)
    return built


def draw(pipeline) -> np.ndarray:
    return pipeline("红色的车", generator=0, output_type="np").images


def weighted_layers(pipeline) -> int:
    return sum(isinstance(p, KeyWeightedAttnProcessor) for p in pipeline.unet.attn_processors.values())


def test_every_public_method_works_or_refuses_by_its_name(kind):
    expected, weighted, refused = draw(kind), weighted_layers(kind), []
    for name in NAMES:
        try:
            getattr(kind, name)(**CALLS.get(name, {}))
        except (ValueError, NotImplementedError) as error:
            assert str(error) and "\n" not in str(error), name
            refused.append(name)
        if name not in UNLIKE and name not in refused:
            np.testing.assert_allclose(draw(kind), expected, atol=1e-4, err_msg=name)
        if name in ("to", "enable_freeu") and name not in refused:
            kind.to(dtype="float32")
            kind.disable_freeu()
            np.testing.assert_allclose(draw(kind), expected, atol=1e-4, err_msg=name)
        assert weighted_layers(kind) == weighted
    for name in PROPERTIES:
        try:
            getattr(kind, name)
        except ValueError:
            refused.append(name)
    if not kind.is_exported and not kind.is_streamed:
        assert refused == []
    else:
        assert {"enable_attention_slicing", "enable_freeu", "set_attention_slice", "to", "attn_processors"} < set(
            refused
        )
        assert not {"components", "device", "dtype", "progress_bar"} & set(refused)


def test_loaders_of_stable_diffusion_are_not_there_and_say_so(tiny):  # noqa: F811
    for mixin in (LoraLoaderMixin, TextualInversionLoaderMixin, IPAdapterMixin):
        for name in filter(lambda name: not name.startswith("_"), vars(mixin)):
            with pytest.raises(AttributeError, match=f"has no {name}"):
                getattr(tiny, name)


def test_no_switch_takes_text_knowledge_away(tiny):  # noqa: F811
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


def test_copies(kind):
    if kind.is_exported or kind.is_streamed:
        with pytest.raises(ValueError, match="cannot be deep-copied"):
            copy.deepcopy(kind)
    else:
        assert np.array_equal(draw(copy.deepcopy(kind)), draw(kind))
    assert np.array_equal(draw(copy.copy(kind)), draw(kind))


def test_auto_pipeline_and_subfolder(saved):
    assert isinstance(AutoPipelineForText2Image.from_pretrained(str(saved)), ErnieViLG2Pipeline)
    assert ErnieViLG2Pipeline.from_pretrained(saved.parent, subfolder=saved.name).unet.num_experts == 2
