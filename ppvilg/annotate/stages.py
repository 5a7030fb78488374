"""Detection and captioning as stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

from .captioners import Captioner
from .detectors import Detection, Detector
from .stage import Rejection, Sample


class DetectionStage:
    """Fills "objects" with what a detector finds: its own labels, scores, and boxes within the picture."""

    name = "detector"

    def __init__(self, detector: Detector):
        self.detector, self.identity = detector, detector.identity

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """Let go of the detector."""
        self.detector.close()

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """{"objects": [{"label", "box", "score"}, ...]}, best first."""
        found = self.detector.detect([sample.picture for sample in batch])
        return [each if isinstance(each, Rejection) else {"objects": list(map(_line, each))} for each in found]


class CaptionStage:
    """Fills the caption "generated" with what a captioner says of a picture and its objects."""

    name = "captioner"

    def __init__(self, captioner: Captioner):
        self.captioner, self.identity = captioner, captioner.identity

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """Let go of the captioner."""
        self.captioner.close()

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """{"captions": {"generated": ...}}; no field where nothing is to be said."""
        detections = [[_detection(item) for item in sample.fields.get("objects", ())] for sample in batch]
        texts = self.captioner.caption([sample.picture for sample in batch], detections)
        return [_captions(text) for text in texts]


def _captions(text: str | Rejection) -> dict | Rejection:
    if isinstance(text, Rejection):
        return text
    text = " ".join(text.split())
    return {"captions": {"generated": text}} if text else {}


def _line(detection: Detection) -> dict:
    return {"label": detection.label, "box": list(detection.box), "score": detection.score}


def _detection(item: dict) -> Detection:
    return Detection(item["label"], item["score"], tuple(item["box"]))
