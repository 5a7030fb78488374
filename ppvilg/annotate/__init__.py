"""Knowledge for real pictures: detectors, captioners and clean-up run over shards and write sidecars for training."""

from .stage import Rejection, Sample, Stage

__all__ = ["Rejection", "Sample", "Stage"]
