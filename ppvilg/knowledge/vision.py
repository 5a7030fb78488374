"""Visual knowledge (ERNIE-ViLG 2.0, section 2.2): object boxes weight the loss, objects repair the caption."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .completion import complete_caption, missing_objects
from .names import NameTable, is_chinese

REPLACEMENT = "replacement"
COMPLETION = "completion"


def box_weight_map(
    boxes, image_size: tuple[int, int], latent_size: tuple[int, int], object_weight: float = 0.1
) -> np.ndarray:
    """Loss weights (1, h, w) float32: 1 + object_weight in cells inside any box, 1 elsewhere (section 2.2).

    `boxes` is (n, 4) as x0, y0, x1, y1 in pixels of an image of `image_size` = (width, height); `latent_size` is
    (height, width) in cells. A cell is inside when its centre is; a box too thin to hold a centre along one axis takes
    every cell it touches along that axis. Boxes reaching over the edge are clipped, boxes without area are ignored.
    ValueError when boxes do not have four finite numbers each.
    """
    weights = np.ones((1, *latent_size), dtype=np.float32)  # (1, h, w)
    for x0, y0, x1, y1 in _finite_boxes(boxes):
        x0, x1 = (min(max(x, 0.0), image_size[0]) for x in (x0, x1))
        y0, y1 = (min(max(y, 0.0), image_size[1]) for y in (y0, y1))
        if x1 > x0 and y1 > y0:
            rows = _covered_cells(y0, y1, image_size[1], latent_size[0])
            columns = _covered_cells(x0, x1, image_size[0], latent_size[1])
            weights[0, rows, columns] = 1.0 + object_weight
    return weights


def _finite_boxes(boxes) -> list[list[float]]:
    """Boxes as lists of four floats; numpy's operations on a few boxes would take longer than the rest of a sample."""
    try:
        floats = [[float(value) for value in box] for box in boxes]
    except (TypeError, ValueError):
        floats = [[]]
    if any(len(box) != 4 for box in floats) or not all(math.isfinite(value) for box in floats for value in box):
        raise ValueError(f"boxes must be finite (n, 4) numbers x0, y0, x1, y1, got {boxes}")
    return floats


@lru_cache(maxsize=256)
def _cells(length: int, cells: int) -> tuple[list[float], list[float]]:
    """Edges and centres of `cells` equal cells along `length` pixels."""
    edges = [i * (length / cells) for i in range(cells + 1)]
    return edges, [(low + high) / 2 for low, high in pairwise(edges)]


def _covered_cells(start: float, end: float, length: int, cells: int) -> slice:
    """Which of `cells` equal cells along `length` pixels the interval [start, end) takes."""
    edges, centres = _cells(length, cells)
    first, stop = bisect_left(centres, start), bisect_left(centres, end)
    if first == stop:  # too thin for a centre: every cell it touches
        first, stop = bisect_right(edges, start) - 1, bisect_left(edges, end)
    return slice(first, stop)


@dataclass(frozen=True)
class VisualKnowledge:
    """What detected objects do to caption and loss; with weight 0, completion off and replacement 0 they do nothing.

    object_weight: w_l of the weight map (section 2.2), 0 turns it off.
    completion: name objects the caption leaves out, on completion_probability of the samples.
    replacement_probability: share of samples whose caption is replaced by the generated one, where there is one.
    english_probability: share of samples that take the English caption, where there is one.
    min_score: objects detected with less are not trusted. names: what labels are called and what is a kind of them.
    synonyms: label -> further names that count as mentioning it, wherever they stand.
    """

    object_weight: float = 0.1
    completion: bool = True
    replacement_probability: float = 0.0
    completion_probability: float = 1.0
    english_probability: float = 0.0
    min_score: float = 0.5
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    names: NameTable = field(default_factory=NameTable)

    def __post_init__(self) -> None:
        if self.synonyms:
            object.__setattr__(self, "names", self.names.with_synonyms(self.synonyms))
        if not (math.isfinite(self.object_weight) and self.object_weight >= 0):
            raise ValueError(f"object_weight must be a finite number >= 0, got {self.object_weight}")
        for name in ("replacement_probability", "completion_probability", "english_probability"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")

    def choose_caption(
        self, captions: Mapping[str, str], objects, rng: np.random.Generator, marks: bool = True
    ) -> tuple[str, list[str]]:
        """Caption to train on and which of REPLACEMENT, COMPLETION made it; ValueError when there is no caption.

        `captions` has any of "zh", "en", "generated". An empty one counts as absent.
        """
        present = {key: text for key, text in captions.items() if text and text.strip()}
        if not present:
            raise ValueError(f'no caption: expected text under "zh", "en" or "generated", got {dict(captions)}')
        used = []
        key = next((name for name in ("zh", "en", "generated") if name in present), next(iter(present)))
        if "en" in present and _happens(self.english_probability, rng):
            key = "en"
        if "generated" in present and _happens(self.replacement_probability, rng):
            key = "generated"
            used.append(REPLACEMENT)
        caption = present[key]
        if self.completion and _happens(self.completion_probability, rng):
            labels = self.missing_names(caption, objects)
            if labels:
                caption = complete_caption(caption, labels, marks)
                used.append(COMPLETION)
        return caption, used

    def weight_map(
        self,
        objects,
        caption: str,
        image_size: tuple[int, int],
        latent_size: tuple[int, int],
    ) -> np.ndarray:
        """Loss weights (1, h, w) float32 of one sample: boxes of objects that `caption` mentions; ones when off."""
        boxes = []
        if self.object_weight > 0:
            boxes = [item.box for item in self.key_objects(objects, caption)]
        return box_weight_map(boxes, image_size, latent_size, self.object_weight)

    def key_objects(self, objects, caption: str) -> list:
        """Trusted objects (score >= min_score) whose label the caption mentions."""
        trusted = [item for item in objects if item.score >= self.min_score]
        mentioned = set(self.names.mentioned(caption, [item.label for item in trusted]))
        return [item for item in trusted if item.label in mentioned]

    def missing_names(self, caption: str, objects) -> list[str]:
        """Names to append, in the caption's language; objects without a name in that language are left alone."""
        trusted = [item for item in objects if item.score >= self.min_score]
        chinese = is_chinese(caption)
        names = [self.names.name_of(label, chinese) for label in missing_objects(caption, trusted, self.names)]
        return list(dict.fromkeys(name for name in names if name))


def _happens(probability: float, rng: np.random.Generator | None) -> bool:
    """Draw once, but leave `rng` untouched when the outcome is certain, so that a switch that is off costs no draw."""
    if probability in (0.0, 1.0):
        return probability == 1.0
    if rng is None:
        raise ValueError(f"a numpy Generator is needed to draw with probability {probability}")
    return bool(rng.random() < probability)
