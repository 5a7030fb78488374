"""The "vilg300" suite: the paper's bilingual prompts (section 4.2), drawn, scored and laid out by class.

The list itself belongs to its authors and does not come with this package: give the published CSV. It has 300 rows and
16 classes, in UTF-8 with a byte order mark, under the header `Prompt,文本,类别,来源`; fields may hold line breaks.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING
from PIL import Image, ImageDraw, ImageFont

from ppvilg.config import ConfigError, bounded, choice
from ppvilg.files import file_sha256, write_whole

from ..drawing.folder import PictureFolder, write_png
from ..drawing.painter import Painter
from ..drawing.sampling import Sampling
from ..metrics.features import Pictures
from ..metrics.intervals import average
from ..metrics.scorer import SCORERS, ImageTextScorer
from ..reporting.html import Report
from ..reporting.markdown import interval_text, table
from ..reporting.protocol import REPORT, about, open_output, write_results
from .clip_score import WEIGHT

HEADER = ("Prompt", "文本", "类别", "来源")
LANGUAGES = ("zh", "en")
ON_SHEET, ON_PAGE = 256, 160  # pixels along the longer side; larger pictures are made smaller


@dataclass(frozen=True)
class ViLG300Recipe(Sampling):
    """Everything a run over the prompts depends on."""

    suite: str = "vilg300"
    output: str = MISSING
    prompts: str = MISSING  # the published CSV
    languages: list[str] = choice(["zh"], LANGUAGES)  # zh, en or both
    images_per_prompt: int = bounded(4, least=1)
    width: int | None = bounded(None, least=1)  # pixels; None: the model's own
    height: int | None = bounded(None, least=1)
    expected_prompts: int | None = bounded(300, least=1)  # None: any list of the same columns
    expected_classes: int | None = bounded(16, least=1)
    scorer_zh: str = choice("chinese_clip", SCORERS)  # see the suite clipscore
    weights_zh: str | None = None  # folder or name; None: Chinese prompts are not scored
    scorer_en: str = choice("clip", SCORERS)
    weights_en: str | None = None
    allow_pickle: bool = False  # weights that are a pickle, which can run code when it is loaded

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise ConfigError(f"languages={self.languages}: use zh, en or both")


def read_vilg300(path: str | Path, expected_prompts: int | None = 300, expected_classes: int | None = 16) -> list[dict]:
    """The rows of the published CSV: {"prompt_zh", "prompt_en", "class", "source"}, texts as they stand there.

    ValueError names the file and what differs from the published one: encoding, header, an empty field, a prompt that
    occurs twice, number of rows or classes. FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no list of prompts at {path}: ViLG-300 is not part of this package; give its CSV")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); do not save it again with a spreadsheet") from error
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not readable as CSV ({error})") from error
    if not rows or tuple(rows[0]) != HEADER:
        raise ValueError(f"{path} begins with {','.join(rows[0]) if rows else 'nothing'}, not with {','.join(HEADER)}")
    prompts = [_prompt(path, number, row) for number, row in enumerate(rows[1:], start=1)]
    classes = {prompt["class"] for prompt in prompts}
    counts = {"prompts": (len(prompts), expected_prompts), "classes": (len(classes), expected_classes)}
    for what, (found, expected) in counts.items():
        if expected is not None and found != expected:
            raise ValueError(f"{path} has {found} {what}, expected_{what} is {expected}")
    for key in ("prompt_zh", "prompt_en"):
        texts = [prompt[key] for prompt in prompts]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise ValueError(f"{path} has the prompt {twice!r} twice")
    return prompts


def _prompt(path: Path, number: int, row: list[str]) -> dict:
    if len(row) != len(HEADER) or not all(value.strip() for value in row):
        raise ValueError(f"{path}, row {number}: needs {len(HEADER)} fields that are not empty, found {row}")
    english, chinese, kind, source = (value.strip() for value in row)
    return {"prompt_zh": chinese, "prompt_en": english, "class": kind, "source": source}


class ViLG300Suite:
    """Draws the prompts in each language, scores and lays them out; run again to go on after a stop."""

    def __init__(self, recipe: ViLG300Recipe):
        self.recipe = recipe
        self.rows = read_vilg300(recipe.prompts, recipe.expected_prompts, recipe.expected_classes)
        self.painter = Painter(recipe)
        self.painter.check_sizes(self.prompts(recipe.languages[0])[:1])
        self.scorers: dict[str, ImageTextScorer] = {}
        for language in recipe.languages:
            weights = getattr(recipe, f"weights_{language}")
            if weights is not None:
                self.scorers[language] = ImageTextScorer(
                    getattr(recipe, f"scorer_{language}"), weights, recipe.allow_pickle
                )
        self.output = open_output(recipe.output, recipe.suite)

    def run(self) -> dict:
        """Pictures, sheets, results.json and report.html."""
        page, results = Report(f"ViLG-300: {self.recipe.model}"), {}
        for language in self.recipe.languages:
            prompts = self.prompts(language)
            folder = self._draw(language, prompts)
            scores = self._clip_scores(language, folder)
            results[language] = self._tables(prompts, scores)
            self._write_sheets(page, language, folder, results[language])
        head = {**about("vilg300", self.recipe, self._hashes()), "drawn_with": self.painter.protocol()}
        report = {**head, "results": results}
        page.heading("Protocol")
        page.data(head)
        page.write(self.output / REPORT)
        write_results(self.output, report)
        return report

    def summary(self, report: dict) -> str:
        """One table per language, by class."""
        parts = []
        for language, result in report["results"].items():
            parts.append(f"{language}: {_sentence(result)}\n\n{table(*_rows(result))}")
        return "\n\n".join(parts)

    def prompts(self, language: str) -> list[dict]:
        """Lines of evaluation_metadata.jsonl."""
        size = {name: getattr(self.recipe, name) for name in ("width", "height") if getattr(self.recipe, name)}
        return [{"prompt": row[f"prompt_{language}"], "language": language, **row, **size} for row in self.rows]

    def _draw(self, language: str, prompts: Sequence[dict]) -> PictureFolder:
        with warnings.catch_warnings():  # the report says how many prompts are cut; not once per batch
            warnings.filterwarnings("ignore", message="prompt longer than the text encoder")
            per_prompt = self.recipe.images_per_prompt
            folder = self.painter.draw(self.output / language, prompts, per_prompt, f"ViLG-300 {language}")
        folder.write_grids()
        return folder

    def _clip_scores(self, language: str, folder: PictureFolder) -> list[list[float]] | None:
        """CLIPScore (Hessel et al. 2021) of each prompt's pictures, None where no weights are given."""
        if language not in self.scorers:
            return None
        per_prompt = self.recipe.images_per_prompt
        texts = [line["prompt"] for line in folder.metadata for _ in range(per_prompt)]
        pictures = Pictures(folder.folder, len(texts))
        cosines = self.scorers[language].similarities(pictures, texts, description=f"scores {language}")
        return (WEIGHT * np.maximum(cosines, 0)).reshape(-1, per_prompt).tolist()

    def _hashes(self) -> dict[str, str]:
        scorers = {f"scorer_{language}": scorer.sha256 for language, scorer in self.scorers.items()}
        return {"model": self.painter.sha256, "prompts": file_sha256(self.recipe.prompts), **scorers}

    def _tables(self, prompts: Sequence[dict], scores: list[list[float]] | None) -> dict:
        """Counts, what the text encoder does not see, and scores by class (a prompt is one unit)."""
        unseen = self._unseen([prompt["prompt"] for prompt in prompts])
        means = None if scores is None else [float(np.mean(entry)) for entry in scores]

        def entry(chosen: list[int]) -> dict:
            result: dict = {
                "prompts": len(chosen),
                "pictures": len(chosen) * self.recipe.images_per_prompt,
                "cut": sum(bool(unseen[i]["cut"]) for i in chosen),
                "unknown": sum(bool(unseen[i]["unknown"]) for i in chosen),
            }
            if means is not None:
                result["clip_score"] = average([means[i] for i in chosen])
            return result

        classes = dict.fromkeys(prompt["class"] for prompt in prompts)
        by_class = {name: entry([i for i, p in enumerate(prompts) if p["class"] == name]) for name in classes}
        return {"all": entry(list(range(len(prompts)))), "classes": by_class, "unseen": unseen}

    def _unseen(self, texts: Sequence[str]) -> list[dict]:
        """Per prompt the end that is too long for the text encoder, and how many of its tokens are unknown."""
        knowledge = self.painter.pipeline.text_knowledge
        encoded = knowledge.encode(texts)
        unknown = (encoded.input_ids == knowledge.tokenizer.unk_token_id).sum(axis=1)
        return [{"cut": cut, "unknown": int(count)} for cut, count in zip(encoded.dropped, unknown)]

    def _write_sheets(self, page: Report, language: str, folder: PictureFolder, result: dict) -> None:
        """A contact sheet per class as PNG (numbered), and the same in the report with the texts."""
        page.heading(f"{language}: {len(folder.metadata)} prompts")
        page.paragraph(_sentence(result))
        page.table(*_rows(result))
        sheets = self.output / "sheets" / language
        sheets.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(result["classes"], start=1):
            chosen = [i for i, line in enumerate(folder.metadata) if line["class"] == name]
            pictures, captions = [], []
            for i in chosen:
                pictures += [thumbnail(folder.read(i, image), ON_SHEET) for image in range(folder.images_per_prompt)]
                others = [f"{i:05d}"] * (folder.images_per_prompt - 1)
                captions += [f"{i:05d} {folder.metadata[i]['prompt']}", *others]
            labels = [caption[:5] for caption in captions]
            sheet = numbered_sheet(pictures, labels, folder.images_per_prompt)
            write_png(sheet, sheets / f"{number:02d}_{name.replace('/', '_')}.png")
            page.heading(f"{language}: {name}")
            shown = [thumbnail(picture, ON_PAGE) for picture in pictures]
            page.pictures(shown, captions, 1 if shown[0].width > 100 else 2)
        lines = [json.dumps({"prompt": i, **entry}, ensure_ascii=False) for i, entry in enumerate(result["unseen"])]
        write_whole(sheets / "unseen.jsonl", "".join(line + "\n" for line in lines))


def thumbnail(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with sides of `longest` pixels at most."""
    small = picture.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small


def numbered_sheet(pictures: Sequence[Image.Image], labels: Sequence[str], per_prompt: int) -> Image.Image:
    """Pictures in rows that never part those of one prompt, with a label below each; small ones at twice their size."""
    scale = 2 if max(pictures[0].size) <= 128 else 1
    columns = min(len(pictures), per_prompt * max(1, (8 if scale == 1 else 12) // per_prompt))
    width, height = (scale * max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    cell = (width + 8, height + 22)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(pictures) // columns) * cell[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, label) in enumerate(zip(pictures, labels)):
        left, top = i % columns * cell[0] + 4, i // columns * cell[1] + 4
        size = (scale * picture.width, scale * picture.height)
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC) if scale > 1 else picture, (left, top))
        draw.text((left, top + height + 1), label, fill="black", font=font)
    return sheet


def _sentence(result: dict) -> str:
    whole = result["all"]
    return (
        f"{whole['pictures']} pictures of {whole['prompts']} prompts in {len(result['classes'])} classes. The text "
        f"encoder does not see the end of {whole['cut']} prompts, and {whole['unknown']} hold words it does not know."
    )


def _rows(result: dict) -> tuple[list[str], list[list]]:
    """Header and rows of the table by class."""
    scored = "clip_score" in result["all"]
    header = ["class", "prompts", "pictures", "cut off", "with unknown words"]
    header += ["CLIPScore", "95 % interval"] if scored else []
    rows = []
    for name, entry in [("all", result["all"]), *result["classes"].items()]:
        cells = [name, entry["prompts"], entry["pictures"], entry["cut"], entry["unknown"]]
        if scored:
            cells += [round(entry["clip_score"]["mean"], 4), interval_text(entry["clip_score"]["interval"], 4)]
        rows.append(cells)
    return header, rows

