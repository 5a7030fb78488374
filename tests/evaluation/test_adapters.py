"""`-o lora=PATH[:SCALE]`: a suite draws with adapters, says which, and refuses what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ppvilg.config import ConfigError, load
from ppvilg.evaluation import ObjectsRecipe, ObjectsSuite
from ppvilg.evaluation.drawing.painter import Painter
from ppvilg.evaluation.drawing.sampling import Sampling
from ppvilg.files import file_sha256
from ppvilg.models.lora import Adapter, AdapterSettings, LowRank, TaughtWord
from ppvilg.models.lora_files import write_adapter
from tests.bundles import bundle, components, tiny  # noqa: F401  (fixtures)

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    random = np.random.default_rng(0)
    change = LowRank(*(random.standard_normal(shape).astype("f4") for shape in ((2, 16), (8, 2))))
    word = TaughtWord("狐狸", "n", None, random.standard_normal(16).astype("f4"))
    file = tmp_path_factory.mktemp("adapter") / "fox.safetensors"
    write_adapter(Adapter({LAYER: change}, settings=AdapterSettings(2, [0, 50, 100]), words=[word]), file)
    return file


def test_objects_with_an_adapter(model, adapter, tmp_path):
    found = {}
    for name, lora in (("plain", None), ("all", f"{adapter}"), ("second", [f"{adapter}:0,1"])):
        recipe = ObjectsRecipe(
            output=str(tmp_path / name),
            model=model,
            lora=lora,
            sources=["model"],
            prompts={"single": 2},
            num_inference_steps=2,
            blind_pictures=0,
        )
        report = ObjectsSuite(recipe).run()
        written = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert written["drawn_with"] == report["drawn_with"] and written["protocol"]["lora"] == lora
        pictures = [
            np.asarray(Image.open(path)).ravel() for path in sorted((tmp_path / name).glob("model/*/samples/*.png"))
        ]
        found[name] = report["drawn_with"].get("lora"), np.concatenate(pictures)
    sha256 = file_sha256(adapter)
    assert found["plain"][0] is None
    assert found["all"][0] == [{"sha256": sha256, "scale": 1.0}]
    assert found["second"][0] == [{"sha256": sha256, "scale": [0.0, 1.0]}]
    for one, other in (("plain", "all"), ("plain", "second"), ("all", "second")):
        assert not np.array_equal(found[one][1], found[other][1]), (one, other)
    with pytest.raises(ValueError, match="lora"):  # pictures of another protocol are not taken for its own
        prompts = [{"prompt": "三只企鹅", "width": 64, "height": 64}]
        Painter(Sampling(model=model, num_inference_steps=2)).draw(tmp_path / "p", prompts)
        Painter(Sampling(model=model, num_inference_steps=2, lora=str(adapter))).draw(tmp_path / "p", prompts)


def test_what_is_refused_before_anything_is_loaded(bundle, model, adapter, tmp_path):  # noqa: F811
    for error, message, settings in (
        (ValueError, "is a bundle, whose graphs stay as exported", {"model": str(bundle), "lora": str(adapter)}),
        (FileNotFoundError, "none.safetensors is missing", {"model": model, "lora": "none.safetensors:0.5"}),
        (ValueError, "has 3 scales, needs 1 or one for each of 2", {"model": model, "lora": f"{adapter}:0,0,1"}),
    ):
        with pytest.raises(error, match=message):
            Painter(Sampling(**settings))
    recipe = tmp_path / "objects.yml"
    recipe.write_text(f"suite: objects\noutput: {tmp_path / 'out'}\n", encoding="utf-8")
    for override, message in (
        ("lora=a.safetensors:much", "'much' is no scale"),
        ("lora={a: 1}", "must be PATH, PATH:SCALE or a list"),
        ("lora=[3]", "must be PATH, PATH:SCALE or a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(ObjectsRecipe, recipe, [override])
    assert load(ObjectsRecipe, recipe, ["lora=[a.safetensors,b:0.5]"]).lora == ["a.safetensors", "b:0.5"]
