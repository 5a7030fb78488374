"""A tiny pipeline of two experts and its export bundle, made once for a folder that imports the fixtures."""

from __future__ import annotations

import fcntl
import importlib.util
import os

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


# Those that an export can be made for here: the others are extras of the package, and their converter, paddle2onnx, is
# not built for Python 3.13.
EXTRAS = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
BACKENDS = ["cpu", "onednn", *(EXTRAS if importlib.util.find_spec("paddle2onnx") else [])]


def export_tiny(tiny, tmp_path_factory, backends):
    """Folder of the export bundle of `tiny`, made by the test process that asks first; tests must leave it as it is."""
    from ppvilg.export import export_pipeline

    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundles" / "-".join(backends)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "tiny").exists():
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
            export_pipeline(tiny, place / "tiny", backends, prompts=PROMPTS)
    return place / "tiny"


@pytest.fixture(scope="session")
def bundle(tiny, tmp_path_factory):
    """The export of `tiny` for every back end of a CPU; tests must leave it as it is."""
    return export_tiny(tiny, tmp_path_factory, BACKENDS)
