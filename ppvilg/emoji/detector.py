"""A small fully convolutional detector of the emoji world: picture -> objects and the colour of the background."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from PIL import Image

from ppvilg.data import ObjectBox, in_batches
from ppvilg.files import damage_of, whole_file, write_whole

from .objects import BACKGROUNDS
from .render import apply_style_filter
from .scenes import STYLES

STRIDE = 8
WEIGHTS, CONFIG = "detector.safetensors", "config.json"
SHIPPED = "emoji64_detector"
MAXIMUM_DISTANCE = 36.0  # 8-bit RGB levels; farther from every reference a pixel has no colour name
SMALLEST_SHARE = 0.6  # of the pixels outside the objects that must agree
FRAME = 4  # pixels; what stands in for the outside when boxes leave nothing


@dataclass(frozen=True)
class Finding:
    """What a picture shows: objects from the surest to the least sure, and the background's name or None."""

    objects: tuple[ObjectBox, ...]
    background: str | None

    @property
    def labels(self) -> list[str]:
        """Sorted labels of the objects."""
        return sorted(item.label for item in self.objects)


class Block(nn.Layer):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = nn.Conv2D(channels, channels, 3, padding=1, bias_attr=False)
        self.norm = nn.BatchNorm2D(channels)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))  # (N, C, h, w)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, normalisation, ReLU."""
    layer = nn.Conv2D(inputs, outputs, 3, stride=stride, padding=1, bias_attr=False)
    return nn.Sequential(layer, nn.BatchNorm2D(outputs), nn.ReLU())


class DetectorNetwork(nn.Layer):
    """Per point of the 8-pixel grid: which object has its centre there, or none, and how far its edges are."""

    def __init__(self, num_labels: int, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.stem = nn.Sequential(
            convolution(12, 32), convolution(32, 64, stride=2), convolution(64, 64), convolution(64, width, stride=2)
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Conv2D(width, 1 + num_labels + 4, 1)

    def forward(self, pixels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """pixels (N, 3, H, W) in [-1, 1] -> logits (N, 1 + K, H/8, W/8), class 0 = none; edges (N, 4, H/8, W/8).

        Cell (i, j) stands for the point (8 j, 8 i), which is where objects on the grid have their centres; edges are
        the distances to left, top, right and bottom in units of 8 pixels.
        """
        x = self.head(self.features(pixels))  # (N, 1 + K + 4, H/8, W/8)
        return x[:, : 1 + self.num_labels], F.softplus(x[:, 1 + self.num_labels :])

    def features(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> what the last layer sees, (N, width, H/8, W/8)."""
        x = F.pixel_unshuffle(pixels, 2)  # (N, 12, H/2, W/2)
        return self.blocks(self.stem(x))  # (N, C, H/8, W/8)


class Detector:
    """Finds objects in pictures of any of the data's shapes.

    labels: names of the classes. threshold: smallest probability that counts as found.
    """

    def __init__(self, network: DetectorNetwork, labels: Sequence[str], threshold: float = 0.8) -> None:
        if len(labels) != network.num_labels:
            raise ValueError(f"{len(labels)} labels for a network of {network.num_labels} classes")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold} must lie between 0 and 1")
        self.network, self.labels, self.threshold = network, list(labels), threshold

    def detect(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[Finding]:
        """One Finding per RGB picture, in order; width and height must be multiples of 8."""
        for index, image in enumerate(images):
            if image.width % STRIDE or image.height % STRIDE:
                raise ValueError(f"picture {index} is {image.width}x{image.height}: not multiples of {STRIDE}")
        findings: dict[int, Finding] = {}
        for batch in in_batches(range(len(images)), lambda index: images[index].size, batch_size):
            pixels = np.stack([np.asarray(images[index].convert("RGB")) for index in batch])
            findings.update(zip(batch, self.detect_pixels(pixels)))
        return [findings[index] for index in range(len(images))]

    @paddle.no_grad()
    def detect_pixels(self, pixels: np.ndarray) -> list[Finding]:
        """Findings of pictures (N, H, W, 3) uint8 of one size."""
        self.network.eval()
        logits, edges = self.network(to_input(pixels))
        probabilities = F.softmax(logits, axis=1).numpy()
        edges = edges.numpy()
        findings = []
        for picture, scores, distances in zip(pixels, probabilities, edges):
            objects = decode(scores, distances, self.labels, self.threshold)
            findings.append(Finding(objects, background_colour(picture, [item.box for item in objects])))
        return findings

    def save(self, folder: str | os.PathLike) -> None:
        """Write float16 weights and config.json."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.numpy().astype(np.float16) for name, value in self.network.state_dict().items()}
        with whole_file(folder / WEIGHTS) as partial:
            save_file(weights, str(partial))
        config = {
            "labels": self.labels,
            "threshold": self.threshold,
            "width": self.network.head.weight.shape[1],
            "blocks": len(self.network.blocks),
        }
        write_whole(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike | None = None) -> Detector:
        """From a folder that `save` wrote; None: the detector that comes with the package.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the two are not of one detector.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = detector_folder(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            labels, threshold = list(config["labels"]), float(config["threshold"])
            network = DetectorNetwork(len(labels), int(config["width"]), int(config["blocks"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{damage_of(folder / CONFIG)} ({error!r})") from error
        try:
            weights = {name: value.astype(np.float32) for name, value in load_file(str(folder / WEIGHTS)).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{damage_of(folder / WEIGHTS)} ({error})") from error
        own = {name: list(value.shape) for name, value in network.state_dict().items()}
        if own != {name: list(value.shape) for name, value in weights.items()}:
            missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
            raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: missing {missing}, unexpected {unexpected}")
        network.set_state_dict(weights)
        network.eval()
        return cls(network, labels, threshold)


def detector_folder(folder: str | os.PathLike | None = None) -> Path:
    """`folder`, or that of the shipped detector for None; FileNotFoundError when files are missing."""
    if folder is None:
        folder = Path(str(importlib.resources.files("ppvilg"))) / "zoo" / SHIPPED
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no detector in {folder}: {name} is missing; tools/train_detector.py trains one")
    return folder


def detector_sha256(folder: str | os.PathLike | None = None) -> str:
    """SHA-256 over the configuration and the weights: which detector judged."""
    folder = detector_folder(folder)
    return hashlib.sha256((folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes()).hexdigest()


def to_input(pixels: np.ndarray) -> paddle.Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return paddle.to_tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / 127.5 - 1.0)


def decode(
    probabilities: np.ndarray, edges: np.ndarray, labels: Sequence[str], threshold: float
) -> tuple[ObjectBox, ...]:
    """Objects of one picture: probabilities (1 + K, h, w), edges (4, h, w). Centres lie two cells apart or more."""
    best = probabilities[1:].max(axis=0)  # (h, w)
    classes = probabilities[1:].argmax(axis=0)
    free = best >= threshold
    height, width = best.shape
    objects = []
    for cell in np.argsort(-best, axis=None, kind="stable"):
        i, j = divmod(int(cell), width)
        if not free[i, j]:
            continue
        free[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] = False
        left, top, right, bottom = STRIDE * edges[:, i, j]
        box = (STRIDE * j - left, STRIDE * i - top, STRIDE * j + right, STRIDE * i + bottom)
        limits = (STRIDE * width, STRIDE * height) * 2
        box = tuple(float(np.clip(value, 0, limit)) for value, limit in zip(box, limits))
        objects.append(ObjectBox(labels[classes[i, j]], box, float(best[i, j])))
    return tuple(objects)


# ---- background ----


@cache
def reference_colours() -> tuple[tuple[str, ...], np.ndarray]:
    """Names (M,) and RGB values (M, 3): every background as it is and as each style renders it."""
    names, colours = [], []
    for background in BACKGROUNDS:
        plain = Image.new("RGB", (64, 64), background.rgb)
        for picture in (plain, *(apply_style_filter(plain, style, 48) for style in STYLES)):
            names.append(background.name)
            colours.append(np.median(np.asarray(picture).reshape(-1, 3), axis=0))
    return tuple(names), np.array(colours)


def background_colour(pixels: np.ndarray, boxes: Sequence[tuple[float, float, float, float]]) -> str | None:
    """Name of the colour most pixels (H, W, 3) outside `boxes` have; None when they do not agree on a known one."""
    outside = np.ones(pixels.shape[:2], dtype=bool)
    for x0, y0, x1, y1 in boxes:
        outside[max(int(y0) - 2, 0) : int(y1) + 3, max(int(x0) - 2, 0) : int(x1) + 3] = False
    if not boxes or not outside.any():
        outside[:] = True
        outside[FRAME:-FRAME, FRAME:-FRAME] = False
    names, colours = reference_colours()
    values = pixels[outside].astype(np.float64)  # (P, 3)
    distances = np.linalg.norm(values[:, None] - colours, axis=-1)  # (P, M)
    nearest = distances.argmin(axis=1)
    known = distances.min(axis=1) <= MAXIMUM_DISTANCE
    votes = dict.fromkeys(names, 0)
    for index, number in zip(*np.unique(nearest[known], return_counts=True)):
        votes[names[index]] += int(number)
    name = max(votes, key=votes.get)
    return name if votes[name] >= SMALLEST_SHARE * len(values) else None
