"""Evaluation: a detector of the emoji world, and how often pictures show what held-out prompts ask for."""

from .background import background_colour
from .detector import Detector, Finding, detector_sha256
from .detector_accuracy import measure_detector
from .detector_training import DetectorRecipe, train_detector
from .judging import Verdict, judge, markdown, markdown_by_object, tables
from .layout import PictureFolder, geneval_metadata
from .objects import ObjectsRecipe, ObjectsSuite
from .statistics import bootstrap_interval
from .suite import SUITES, load_recipe, open_suite

__all__ = [
    "SUITES",
    "Detector",
    "DetectorRecipe",
    "Finding",
    "ObjectsRecipe",
    "ObjectsSuite",
    "PictureFolder",
    "Verdict",
    "background_colour",
    "bootstrap_interval",
    "detector_sha256",
    "geneval_metadata",
    "judge",
    "load_recipe",
    "markdown",
    "markdown_by_object",
    "measure_detector",
    "open_suite",
    "tables",
    "train_detector",
]
