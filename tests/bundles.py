"""A tiny pipeline of two experts and its export bundle, made once for a folder that imports the fixtures."""

from __future__ import annotations

import importlib.util

import pytest

from tests.components import CAPTIONS, components  # noqa: F401  (components: a fixture)

PROMPTS = CAPTIONS[:3]


@pytest.fixture(scope="session")
def tiny(components):  # noqa: F811
    """A dygraph pipeline; tests must leave it as it is."""
    import paddle

    from ppvilg.models import MoDEUNet2DConditionModel
    from ppvilg.pipelines import ErnieViLG2Pipeline

    paddle.seed(3)
    unet = MoDEUNet2DConditionModel.from_base(components["unet"], 2)
    unet.eval()
    built = ErnieViLG2Pipeline(
        **{**components, "unet": unet},
        key_token_weight=0.5,
        max_length=16,
        default_num_inference_steps=3,
        default_guidance_scale=2.0,
    )
    built.set_progress_bar_config(disable=True)
    return built


# Those that were installed: the others are extras of the package.
BACKENDS = ["cpu", "onednn", *(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))]


def export_tiny(tiny, tmp_path_factory, backends):
    """Folder of a new export bundle of `tiny`."""
    from ppvilg.export import export_pipeline

    folder = tmp_path_factory.mktemp("export") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        export_pipeline(tiny, folder, backends, prompts=PROMPTS)
    return folder


@pytest.fixture(scope="session")
def bundle(tiny, tmp_path_factory):
    """The export of `tiny` for every back end of a CPU; tests must leave it as it is."""
    return export_tiny(tiny, tmp_path_factory, BACKENDS)
