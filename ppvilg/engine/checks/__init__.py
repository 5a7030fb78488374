"""What is looked at before the first stage begins, so that nothing in a recipe is found wrong after hours."""
from .rehearsal import check_fit, rehearse_components, rehearse_data, rehearse_memory
from .sampling import rehearse_samples
from .settings import check_settings

__all__ = ["check_fit", "check_settings", "rehearse_components", "rehearse_data", "rehearse_memory", "rehearse_samples"]
