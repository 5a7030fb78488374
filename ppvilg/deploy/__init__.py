"""Deployment: export to proven static graphs, Paddle Inference behind the same pipeline, experts that take turns."""

from .export import export_experts, export_model, export_pipeline
from .manifest import Manifest, is_bundle, read_manifest
from .proof import ProofError
from .residency import ResidencyRecord, ResidentExperts, load_resident_unet, resident_exported_unet
from .runtime import BACKENDS, exported_components, exported_unet, load_exported_expert

__all__ = [
    "BACKENDS",
    "Manifest",
    "ProofError",
    "ResidencyRecord",
    "ResidentExperts",
    "export_experts",
    "export_model",
    "export_pipeline",
    "exported_components",
    "exported_unet",
    "is_bundle",
    "load_exported_expert",
    "load_resident_unet",
    "read_manifest",
    "resident_exported_unet",
]
