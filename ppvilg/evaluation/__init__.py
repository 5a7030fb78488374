"""Evaluation: a detector of the emoji world, and how often pictures show what held-out prompts ask for."""

from .drawing.folder import PictureFolder, geneval_metadata
from .suite import SUITES, open_suite
from .suites.objects import ObjectsRecipe, ObjectsSuite

__all__ = [
    "SUITES",
    "ObjectsRecipe",
    "ObjectsSuite",
    "PictureFolder",
    "geneval_metadata",
    "open_suite",
]
