"""Runs exported graphs: what a bundle holds, engines behind the calls of the components, experts that take turns."""

import ppvilg._needs_paddle  # noqa: F401

from .manifest import Manifest, is_bundle, read_manifest
from .options import BACKENDS, BackendOptions
from .proofs import fastest_proven, machine_name, read_proofs
from .residency import ResidencyRecord, ResidentExperts, load_resident_unet, resident_exported_unet
from .runtime import exported_components, exported_unet, load_exported_expert, open_bundle
from .trusted import SCHEDULER_CLASSES, check_pipeline_folder, load_scheduler, load_tokenizer

__all__ = [
    "BACKENDS",
    "BackendOptions",
    "SCHEDULER_CLASSES",
    "Manifest",
    "ResidencyRecord",
    "ResidentExperts",
    "check_pipeline_folder",
    "exported_components",
    "exported_unet",
    "fastest_proven",
    "is_bundle",
    "load_exported_expert",
    "load_resident_unet",
    "load_scheduler",
    "load_tokenizer",
    "machine_name",
    "open_bundle",
    "read_manifest",
    "read_proofs",
    "resident_exported_unet",
]
