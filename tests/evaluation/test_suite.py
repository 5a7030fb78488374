"""Recipes of evaluations: every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppvilg.config import load
from ppvilg.emoji.detector_training import DetectorRecipe
from ppvilg.evaluation import ObjectsRecipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "evaluation"


def test_shipped_recipes_load():
    recipe = load(
        ObjectsRecipe, CONFIGS / "objects.yml", ["prompts.pair=3", "guidance_scale=[3,2]", "model=a=b"]
    )
    assert recipe.prompts == {"single": 120, "pair": 3, "count": 100}
    assert recipe.guidance_scale == [3, 2] and recipe.model == "a=b" and recipe.detector is None
    assert load(DetectorRecipe, CONFIGS / "detector.yml").seed == 1_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["guidance_scales=3"], "-o guidance_scales=3: unknown key guidance_scales; did you mean guidance_scale?"),
        (["prompts.singel=3"], "-o prompts.singel=3: unknown key prompts.singel; did you mean prompts.single?"),
        (["batch_size=0"], "-o batch_size=0: batch_size=0: must be at least 1"),
        (["eta=.nan"], "-o eta=.nan: eta=nan: must be a finite number"),
        (["guidance_scale=[1,high]"], "guidance_scale[1]='high': must be a number"),
        (["sources=[model,paintings]"], "sources[1]='paintings': use model, reconstruction or renders"),
        (["sources=[]"], "sources=[]: needs some of model"),
        (["prompts={single: -1}"], "-o prompts={single: -1}: prompts.single=-1: must be at least 0"),
        (["prompts={single: 0, pair: 0, count: 0}"], "needs how many of single, pair, count"),
        (["blind_pictures=-1"], "blind_pictures=-1: must be at least 0"),
    ],
)
def test_mistakes_in_overrides(overrides, message):
    with pytest.raises(ValueError) as caught:
        load(ObjectsRecipe, CONFIGS / "objects.yml", overrides)
    assert message in str(caught.value)
