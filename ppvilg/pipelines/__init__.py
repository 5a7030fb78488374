"""From a sentence to a picture: the pipeline, the models that come with the package, schedulers by name, PNG files."""

import ppvilg._needs_paddle  # noqa: F401

from .arguments import Arguments
from .conditioning import Conditioning
from .denoising import Drawing, ErnieViLG2PipelineOutput
from .folders import ZOO, resolve, save_fp16, zoo_folder
from .images import make_grid, read_metadata, save_png
from .noise import NoiseSource
from .opening import open_pipeline
from .pipeline import ErnieViLG2Pipeline
from .schedulers import SCHEDULERS, build_scheduler

__all__ = [
    "SCHEDULERS",
    "ZOO",
    "Arguments",
    "Conditioning",
    "Drawing",
    "ErnieViLG2Pipeline",
    "ErnieViLG2PipelineOutput",
    "NoiseSource",
    "build_scheduler",
    "make_grid",
    "open_pipeline",
    "read_metadata",
    "resolve",
    "save_fp16",
    "save_png",
    "zoo_folder",
]
