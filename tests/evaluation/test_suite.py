"""Recipes of evaluations: every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppvilg.emoji.detector_training import DetectorRecipe
from ppvilg.evaluation import ObjectsRecipe, load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "evaluation"


def test_shipped_recipes_load():
    recipe = load_recipe(
        ObjectsRecipe, CONFIGS / "objects.yml", ["prompts.pair=3", "guidance_scale=[3,2]", "model=a=b"]
    )
    assert recipe.prompts == {"single": 120, "pair": 3, "count": 100}
    assert recipe.guidance_scale == [3, 2] and recipe.model == "a=b" and recipe.detector is None
    assert load_recipe(DetectorRecipe, CONFIGS / "detector.yml").seed == 1_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["guidance_scales=3"], "-o guidance_scales=3: unknown key 'guidance_scales'; did you mean guidance_scale?"),
        (["prompts.singel=3"], "unknown key 'prompts.singel'; did you mean prompts.single?"),
        (["seed=many"], "-o seed=many: seed: Value 'many'"),
        (["seed"], "override 'seed' is not of the form key=value"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["sources=[model,paintings]"], "use some of model, reconstruction, renders"),
        (["prompts={single: -1}"], "use how many of single, pair, count"),
        (["blind_pictures=-1"], "blind_pictures=-1 must not be negative"),
    ],
)
def test_mistakes_in_overrides(overrides, message):
    with pytest.raises(ValueError) as caught:
        load_recipe(ObjectsRecipe, CONFIGS / "objects.yml", overrides)
    assert message in str(caught.value)


def test_mistakes_in_files(tmp_path):
    path = tmp_path / "recipe.yml"
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        load_recipe(ObjectsRecipe, path)
    path.write_text("model: emoji64\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no value for output"):
        load_recipe(ObjectsRecipe, path)
    path.write_text("model: [", encoding="utf-8")
    with pytest.raises(ValueError, match="not readable as YAML"):
        load_recipe(ObjectsRecipe, path)
    path.write_text("- model\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a mapping of keys"):
        load_recipe(ObjectsRecipe, path)
