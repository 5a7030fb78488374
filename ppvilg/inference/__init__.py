"""Runs exported graphs: what a bundle holds, engines behind the calls of the components, experts that take turns."""

from .manifest import Manifest, is_bundle, read_manifest
from .residency import ResidencyRecord, ResidentExperts, load_resident_unet, resident_exported_unet
from .runtime import BACKENDS, exported_components, exported_unet, load_exported_expert

__all__ = [
    "BACKENDS",
    "Manifest",
    "ResidencyRecord",
    "ResidentExperts",
    "exported_components",
    "exported_unet",
    "is_bundle",
    "load_exported_expert",
    "load_resident_unet",
    "read_manifest",
    "resident_exported_unet",
]
