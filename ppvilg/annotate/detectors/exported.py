"""Detectors exported by PaddleDetection or PaddleX, as Paddle graphs or as ONNX.

PaddleDetection writes `infer_cfg.yml`, PaddleX `inference.yml`; beside it lies the graph. It takes pictures
(N, 3, H, W) and what it asks for of the size after resizing and of the scale; it gives rows (class, score, left, top,
right, bottom) in pixels of the original pictures and, where these may have different numbers of them, how many each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from PIL import Image

from ppvilg.files import digest_of, file_sha256, read_text

from ..stage import Rejection
from .detection import Detection, fit
from .preprocessing import Prepared, Preprocessing

SETTINGS = ("infer_cfg.yml", "inference.yml")
_INPUTS = ("image", "im_shape", "scale_factor")


class Graph(Protocol):
    """A graph by whatever engine: `inputs` {name: shape, -1 or less where any size goes}."""

    inputs: dict[str, list[int]]

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, in order."""


class ExportedDetector:
    """A detector's graph with the preprocessing and the labels of its export.

    Raises:
        ValueError: settings that are not known here, by name; an input or output that no detector has.
    """

    def __init__(self, settings_path: Path, graph: Graph, files: Sequence[Path], kind: str, min_score: float):
        settings = read_settings(settings_path)
        self.settings_path, self.graph, self.min_score = settings_path, graph, min_score
        self.labels = _labels(settings, settings_path)
        by_paddlex = settings_path.name == SETTINGS[1]
        self.preprocessing = Preprocessing(settings.get("Preprocess"), str(settings_path), by_paddlex)
        unknown = set(graph.inputs) - set(_INPUTS)
        if unknown or "image" not in graph.inputs:
            raise ValueError(f"{files[0]}: takes {', '.join(graph.inputs)}; a detector takes some of "
                             f"{', '.join(_INPUTS)}")  # fmt: skip
        self.identity = {
            "kind": kind, "model": digest_of([file_sha256(path) for path in files]), "threshold": min_score,
            "preprocessing": settings["Preprocess"], "labels": digest_of(self.labels),
        }  # fmt: skip

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection] | Rejection]:
        """Objects of each picture; those whose prepared sizes are equal go through the graph together."""
        prepared = [self.preprocessing(np.asarray(picture)) for picture in pictures]
        found: list = [None] * len(pictures)
        for group in self._groups(prepared):
            for number, rows in zip(group, self._rows([prepared[number] for number in group])):
                found[number] = self._detections(rows, pictures[number].size)
        return found

    def close(self) -> None:
        """The graph goes with the object."""

    def _groups(self, prepared: Sequence[Prepared]) -> Iterator[list[int]]:
        """Numbers of pictures that fit into one call, in order."""
        fixed = self.graph.inputs["image"][0]
        most = fixed if fixed > 0 else len(prepared)
        for _, group in itertools.groupby(range(len(prepared)), lambda number: prepared[number].pixels.shape):
            group = list(group)
            yield from (group[start : start + most] for start in range(0, len(group), most))

    def _rows(self, group: Sequence[Prepared]) -> list[np.ndarray]:
        """For each picture (n, 6): class, score, left, top, right, bottom in pixels of the original."""
        feeds = {
            "image": np.stack([each.pixels for each in group]).astype(np.float32),  # (N, 3, H, W)
            "im_shape": np.asarray([each.shape for each in group], np.float32),  # (N, 2)
            "scale_factor": np.asarray([each.scale for each in group], np.float32),  # (N, 2)
        }
        declared, given = self.graph.inputs["image"][1:], feeds["image"].shape[1:]
        if any(0 < one != two for one, two in zip(declared, given)):
            raise ValueError(f"{self.settings_path}: Preprocess gives pictures of {list(given)}, the graph takes "
                             f"{declared}: they do not belong together")  # fmt: skip
        outputs = self.graph.run({name: feeds[name] for name in self.graph.inputs})
        rows = _per_picture(outputs, len(group), self.settings_path)
        return [self._unpadded(each, prepared) for each, prepared in zip(rows, group)]

    def _unpadded(self, rows: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Boxes in pixels of the original: graphs know of no padding to the left, some not even of the scale."""
        rows = rows.astype(np.float64)
        down, across = prepared.scale
        if "scale_factor" not in self.graph.inputs:
            rows[:, 2:] /= (across, down, across, down)
        left, top = prepared.offset
        rows[:, 2:] -= (left / across, top / down, left / across, top / down)
        return rows

    def _detections(self, rows: np.ndarray, size: tuple[int, int]) -> list[Detection] | Rejection:
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 1] >= self.min_score)]  # -1 fills rows that are none
        numbers = rows[:, 0].astype(int)
        if numbers.size and numbers.max() >= len(self.labels):
            raise ValueError(f"{self.settings_path} has {len(self.labels)} labels, the graph found class "
                             f"{numbers.max()}: they do not belong together")  # fmt: skip
        found = [Detection(self.labels[n], row[1], tuple(row[2:])) for n, row in zip(numbers, rows.tolist())]
        try:
            return fit(found, size, self.min_score)
        except ValueError as error:
            return Rejection(str(error))


def read_settings(path: Path) -> dict:
    """The YAML of an export; ValueError when it is none."""
    try:
        settings = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(settings, dict) or "Preprocess" not in settings:
        raise ValueError(f"{path} has no Preprocess: it is not the export of a detector")
    return settings


def _labels(settings: dict, path: Path) -> list[str]:
    labels = settings.get("label_list")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"{path}: label_list must be a list of labels, not {labels!r}")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"{path}: label_list has {', '.join(twice)} twice: which class is meant cannot be told")
    return labels


def _per_picture(outputs: Sequence[np.ndarray], count: int, path: Path) -> list[np.ndarray]:
    """Outputs of a graph -> (n, 6) for each picture."""
    boxes = np.asarray(outputs[0])
    if boxes.ndim == 3 and boxes.shape[0] == count and boxes.shape[2] == 6:  # (N, n, 6)
        return list(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        shapes = [list(np.shape(output)) for output in outputs]
        raise ValueError(f"{path.parent}: the graph gave {shapes}; a detector gives rows of (class, score, left, top, "
                         "right, bottom), as PaddleDetection exports them with NMS")  # fmt: skip
    if len(outputs) > 1 and np.size(outputs[1]) == count:
        numbers = np.asarray(outputs[1]).reshape(-1).astype(int)
        if numbers.sum() <= len(boxes):
            return np.split(boxes[: numbers.sum()], np.cumsum(numbers)[:-1])
    if len(boxes) % count == 0:  # a transformer's: as many of each picture
        return np.split(boxes, count)
    raise ValueError(f"{path.parent}: {len(boxes)} boxes cannot be shared among {count} pictures")
