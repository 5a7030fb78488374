"""Detectors: pictures in, boxes with labels and scores out."""

from __future__ import annotations

import re
from pathlib import Path

from ..process import PREFIX
from ..weights import whole
from .detection import Detection, Detector

MIN_SCORE = 0.2  # what is stored; what training believes is knowledge.vision.min_score

__all__ = ["MIN_SCORE", "Detection", "Detector", "open_detector"]


def open_detector(spec: str, min_score: float = MIN_SCORE, backend: str = "cpu") -> Detector:
    """The detector that a text names; objects below `min_score` are not given.

    spec: the folder of an export of PaddleDetection or PaddleX, or of the same with its graph as ONNX (an .onnx file
    names it too); `command:PROGRAM ARGUMENTS`; `module:function`. backend: "cpu" or "gpu", for exports.

    Raises:
        FileNotFoundError, ValueError: what is missing or not known, by name.
        ImportError: the package that runs it is missing.
    """
    if spec.startswith(PREFIX):
        from .foreign import CommandDetector

        return CommandDetector(spec, min_score)
    path = Path(spec)
    if not path.exists() and re.fullmatch(r"[\w.]+:\w+", spec):
        from .foreign import FunctionDetector

        return FunctionDetector(spec, min_score)
    if not path.exists():
        raise FileNotFoundError(f"no such detector: {spec} is no folder; it may also be command:PROGRAM or "
                                "module:function")  # fmt: skip
    return _open_export(path, min_score, backend)


def _open_export(path: Path, min_score: float, backend: str) -> Detector:
    from .exported import SETTINGS, ExportedDetector
    from .graphs import GRAPHS, OnnxGraph, PaddleGraph

    folder = path if path.is_dir() else path.parent
    settings = next((folder / name for name in SETTINGS if (folder / name).is_file()), None)
    if settings is None:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(SETTINGS)}: export the detector with "
                                "PaddleDetection or PaddleX")  # fmt: skip
    if path.is_dir():
        found = [folder / name for name in GRAPHS if (folder / name).is_file()] or sorted(folder.glob("*.onnx"))
        if not found:
            raise FileNotFoundError(f"{folder} holds no graph: neither {', '.join(GRAPHS)} nor an .onnx")
        path = found[0]
    if path.suffix == ".onnx":
        graph, files, kind = OnnxGraph(whole(path), backend), [path], "onnx"
    else:
        files, kind = [whole(path), whole(path.with_suffix(".pdiparams"))], "paddle"
        graph = PaddleGraph(*files, backend)
    return ExportedDetector(settings, graph, files, kind, min_score)
