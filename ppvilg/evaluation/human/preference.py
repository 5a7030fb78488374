"""Votes -> preference rates with intervals that hold although one pair's votes hang together, and agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..metrics.intervals import share_interval
from .votes import CRITERIA, OUTCOMES, Vote

SCORE = {"first": 1.0, "tie": 0.5, "second": 0.0}


def krippendorff_alpha(ratings: Sequence[Mapping[str, str]]) -> float | None:
    """Agreement beyond chance for names, with gaps (Krippendorff 2011): ratings[unit] = {voter: answer}.

    1 is perfect, 0 is chance; None where no unit has two answers or all answers are the same one.
    """
    units = [list(unit.values()) for unit in ratings if len(unit) > 1]
    totals: Counter = Counter()
    agreeing = 0.0
    for answers in units:
        counts = Counter(answers)
        totals.update(counts)
        agreeing += sum(number * (number - 1) for number in counts.values()) / (len(answers) - 1)
    pairable = sum(totals.values())
    by_chance = pairable * (pairable - 1) - sum(number * (number - 1) for number in totals.values())
    if pairable < 2 or by_chance == 0:
        return None
    return 1.0 - (pairable - 1) * (pairable - agreeing) / by_chance


def summarize(votes: Sequence[Vote], key: Mapping) -> dict:
    """What results.json says of the votes: per criterion all pairs, each class, agreement; and the voters."""
    classes = {entry["id"]: entry["class"] for entry in key["pairs"]}
    criteria = {name: _criterion([vote for vote in votes if vote.criterion == name], classes) for name in CRITERIA}
    return {"criteria": criteria, "voters": _voters(votes)}


def _criterion(votes: Sequence[Vote], classes: Mapping[str, str | None]) -> dict:
    answers: dict[str, dict[str, str]] = {}
    for vote in votes:
        answers.setdefault(vote.pair, {})[vote.voter] = vote.outcome
    ordered = [pair for pair in classes if pair in answers]
    names = sorted({classes[pair] for pair in ordered} - {None})
    by_class = {name: rates([answers[pair] for pair in ordered if classes[pair] == name]) for name in names}
    strata = [names.index(classes[pair]) for pair in ordered] if all(classes[pair] for pair in ordered) else None
    units = [answers[pair] for pair in ordered]
    several = [list(unit.values()) for unit in units if len(unit) > 1]
    same = [sum(a == b for i, a in enumerate(u) for b in u[i + 1 :]) / (len(u) * (len(u) - 1) / 2) for u in several]
    agreement = {
        "krippendorff_alpha": krippendorff_alpha(units),
        "same_answer": float(np.mean(same)) if same else None,
        "pairs_with_several_votes": len(several),
    }
    return {"all": rates(units, strata), "classes": by_class, "agreement": agreement}


def rates(units: Sequence[Mapping[str, str]], strata: Sequence[int] | None = None) -> dict:
    """Share of each outcome and the score (ties count half), with 95 % intervals; every pair counts the same."""
    result: dict = {"pairs": len(units), "votes": sum(map(len, units))}
    for name in (*OUTCOMES, "score"):
        if not units:
            result[name] = {"mean": None, "interval": None}
            continue
        values = [
            np.mean([SCORE[answer] if name == "score" else float(answer == name) for answer in unit.values()])
            for unit in units
        ]
        result[name] = {"mean": float(np.mean(values)), "interval": list(share_interval(values, strata))}
    return result


def _voters(votes: Sequence[Vote]) -> dict:
    """Per voter: votes, scores, how often the left side was chosen, and how long an answer took."""
    result = {}
    for voter in sorted({vote.voter for vote in votes}):
        own = [vote for vote in votes if vote.voter == voter]
        sides = Counter(vote.side for vote in own)
        decided = sides["left"] + sides["right"]
        scores = {
            name: float(np.mean([SCORE[vote.outcome] for vote in own if vote.criterion == name]))
            for name in CRITERIA
            if any(vote.criterion == name for vote in own)
        }
        result[voter] = {
            "votes": len(own),
            "score": scores,
            "left_share": sides["left"] / decided if decided else None,
            "tie_share": sides["tie"] / len(own),
            "median_seconds": float(np.median([vote.seconds for vote in own])),
        }
    return result
