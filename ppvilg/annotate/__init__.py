"""Knowledge for real pictures: detectors, captioners and clean-up run over shards and write sidecars for training."""

from .captioners import open_captioner
from .detectors import open_detector
from .report import AnnotationReport, report_on
from .runner import Runner
from .stage import Rejection, Sample, Stage
from .stages import CaptionStage, DetectionStage
from .units import Unit, find_units, share_of, sidecars_not_read

__all__ = [
    "AnnotationReport",
    "CaptionStage",
    "DetectionStage",
    "Rejection",
    "Runner",
    "Sample",
    "Stage",
    "Unit",
    "find_units",
    "open_captioner",
    "open_detector",
    "report_on",
    "share_of",
    "sidecars_not_read",
]
