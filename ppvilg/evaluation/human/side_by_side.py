"""The "side_by_side" suite: people compare two models without knowing which is which (paper section 4.2).

page/vote.html   for the voters: pairs under the neutral slots A and B, everything inside, no name of a model
key.json         for whoever asks them: which folder is behind A and B
votes/*.json     what the voters send back
results.json, report.html, preference.svg   once there are votes
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from PIL import Image
from tqdm import tqdm

from ppvilg.config import Checked, bounded, choice
from ppvilg.files import read_picture, write_whole

from ..drawing.folder import read_json
from ..reporting.protocol import about, differences, open_output, write_results
from .pairs import Pair, pair_up, read_pictures
from .preference import summarize
from .preference_report import markdown, write_report
from .votes import VOTE_FORMAT, read_votes

KEY_FORMAT = "ppvilg side-by-side key 1"
LARGEST_PNG = 256  # pixels; larger pictures become JPEG of the quality of the recipe
SIDES = ("first", "second")
PAIR_KEYS = {"id", "prompt", "class", "A", "B"}
# What may change after the page is handed out.
_FREE = ("suite", "output", "votes", "first", "second", "first_name", "second_name", "prompts")


@dataclass(frozen=True)
class SideBySideRecipe(Checked):
    """Everything a comparison depends on."""

    suite: str = "side_by_side"
    output: str = MISSING
    first: str = MISSING  # folder of pictures; see read_pictures for the layouts
    second: str = MISSING
    first_name: str | None = None  # name in the report; None: the folder's
    second_name: str | None = None
    prompts: str | None = None  # list of prompts for folders that have none of their own
    prompt_key: str = "prompt"  # which text voters see: for example prompt_en
    language: str = choice("zh", ("zh", "en"))  # of the page
    pairs: int | None = bounded(None, least=1)  # how many, drawn at random; None: all
    largest_side: int = bounded(768, least=1)  # pixels; larger pictures are made smaller
    jpeg_quality: int = bounded(95, least=1, most=100)
    seed: int = bounded(0, least=0)
    votes: str | None = None  # folder of the voters' files; None: votes in the output

    @property
    def names(self) -> tuple[str, str]:
        """The models' names in the report; ValueError when they are the same."""
        names = (self.first_name or Path(self.first).name, self.second_name or Path(self.second).name)
        if names[0] == names[1]:
            raise ValueError(f"both models are called {names[0]!r}: give first_name and second_name")
        return names


class SideBySideSuite:
    """Makes the page once; every later run reads the votes that came in and writes the report anew."""

    def __init__(self, recipe: SideBySideRecipe):
        self.recipe, self.names = recipe, recipe.names
        self.output = open_output(recipe.output, recipe.suite)
        self.votes_folder = Path(recipe.votes) if recipe.votes else self.output / "votes"
        self.page, self.key_path = self.output / "page" / "vote.html", self.output / "key.json"

    def run(self) -> dict:
        """Page and key if they are not there, and the report of the votes so far."""
        key = self._opened_study() if self.key_path.is_file() else self._new_study()
        self.votes_folder.mkdir(parents=True, exist_ok=True)
        votes = read_votes(self.votes_folder, key)
        hashes = {side: key["hashes"][side] for side in SIDES}
        head = {**about("side_by_side", self.recipe, hashes), "study": key["study"], "pairs": len(key["pairs"])}
        report = {**head, "names": dict(zip(SIDES, self.names)), "results": summarize(votes, key) if votes else None}
        write_results(self.output, report)
        write_report(self.output, report)
        return report

    def summary(self, report: dict) -> str:
        """Where the page is, or who won."""
        if report["results"] is None:
            return f"{self.page} is ready for the voters; put their files into {self.votes_folder} and run this again"
        return markdown(report)

    # ---- making a study ----

    def _opened_study(self) -> dict:
        """The key of a page that is out: it stays as it is, so a recipe that asks for another one is refused."""
        key = read_json(self.key_path)
        if key.get("format") != KEY_FORMAT:
            raise ValueError(f"{self.key_path} is no key of a side-by-side page of this version; choose another output")
        pairs = key.get("pairs")
        whole = isinstance(pairs, list) and all(isinstance(pair, dict) and PAIR_KEYS <= pair.keys() for pair in pairs)
        if not whole or not all(isinstance(key.get(name), dict) for name in ("recipe", "hashes")) or "study" not in key:
            raise ValueError(f"{self.key_path} is damaged: restore it, for the votes cannot be read without it")
        different = differences(key["recipe"], self._defining())
        if different:
            raise ValueError(f"{self.output} holds another study ({different}); choose another output")
        if not self.page.is_file():
            raise ValueError(f"{self.page} is gone while its key is there; restore it, or choose another output")
        return key

    def _defining(self) -> dict[str, Any]:
        """What the page depends on; the folders by their hashes, for they may have moved."""
        return {name: value for name, value in asdict(self.recipe).items() if name not in _FREE}

    def _new_study(self) -> dict:
        recipe = self.recipe
        folders = [read_pictures(folder, recipe.prompts) for folder in (recipe.first, recipe.second)]
        pairs = pair_up(*folders, (recipe.first, recipe.second))
        if recipe.pairs is not None and recipe.pairs > len(pairs):
            raise ValueError(f"pairs={recipe.pairs}, but there are only {len(pairs)} prompts")
        rng = np.random.default_rng(recipe.seed)
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[: recipe.pairs]]
        slots = rng.permutation(np.arange(len(pairs)) % 2)  # which side is in slot A: each as often as the other
        shown, entries, digests = [], [], {side: hashlib.sha256() for side in SIDES}
        with tqdm(pairs, desc="page", unit="pair", postfix=str(self.page)) as progress:
            for number, (pair, slot) in enumerate(zip(progress, slots), start=1):
                entry, sources = self._entry(pair, f"p{number:04d}", SIDES[slot], digests)
                entries.append(entry)
                shown.append({"id": entry["id"], "prompt": entry["prompt"], **sources})
        hashes = {side: digest.hexdigest() for side, digest in digests.items()}
        identity = json.dumps([hashes, self._defining(), entries], ensure_ascii=False, sort_keys=True)
        study = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self._write_page({"format": VOTE_FORMAT, "study": study, "language": recipe.language, "pairs": shown})
        key = {"format": KEY_FORMAT, "study": study, "recipe": self._defining(), "hashes": hashes, "pairs": entries}
        write_whole(self.key_path, json.dumps(key, ensure_ascii=False, indent=1) + "\n")
        return key

    def _entry(self, pair: Pair, identity: str, in_a: str, digests: dict) -> tuple[dict, dict]:
        """(line of the key, {"A", "B": pictures as data URIs})."""
        text = pair.line.get(self.recipe.prompt_key)
        if not isinstance(text, str):
            raise ValueError(f"prompt_key={self.recipe.prompt_key!r}: prompt {pair.prompt!r} has no such text")
        files = dict(zip(SIDES, (pair.first, pair.second)))
        for side, paths in files.items():
            digests[side].update(pair.prompt.encode() + b"\n")
            for path in paths:
                digests[side].update(path.read_bytes())
        in_b = SIDES[1 - SIDES.index(in_a)]
        sources = {slot: [self._data_uri(path) for path in files[side]] for slot, side in (("A", in_a), ("B", in_b))}
        entry = {"id": identity, "prompt": text, "class": pair.line.get("class"), "A": in_a, "B": in_b}
        return entry, sources

    def _data_uri(self, path: Path) -> str:
        """A picture encoded anew, so that nothing of its file is left but the pixels."""
        picture, limit = read_picture(path), self.recipe.largest_side
        picture.info.clear()  # what its file says of where it comes from
        if max(picture.size) > limit:
            scale = limit / max(picture.size)
            picture = picture.resize([max(1, round(scale * side)) for side in picture.size], Image.LANCZOS)
        buffer = io.BytesIO()
        if max(picture.size) <= LARGEST_PNG:
            picture.save(buffer, format="PNG")
            return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        picture.save(buffer, format="JPEG", quality=self.recipe.jpeg_quality, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _write_page(self, study: dict) -> None:
        template = importlib.resources.files("ppvilg.evaluation.human") / "page" / "vote.html"
        data = json.dumps(study, ensure_ascii=False).replace("<", "\\u003c")
        self.page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.page, template.read_text(encoding="utf-8").replace("__STUDY__", data))
