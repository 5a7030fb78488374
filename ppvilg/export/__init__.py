"""Export: a model as static graphs, each proven against the model itself before a bundle is named."""

from .export import export_experts, export_model, export_pipeline
from .proof import ProofError

__all__ = ["ProofError", "export_experts", "export_model", "export_pipeline"]
