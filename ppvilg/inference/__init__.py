"""Runs exported graphs: what a bundle holds, engines behind the calls of the components, experts that take turns."""

import ppvilg._needs_paddle  # noqa: F401

from .backends import BACKENDS
from .manifest import Manifest, is_bundle, read_manifest
from .residency import ResidencyRecord, ResidentExperts, load_resident_unet, resident_exported_unet
from .runtime import exported_components, exported_unet, load_exported_expert
from .trusted import SCHEDULER_CLASSES, check_pipeline_folder, load_scheduler, load_tokenizer

__all__ = [
    "BACKENDS",
    "SCHEDULER_CLASSES",
    "Manifest",
    "ResidencyRecord",
    "ResidentExperts",
    "check_pipeline_folder",
    "exported_components",
    "exported_unet",
    "is_bundle",
    "load_exported_expert",
    "load_resident_unet",
    "load_scheduler",
    "load_tokenizer",
    "read_manifest",
    "resident_exported_unet",
]
