"""Verdicts -> tables: how often pictures show what their prompts ask for, by kind, by object, and what instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ppvilg.emoji.judging import CRITERIA, Verdict

from ..metrics.intervals import share
from ..reporting.markdown import interval_text


def tables(prompts: Sequence[dict], verdicts: Sequence[Sequence[Verdict]]) -> dict:
    """Shares with intervals per kind and criterion, per object and kind, and what was most often found instead.

    verdicts[i] are those of the pictures of prompts[i]; a prompt is one unit.
    """
    kinds: dict[str, dict] = {}
    for kind, names in CRITERIA.items():
        chosen = [entries for prompt, entries in zip(prompts, verdicts) if prompt["kind"] == kind]
        if chosen:
            kinds[kind] = {
                name: share([np.mean([entry.criteria[name] for entry in entries]) for entries in chosen])
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


HEADER = ("pictures", "kind", "prompts", "criterion", "right, %", "95 % interval")
HEADER_BY_OBJECT = ("object", *(f"{kind}: pictures, found, right (%)" for kind in CRITERIA))


def rows(results: dict[str, dict]) -> list[list]:
    """Every source's shares in percent, with intervals, under HEADER: results[source] = `tables(...)`."""
    return [
        [source, kind, value["count"], name, f"{100 * value['mean']:.1f}", interval_text(value["interval"], 1, 100)]
        for source, table in results.items()
        for kind, criteria in table["kinds"].items()
        for name, value in criteria.items()
    ]


def rows_by_object(table: dict) -> list[list[str]]:
    """Per object and kind: pictures that ask for it, in which it is found, all right; under HEADER_BY_OBJECT."""
    return [[label, *(_cell(kinds.get(kind)) for kind in CRITERIA)] for label, kinds in table["objects"].items()]


def _cell(entry: dict | None) -> str:
    return "" if entry is None else f"{entry['count']}, {100 * entry['found']:.0f}, {100 * entry['right']:.0f}"
