"""The "clipscore" suite: how well pictures fit their prompts, by models that see both, in Chinese or in English.

Hessel et al. 2021 (arXiv 2104.08718): the cosine between a picture's and its text's embedding; CLIPScore is
2.5 max(cosine, 0). That paper puts "A photo depicts" before every text (text_prefix), which papers on text to image
leave out, as this suite does unless asked. Which model measured belongs to the number: those of two say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from ppvilg.config import ConfigError, bounded, choice
from ppvilg.files import PictureError, write_whole

from ..drawing.folder import METADATA, PROTOCOL, read_json
from ..drawing.painter import Painter, scale_name
from ..drawing.prompts import choose_prompts, read_prompts
from ..drawing.sampling import Sampling
from ..metrics.features import Pictures
from ..metrics.intervals import average
from ..metrics.scorer import SCORERS, ImageTextScorer
from ..reporting.figures import histogram_figure
from ..reporting.html import Report
from ..reporting.markdown import interval_text, table
from ..reporting.protocol import REPORT, about, open_output, write_results

WEIGHT = 2.5  # of the score of Hessel et al.
SHOWN = 24  # pictures of a kind in the report


@dataclass(frozen=True)
class ClipScoreRecipe(Sampling):
    """Everything the numbers depend on."""

    suite: str = "clipscore"
    output: str = MISSING
    scorer: str = choice(MISSING, tuple(SCORERS))
    weights: str = MISSING  # folder or PaddleNLP's name
    allow_pickle: bool = False  # weights that are a pickle, which can run code when it is loaded
    pictures: str | None = None  # a folder that was drawn before, with its prompts; None: the model draws
    prompts: str | None = None  # .txt, .jsonl, COCO .json or samples
    language: str = "zh"  # of the captions of samples
    text_prefix: str = ""  # before every text: "A photo depicts" for CLIPScore as Hessel et al. measured it
    text: str = "prompt"  # key of the prompt that the scorer reads: prompt_en for an English scorer of Chinese prompts
    count: int = bounded(1000, least=1)
    prompt_seed: int = bounded(0, least=0)
    draw_size: list[int] | None = bounded(None, least=1)  # width, height; None: those of the prompts, else the model's
    scorer_batch_size: int = bounded(32, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draw_size is not None and len(self.draw_size) != 2:
            raise ConfigError(f"draw_size={self.draw_size} must be [width, height] in pixels, or null")
        if self.pictures is None and self.prompts is None:
            raise ConfigError("give prompts= for the model to draw, or pictures= that were drawn")


class ClipScoreSuite:
    """One evaluation: draw what is missing, score every picture with its prompt, write results and report."""

    def __init__(self, recipe: ClipScoreRecipe):
        self.recipe = recipe
        self.painter: Painter | None = None
        if recipe.pictures is None:
            self.painter = Painter(recipe)
            self.prompts = self._choose_prompts()
            self.painter.check_sizes(self.prompts)
        else:
            self.prompts = read_folder_prompts(Path(recipe.pictures))
        missing = [i for i, prompt in enumerate(self.prompts) if not isinstance(prompt.get(recipe.text), str)]
        if missing:
            known = ", ".join(self.prompts[missing[0]])
            raise ValueError(f"prompt {missing[0]} has no text={recipe.text!r}, only {known}")
        self.scorer = ImageTextScorer(recipe.scorer, recipe.weights, recipe.allow_pickle)
        self.output = open_output(recipe.output, "clipscore")

    def _choose_prompts(self) -> list[dict]:
        recipe = self.recipe
        prompts = choose_prompts(read_prompts(recipe.prompts, recipe.language), recipe.count, recipe.prompt_seed)
        if recipe.draw_size is None:
            return prompts
        width, height = recipe.draw_size
        return [{**prompt, "width": width, "height": height} for prompt in prompts]

    def run(self) -> dict:
        """Draw, score and write everything; returns what results.json holds."""
        folder = Path(self.recipe.pictures or self.output / "pictures")
        if self.painter is not None:
            self.painter.draw(folder, self.prompts)
        pictures = Pictures(folder)
        prompts = pair(pictures, self.prompts)
        prefix = f"{self.recipe.text_prefix.strip()} ".lstrip()
        texts = [prefix + prompt[self.recipe.text] for prompt in prompts]
        try:
            cosines = self.scorer.similarities(pictures, texts, self.recipe.scorer_batch_size, "scores")
        except PictureError as error:
            hint = "" if self.painter is None else "; remove it to have it drawn again"
            raise ValueError(f"{error}{hint}") from error
        report = {**about("clipscore", self.recipe, self._hashes()), "generated": self._generated(folder)}
        report["results"] = summarise(prompts, cosines)
        write_results(self.output, report)
        self._write_scores(pictures, texts, cosines)
        self._write_page(report, pictures, texts, cosines)
        return report

    def _hashes(self) -> dict:
        return {"model": self.painter.sha256 if self.painter else None, "scorer": self.scorer.sha256}

    def _generated(self, folder: Path) -> dict:
        if self.painter is not None:
            return self.painter.protocol()
        return read_json(folder / PROTOCOL) if (folder / PROTOCOL).is_file() else {"source": "pictures"}

    def _write_scores(self, pictures: Pictures, texts: Sequence[str], cosines: np.ndarray) -> None:
        lines = [
            json.dumps({"picture": name, "text": text, "cosine": float(value)}, ensure_ascii=False)
            for name, text, value in zip(pictures.names, texts, cosines)
        ]
        write_whole(self.output / "scores.jsonl", "".join(line + "\n" for line in lines))

    def summary(self, report: dict) -> str:
        """Cosine and score with their intervals."""
        return table(HEADER, rows(report["results"]))

    def _write_page(self, report: dict, pictures: Pictures, texts: Sequence[str], cosines: np.ndarray) -> None:
        recipe, page = self.recipe, Report(f"clipscore: {self.recipe.pictures or self.recipe.model}")
        page.table(HEADER, rows(report["results"]))
        scale = scale_name(report["generated"].get("guidance_scale"))
        page.paragraph(f"Measured by {recipe.scorer}, {recipe.weights}; guidance {scale}. Intervals are over prompts.")
        page.plot(histogram_figure(cosines), "Cosines of pictures with their prompts, and their mean.")
        order = np.argsort(-cosines)
        for title, chosen in (("Highest", order[:SHOWN]), ("Lowest", order[::-1][:SHOWN])):
            page.heading(title)
            page.pictures([pictures[i] for i in chosen], [f"{cosines[i]:.3f} {texts[i]}" for i in chosen])
        page.heading("Protocol")
        page.data({key: report[key] for key in ("protocol", "generated", "versions", "hashes")})
        page.write(self.output / REPORT)


def read_folder_prompts(folder: Path) -> list[dict]:
    """The prompts of a folder of pictures in GenEval's layout; FileNotFoundError when it says nothing of them."""
    if not (folder / METADATA).is_file():
        raise FileNotFoundError(f"{folder} has no {METADATA}: which picture belongs to which prompt is not known")
    return read_prompts(folder / METADATA)


def pair(pictures: Pictures, prompts: Sequence[dict]) -> list[dict]:
    """The prompt of each picture `00012/samples/0003.png`; ValueError when pictures and prompts do not pair up."""
    numbers = [int(name.split("/")[0]) for name in pictures.names]
    wrong = sorted(set(numbers) ^ set(range(len(prompts))))
    if wrong:
        side = "no picture" if wrong[0] < len(prompts) else "no prompt"
        raise ValueError(f"{pictures.path} and its prompts do not pair up: there is {side} for number {wrong[0]:05d}")
    return [{**prompts[number], "number": number} for number in numbers]


def summarise(prompts: Sequence[dict], cosines: np.ndarray) -> dict:
    """Means over prompts of the cosine and of CLIPScore, with intervals; a prompt is one unit."""
    by_prompt: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, cosines):
        by_prompt.setdefault(prompt["number"], []).append(float(value))
    cosine = [float(np.mean(values)) for values in by_prompt.values()]
    score = [float(np.mean(WEIGHT * np.maximum(values, 0))) for values in by_prompt.values()]
    return {"cosine": average(cosine), "clip_score": average(score)}


HEADER = ("", "mean", "95 % interval", "prompts")


def rows(results: dict) -> list[list]:
    """Lines under HEADER."""
    return [
        [name, f"{entry['mean']:.4f}", interval_text(entry["interval"], 4), entry["count"]]
        for name, entry in results.items()
    ]
