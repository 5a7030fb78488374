"""Export: a model as static graphs, proven against the model itself before a bundle is named, and again anywhere."""

from .export import export_experts, export_model, export_pipeline
from .prove import prove_bundle, report
from .tolerances import ProofError

__all__ = ["ProofError", "export_experts", "export_model", "export_pipeline", "prove_bundle", "report"]
