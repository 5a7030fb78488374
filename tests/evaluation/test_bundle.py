"""An export bundle is evaluated like the folder it was made from, and the results say which bundle ran on what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ppvilg.emoji.captions import held_out_prompts
from ppvilg.evaluation import ObjectsRecipe, ObjectsSuite
from ppvilg.evaluation.drawing.painter import Painter
from ppvilg.evaluation.drawing.sampling import Sampling
from ppvilg.inference import fastest_proven
from ppvilg.pipelines.folders import identify
from tests.bundles import bundle, components, tiny  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> str:  # noqa: F811
    place = tmp_path_factory.mktemp("tiny")
    tiny.save_pretrained(place)
    return str(place)


def test_objects_on_a_bundle(bundle, folder, tmp_path):  # noqa: F811
    counts = {"prompts": {"single": 3, "pair": 1, "count": 1}, "sources": ["model", "reconstruction"]}
    reports = {}
    for name, model in (("folder", folder), ("bundle", str(bundle))):
        recipe = ObjectsRecipe(output=str(tmp_path / name), model=model, **counts)
        reports[name] = ObjectsSuite(recipe).run()
    drawn = reports["bundle"]["drawn_with"]
    assert drawn["backend"] == fastest_proven(bundle)[0]
    assert drawn["model_sha256"] == reports["bundle"]["hashes"]["model"]
    assert "backend" not in reports["folder"]["drawn_with"]
    assert reports["bundle"]["hashes"]["model"] != reports["folder"]["hashes"]["model"]
    same = {key: value for key, value in reports["folder"]["drawn_with"].items() if key != "model_sha256"}
    assert {key: value for key, value in drawn.items() if key not in ("model_sha256", "backend")} == same
    pictures = {}
    for name in reports:
        written = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert written["drawn_with"] == reports[name]["drawn_with"]
        for source in counts["sources"]:
            paths = sorted((tmp_path / name / source).glob("*/samples/0000.png"))
            assert len(paths) == 5
            pictures[name, source] = [np.asarray(_read(path), dtype=int) for path in paths]
    for source in counts["sources"]:
        for one, other in zip(pictures["folder", source], pictures["bundle", source]):
            assert np.abs(one - other).max() <= 1 and one.std() > 1


def _read(path: Path):
    from PIL import Image

    return Image.open(path)


def test_what_is_refused_before_anything_is_loaded(bundle, folder):  # noqa: F811
    refusals = {
        "backend 'onednn' is for bundles": {"model": folder, "backend": "onednn"},
        "is proven for .*not for backend 'gpu'|backend 'gpu'": {"model": str(bundle), "backend": "gpu"},
        "needs one number, or one for each of 2 experts": {"model": str(bundle), "guidance_scale": [1, 2, 3]},
        "the model has 100 timesteps": {"model": str(bundle), "num_inference_steps": 1001},
    }
    for message, settings in refusals.items():
        with pytest.raises(ValueError, match=message):
            Painter(Sampling(**settings))
    prompts = [{**held_out_prompts("single", 1)[0], "width": 65}]
    with pytest.raises(ValueError, match="prompt 0 asks for width=65: must be a multiple of"):
        Painter(Sampling(model=folder)).draw("nowhere", prompts)


def test_identity_is_of_the_contents(bundle, folder, tiny):  # noqa: F811
    of_bundle, of_folder = identify(bundle), identify(folder)
    assert of_bundle.backend == fastest_proven(bundle)[0] and of_folder.backend is None
    assert of_bundle.sha256 == identify(str(bundle), "onednn").sha256 != of_folder.sha256
    for found in (of_bundle, of_folder):
        assert (found.num_inference_steps, found.guidance_scale, found.num_experts) == (3, 2.0, 2)
        assert found.size_multiple == tiny.size_multiple
        assert found.num_train_timesteps == tiny.scheduler.config.num_train_timesteps
    for name, message in (("unet/config.json", "cannot be read as JSON"), ("vae/config.json", "is missing")):
        file = Path(folder) / name
        kept = file.read_bytes()
        if message == "is missing":
            file.unlink()
        else:
            file.write_bytes(kept[:20])
        with pytest.raises((ValueError, FileNotFoundError), match=f"{name} {message}|{name} is {message}"):
            identify(folder)
        file.write_bytes(kept)
