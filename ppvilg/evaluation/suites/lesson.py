"""The "lesson" suite: what a model of the emoji world has learnt from an adapter, and what it has forgotten over it.

The same prompts are drawn without and with the adapter: for a forty-first object, in words and on backgrounds that the
lesson lacks, and held-out ones for the forty. The detector with one class more judges; a picture shows both rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import MISSING
from PIL import Image

from ppvilg.config import ConfigError, bounded
from ppvilg.emoji.captions import held_out_prompts
from ppvilg.emoji.detector import Detector, detector_sha256
from ppvilg.emoji.judging import CRITERIA, Verdict, judge
from ppvilg.emoji.lesson.judge import detector_with
from ppvilg.emoji.lesson.pictures import lesson_prompts, new_object
from ppvilg.pipelines import make_grid

from ..drawing.folder import write_png
from ..drawing.painter import Painter
from ..drawing.sampling import Sampling
from ..metrics.intervals import share
from ..reporting.html import Report
from ..reporting.markdown import interval_text, table
from ..reporting.protocol import REPORT, about, open_output, write_results
from ..reporting.sheets import contact_sheet

SIDES = ("before", "after")
HEADER = ("prompts for", "number", "right before, %", "95 % interval", "right after, %", "95 % interval")
NAMED = {"single": "object", "pair": "objects", "count": "number"}  # what "right" means, the background apart
SHOWN = 10  # pictures of the new object in a row, and as many of the others


@dataclass(frozen=True)
class LessonRecipe(Sampling):
    """Everything an evaluation depends on."""

    suite: str = "lesson"
    output: str = MISSING
    emoji: str = "🦊"  # of the object that was taught
    measure: str = "只"  # its measure word
    new: int = bounded(60, least=1)  # prompts for it
    old: dict[str, int] = bounded({"single": 20, "pair": 0, "count": 0}, least=0, keys=tuple(CRITERIA))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lora:
            raise ConfigError("lora is not set: give the adapter that was trained, such as lora=output/lora/lora")


class LessonSuite:
    """One evaluation: draw what is missing, judge everything, write results.json, report.html and the picture."""

    def __init__(self, recipe: LessonRecipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        self.item = new_object(recipe.emoji, recipe.measure)
        counts = ((kind, recipe.old.get(kind, 0)) for kind in CRITERIA)
        self.prompts = lesson_prompts(self.item, recipe.new)
        self.prompts += [each for kind, count in counts if count for each in held_out_prompts(kind, count)]
        alone = Sampling(**{each.name: getattr(recipe, each.name) for each in fields(Sampling) if each.name != "lora"})
        self.painters = {"before": Painter(alone), "after": Painter(recipe)}
        for painter in self.painters.values():
            painter.check_sizes(self.prompts)
        open_output(recipe.output, "lesson")

    def run(self) -> dict:
        """Draw, judge and write everything; returns what results.json holds."""
        detector = detector_with(Detector.load(), self.item)
        pictures, verdicts = {}, {}
        for side, painter in self.painters.items():
            folder = painter.draw(self.output / side, self.prompts, description=side)
            pictures[side] = [folder.read(*key) for key in folder.all()]
            found = detector.detect(pictures[side])
            verdicts[side] = [judge(prompt, finding) for prompt, finding in zip(self.prompts, found)]
        results = {name: self._shares(verdicts, chosen) for name, chosen in self._parts().items()}
        hashes = {"model": self.painters["before"].sha256, "detector": detector_sha256()}
        drawn = {side: painter.protocol() for side, painter in self.painters.items()}
        report = {**about("lesson", self.recipe, hashes), "drawn_with": drawn, "results": results}
        write_png(self._picture(pictures), self.output / "before_after.png")
        write_results(self.output, report)
        self._write_page(report, pictures, verdicts)
        return report

    def _parts(self) -> dict[str, list[int]]:
        """Numbers of the prompts for the new object, and for the others."""
        new = self.recipe.new
        parts = {self.item.name: list(range(new)), "others": list(range(new, len(self.prompts)))}
        return {name: numbers for name, numbers in parts.items() if numbers}

    @staticmethod
    def _shares(verdicts: dict[str, Sequence[Verdict]], chosen: Sequence[int]) -> dict:
        """Of some prompts: how often everything but the background is right, and all of it, on each side."""
        found: dict = {"prompts": len(chosen)}
        for side, given in verdicts.items():
            judged = [given[i] for i in chosen]
            named = share([float(verdict.criteria[NAMED[verdict.kind]]) for verdict in judged])
            found[side] = {"named": named, "all": share([float(verdict.right) for verdict in judged])}
        return found

    def _picture(self, pictures: dict[str, list[Image.Image]]) -> Image.Image:
        """Square pictures of the new object without the adapter, below with it; then of the others, likewise."""
        rows = []
        for chosen in self._parts().values():
            square = [i for i in chosen if self.prompts[i]["width"] == self.prompts[i]["height"]]
            step = max(1, len(square) // SHOWN)
            rows += [[pictures[side][i] for i in square[::step][:SHOWN]] for side in SIDES]
        columns = max(map(len, rows))
        blank = Image.new("RGB", rows[0][0].size, "white")
        sheet = make_grid([each for row in rows for each in row + [blank] * (columns - len(row))], columns=columns)
        return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.BICUBIC)

    def summary(self, report: dict) -> str:
        """A line for the new object and one for the others, and where the picture is."""
        return table(HEADER, _rows(report["results"])) + f"\n\nbefore and after: {self.output / 'before_after.png'}"

    def _write_page(self, report: dict, pictures: dict, verdicts: dict) -> None:
        page = Report(f"lesson: {self.item.name}")
        page.table(HEADER, _rows(report["results"]))
        for side in SIDES:
            page.heading(side)
            page.sheet(contact_sheet(pictures[side], verdicts[side], range(len(self.prompts))))
        page.heading("Protocol")
        page.data({key: report[key] for key in ("protocol", "drawn_with", "versions", "hashes")})
        page.write(self.output / REPORT)


def _rows(results: dict) -> list[tuple]:
    return [
        (name, part["prompts"], *(cell for side in SIDES for cell in _cells(part[side]["named"])))
        for name, part in results.items()
    ]


def _cells(found: dict) -> tuple[str, str]:
    return f"{100 * found['mean']:.0f}", interval_text(found["interval"], 0, 100)
