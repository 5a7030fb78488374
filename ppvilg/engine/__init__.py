"""Training: recipe -> components, the loop, checkpoints, ranks, monitor."""
import ppvilg._needs_paddle  # noqa: F401

from . import experts, stopping
from .checkpoint import CheckpointError, CheckpointStore
from .parallel import distributed
from .run import Run
from .training.schedule import learning_rate_at
from .training.trainer import Trainer

__all__ = ["CheckpointError", "CheckpointStore", "Run", "Trainer", "distributed", "experts", "learning_rate_at",
           "stopping"]
