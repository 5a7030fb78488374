"""Does a picture show what its prompt asks for? Verdicts from what the detector found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppvilg.data import ObjectBox

from .detector import Finding

# What is asked of each kind of prompt, in the order of the table; "all" is everything at once.
CRITERIA = {
    "single": ("object", "background", "all"),
    "pair": ("objects", "places", "background", "all"),
    "count": ("kind", "number", "background", "all"),
}
SMALLEST_OFFSET = 8.0  # pixels between the centres of two objects, along the axis of their relation
LARGEST_SLANT = 0.5  # smallest share of the offset's length along that axis (GenEval's: within 60 degrees)


@dataclass(frozen=True)
class Verdict:
    """One picture: each criterion of its kind, and what was found instead of what was asked."""

    kind: str
    criteria: dict[str, bool]
    asked: tuple[str, ...]
    found: tuple[str, ...]
    background: str | None

    @property
    def right(self) -> bool:
        """Everything the prompt asks for."""
        return self.criteria["all"]


def judge(prompt: dict, finding: Finding) -> Verdict:
    """Judge one picture of a prompt of `held_out_prompts`. An object that was not asked for is always wrong.

    single: object = exactly this one. pair: objects = exactly these two; places = and where they should be.
    count: kind = one or more of this kind and nothing else; number = and as many as asked.
    """
    kind = prompt["kind"]
    asked = [item["label"] for item in prompt["objects"]]
    exact = finding.labels == sorted(asked)
    criteria = {"background": finding.background == prompt["background"]}
    if kind == "single":
        criteria["object"] = exact
    elif kind == "pair":
        criteria["objects"] = exact
        criteria["places"] = exact and stands(prompt["relation"], *in_order(asked, finding.objects))
    elif kind == "count":
        criteria["kind"] = set(finding.labels) == set(asked)
        criteria["number"] = exact
    else:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(CRITERIA)}")
    criteria["all"] = all(criteria.values())
    ordered = {name: criteria[name] for name in CRITERIA[kind]}
    return Verdict(kind, ordered, tuple(asked), tuple(finding.labels), finding.background)


def in_order(labels: Sequence[str], objects: Sequence[ObjectBox]) -> list[ObjectBox]:
    """The surest object of each label."""
    return [max((item for item in objects if item.label == label), key=lambda item: item.score) for label in labels]


def stands(relation: str, first: ObjectBox, second: ObjectBox) -> bool:
    """True when `first` is "left" of / "right" of / "above" / "below" `second`, by the centres of their boxes."""
    axis, sign = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
    offset = np.array([(second.box[i] + second.box[i + 2] - first.box[i] - first.box[i + 2]) / 2 for i in (0, 1)])
    along = sign * offset[axis]
    return bool(along >= SMALLEST_OFFSET and along >= LARGEST_SLANT * np.hypot(*offset))
