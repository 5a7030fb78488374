"""Evaluation: a detector of the emoji world, and how often pictures show what held-out prompts ask for."""

from .layout import PictureFolder, geneval_metadata
from .objects import ObjectsRecipe, ObjectsSuite
from .statistics import bootstrap_interval
from .suite import SUITES, load_recipe, open_suite

__all__ = [
    "SUITES",
    "ObjectsRecipe",
    "ObjectsSuite",
    "PictureFolder",
    "bootstrap_interval",
    "geneval_metadata",
    "load_recipe",
    "open_suite",
]
