"""Files of voters, checked against the key of their study and freed from the blind: who preferred which folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..drawing.folder import read_json

VOTE_FORMAT = "ppvilg side-by-side votes 1"
CRITERIA = ("alignment", "fidelity")
OUTCOMES = ("first", "tie", "second")


@dataclass(frozen=True)
class Vote:
    """One answer. outcome: "first", "second" (which folder is better) or "tie"."""

    voter: str
    pair: str
    criterion: str
    outcome: str
    side: str  # "left", "right" or "tie": where what was chosen stood
    seconds: float


def read_votes(folder: Path, key: Mapping) -> list[Vote]:
    """All votes of the JSON files in a folder.

    ValueError names the file that is no vote file, belongs to another study, holds what cannot be, or repeats a voter.
    """
    pairs = {entry["id"]: entry for entry in key["pairs"]}
    votes: list[Vote] = []
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.glob("*.json") if path.name[0] != "."):
        content = read_json(path)
        if content.get("format") != VOTE_FORMAT:
            found = content.get("format")
            raise ValueError(f"{path} is no file of votes: its format is {found!r}, not {VOTE_FORMAT!r}")
        if content.get("study") != key["study"]:
            raise ValueError(f"{path} holds votes of study {content.get('study')!r}, not of {key['study']!r}")
        voter = content.get("voter")
        if not isinstance(voter, str) or not voter:
            raise ValueError(f"{path} does not say who voted")
        if voter in files:
            raise ValueError(f"{files[voter]} and {path} both hold votes of {voter!r}: keep the newer one")
        files[voter] = path
        votes += _votes_of(path, voter, content.get("votes"), pairs)
    return votes


def _votes_of(path: Path, voter: str, entries: object, pairs: Mapping[str, dict]) -> list[Vote]:
    if not isinstance(entries, list):
        raise ValueError(f"{path}: votes is no list")
    votes, seen = [], set()
    for entry in entries:
        vote = _vote(path, voter, entry, pairs)
        if (vote.pair, vote.criterion) in seen:
            raise ValueError(f"{path} answers {vote.criterion} of pair {vote.pair} twice")
        seen.add((vote.pair, vote.criterion))
        votes.append(vote)
    return votes


def _vote(path: Path, voter: str, entry: object, pairs: Mapping[str, dict]) -> Vote:
    allowed = {"pair": pairs, "criterion": CRITERIA, "choice": ("A", "B", "tie"), "left": ("A", "B")}
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: a vote is an object, found {entry!r}")
    for name, values in allowed.items():
        if not isinstance(entry.get(name), str) or entry[name] not in values:
            raise ValueError(f"{path}: a vote has {name} {entry.get(name)!r}, which this study does not know")
    seconds = entry.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise ValueError(f"{path}: a vote of pair {entry['pair']} took {seconds!r} seconds")
    choice = entry["choice"]
    outcome = "tie" if choice == "tie" else pairs[entry["pair"]][choice]
    side = "tie" if choice == "tie" else "left" if choice == entry["left"] else "right"
    return Vote(voter, entry["pair"], entry["criterion"], outcome, side, float(seconds))
