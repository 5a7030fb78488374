"""Does a picture show what its prompt asks for? Verdicts from what the detector found, and tables of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppvilg.data import ObjectBox
from ppvilg.evaluation.metrics.intervals import share

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


def tables(prompts: Sequence[dict], verdicts: Sequence[Sequence[Verdict]], resamples: int) -> dict:
    """Shares with intervals per kind and criterion, per object and kind, and what was most often found instead.

    verdicts[i] are those of the pictures of prompts[i]; a prompt is one unit of the bootstrap.
    """
    kinds: dict[str, dict] = {}
    for kind, names in CRITERIA.items():
        chosen = [entries for prompt, entries in zip(prompts, verdicts) if prompt["kind"] == kind]
        if chosen:
            kinds[kind] = {
                name: share([np.mean([entry.criteria[name] for entry in entries]) for entries in chosen], resamples)
                for name in names
            }
    return {"kinds": kinds, "objects": by_object(prompts, verdicts), "mistakes": mistakes(verdicts)}


def by_object(prompts: Sequence[dict], verdicts: Sequence[Sequence[Verdict]]) -> dict:
    """Per label and kind: number of pictures that ask for it, share in which it is found, share all right."""
    counts: dict[str, dict[str, np.ndarray]] = {}
    for prompt, entries in zip(prompts, verdicts):
        for label in dict.fromkeys(item["label"] for item in prompt["objects"]):
            cell = counts.setdefault(label, {}).setdefault(prompt["kind"], np.zeros(3))
            for entry in entries:
                cell += (1, label in entry.found, entry.right)
    return {
        label: {
            kind: {"count": int(cell[0]), "found": cell[1] / cell[0], "right": cell[2] / cell[0]}
            for kind, cell in kinds.items()
        }
        for label, kinds in sorted(counts.items())
    }


def mistakes(verdicts: Sequence[Sequence[Verdict]], most: int = 20) -> list[dict]:
    """The most frequent differences between what was asked and what was found, in labels."""
    counter: Counter = Counter()
    for entry in (entry for entries in verdicts for entry in entries):
        asked, found = Counter(entry.asked), Counter(entry.found)
        if asked != found:
            counter[tuple(sorted((asked - found).elements())), tuple(sorted((found - asked).elements()))] += 1
    return [{"missing": list(a), "instead": list(b), "count": n} for (a, b), n in counter.most_common(most)]


def markdown(results: dict[str, dict]) -> str:
    """One table of every source's shares in percent, with 95 % intervals: results[source] = `tables(...)`."""
    lines = ["| pictures | kind | prompts | criterion | right, % | 95 % interval |", "|---|---|---|---|---|---|"]
    for source, table in results.items():
        for kind, criteria in table["kinds"].items():
            for name, value in criteria.items():
                low, high = (f"{100 * bound:.1f}" for bound in value["interval"])
                mean = f"{100 * value['mean']:.1f}"
                lines.append(f"| {source} | {kind} | {value['count']} | {name} | {mean} | {low} to {high} |")
    return "\n".join(lines)


def markdown_by_object(table: dict) -> str:
    """Per object: pictures that ask for it, share in which it is found and share all right, in percent, per kind."""
    header = "| object | " + " | ".join(f"{kind}: n, found, right" for kind in CRITERIA) + " |"
    lines = [header, "|---" * (1 + len(CRITERIA)) + "|"]
    for label, kinds in table["objects"].items():
        cells = []
        for kind in CRITERIA:
            cell = kinds.get(kind)
            cells.append(f"{cell['count']}, {100 * cell['found']:.0f}, {100 * cell['right']:.0f}" if cell else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
