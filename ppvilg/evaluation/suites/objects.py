"""The "objects" suite, after GenEval: held-out prompts are drawn, a detector judges, tables say how often all is right.

Three sources of pictures for the same prompts: the model; the autoencoder's reconstructions of real renders, which is
the most the model could reach; and the renders themselves, which is the most the judge could see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import paddle
from omegaconf import MISSING
from PIL import Image

from ppvilg.config import ConfigError, bounded, choice
from ppvilg.emoji.captions import held_out_prompts
from ppvilg.emoji.detector import Detector, detector_sha256, to_input
from ppvilg.emoji.judging import CRITERIA, Verdict, judge
from ppvilg.emoji.objects import font_sha256
from ppvilg.emoji.render import render
from ppvilg.emoji.scenes import Scene, draw_scene
from ppvilg.files import write_whole

from ..drawing.folder import PictureFolder, write_png
from ..drawing.painter import Painter, draw_missing, picture_seed
from ..drawing.sampling import Sampling
from ..reporting.html import Report
from ..reporting.markdown import table
from ..reporting.protocol import REPORT, about, open_output, write_results
from ..reporting.sheets import contact_sheet, write_blind_sheets
from .object_tables import HEADER, HEADER_BY_OBJECT, rows, rows_by_object, tables

SOURCES = ("model", "reconstruction", "renders")


@dataclass(frozen=True)
class ObjectsRecipe(Sampling):
    """Everything an evaluation depends on."""

    suite: str = "objects"
    output: str = MISSING
    detector: str | None = None  # folder; None: the detector that comes with the package
    sources: list[str] = choice(list(SOURCES), SOURCES)
    prompts: dict[str, int] = bounded({"single": 120, "pair": 100, "count": 100}, least=0, keys=tuple(CRITERIA))
    prompt_seed: int = bounded(0, least=0)
    images_per_prompt: int = bounded(1, least=1)
    blind_pictures: int = bounded(60, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ConfigError(f"sources={self.sources}: needs some of {', '.join(SOURCES)}, each once")
        if not any(self.prompts.values()):
            raise ConfigError(f"prompts={self.prompts}: needs how many of {', '.join(CRITERIA)}")


def suite_prompts(recipe: ObjectsRecipe) -> list[dict]:
    """The held-out prompts, kinds in the order of CRITERIA."""
    counts = ((kind, recipe.prompts.get(kind, 0)) for kind in CRITERIA)
    return [prompt for kind, count in counts if count for prompt in held_out_prompts(kind, count, recipe.prompt_seed)]


def scene_of(prompt: dict, rng: np.random.Generator) -> Scene:
    """A real scene that the prompt describes, laid out as the data is."""
    names = [item["label"] for item in prompt["objects"]]
    layout = prompt["relation"] or prompt["kind"]
    while True:
        scene = draw_scene(rng, prompt["width"], prompt["height"], layout)
        if len(scene.objects) == len(names):
            objects = tuple(replace(placement, name=name) for placement, name in zip(scene.objects, names))
            return replace(scene, background=prompt["background"], objects=objects, style=None)


class ObjectsSuite:
    """One evaluation: draw what is missing, judge everything, write results.json and sheets."""

    def __init__(self, recipe: ObjectsRecipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        self.prompts = suite_prompts(recipe)
        self.detector = Detector.load(recipe.detector)
        self.painter: Painter | None = None
        if recipe.sources != ["renders"]:
            self.painter = Painter(recipe)
            self.painter.check_sizes(self.prompts)
        self.hashes = {
            "model": self.painter.sha256 if self.painter else None,
            "detector": detector_sha256(recipe.detector),
            "font": None if recipe.sources == ["model"] else font_sha256(),
        }
        open_output(recipe.output, "objects")

    def run(self) -> dict:
        """Draw, judge and write everything; returns what results.json holds."""
        results = {}
        for source in self.recipe.sources:
            pictures = self.draw(source)
            findings = self.detector.detect(pictures)
            per_prompt = self.recipe.images_per_prompt
            verdicts = [
                [judge(prompt, finding) for finding in findings[i * per_prompt : (i + 1) * per_prompt]]
                for i, prompt in enumerate(self.prompts)
            ]
            results[source] = tables(self.prompts, verdicts)
            self._write_verdicts(source, verdicts)
            self._write_sheets(source, pictures, verdicts)
        report = {**self._about(), "results": results}
        write_results(self.output, report)
        parts = [self.summary(report)]
        for source, found in results.items():
            parts += [f"{source}, by object:", table(HEADER_BY_OBJECT, rows_by_object(found))]
        write_whole(self.output / "results.md", "\n\n".join(parts) + "\n")
        self._write_page(report)
        return report

    def summary(self, report: dict) -> str:
        """One table of every source."""
        return table(HEADER, rows(report["results"]))

    def draw(self, source: str) -> list[Image.Image]:
        """All pictures of a source, drawing those that are not there yet; in the order of the prompts."""
        where, per_prompt = self.output / source, self.recipe.images_per_prompt
        if source == "model":
            folder = self.painter.draw(where, self.prompts, per_prompt, source)
        else:
            protocol = self._protocol(source)
            folder = PictureFolder(where, self.prompts, per_prompt, protocol)
            make: Callable = {"reconstruction": self._reconstruct, "renders": self._render}[source]
            draw_missing(folder, make, protocol, self.recipe.seed, self.recipe.batch_size, source)
        folder.write_grids()
        return [folder.read(*key) for key in folder.all()]

    def _protocol(self, source: str) -> dict:
        """What real scenes and their reconstructions depend on, besides the prompts."""
        protocol: dict = {"source": source, "suite_seed": self.recipe.seed}
        if source == "reconstruction":
            protocol["model_sha256"] = self.painter.sha256
        return {**protocol, "font_sha256": self.hashes["font"]}

    def _render(self, keys: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """Real scenes that the prompts describe."""
        rngs = [np.random.default_rng(picture_seed(self.recipe.seed, *key)) for key in keys]
        return [render(scene_of(self.prompts[prompt], rng))[0] for (prompt, _), rng in zip(keys, rngs)]

    @paddle.no_grad()
    def _reconstruct(self, keys: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """The same real scenes through the model's autoencoder and back."""
        pixels = to_input(np.stack([np.asarray(picture) for picture in self._render(keys)]))  # (N, 3, H, W)
        pipeline = self.painter.pipeline
        decoded = pipeline.decode_latents(pipeline.encode_image(pixels))  # (N, 3, H, W) in [0, 1]
        values = (decoded.numpy().transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        return [Image.fromarray(picture) for picture in values]

    def _write_verdicts(self, source: str, verdicts: Sequence[Sequence[Verdict]]) -> None:
        lines = [
            json.dumps({"prompt": i, "image": j, **asdict(verdict)}, ensure_ascii=False)
            for i, entries in enumerate(verdicts)
            for j, verdict in enumerate(entries)
        ]
        write_whole(self.output / f"verdicts_{source}.jsonl", "".join(line + "\n" for line in lines))

    def _write_sheets(self, source: str, pictures: list[Image.Image], verdicts: Sequence[Sequence[Verdict]]) -> None:
        """A contact sheet per kind, and for the model's pictures of single objects the blind sheets."""
        flat = [verdict for entries in verdicts for verdict in entries]
        per_prompt = self.recipe.images_per_prompt
        for kind in CRITERIA:
            chosen = [i for i, verdict in enumerate(flat) if verdict.kind == kind]
            if chosen:
                parts = [pictures[i] for i in chosen], [flat[i] for i in chosen], [i // per_prompt for i in chosen]
                write_png(contact_sheet(*parts), self.output / f"sheet_{source}_{kind}.png")
        singles = [i for i, prompt in enumerate(self.prompts) if prompt["kind"] == "single"]
        if source == "model" and singles and self.recipe.blind_pictures:
            rng = np.random.default_rng(self.recipe.seed)
            chosen = rng.permutation(singles)[: self.recipe.blind_pictures]
            answers = [
                {"prompt_number": int(i), **{key: self.prompts[i][key] for key in ("prompt", "prompt_en", "objects")}}
                for i in chosen
            ]
            shown = [pictures[i * per_prompt] for i in chosen]
            write_blind_sheets(self.output / "blind", self.output / "blind_key.json", shown, answers, self.recipe.seed)

    def _write_page(self, report: dict) -> None:
        """report.html: the table of every source, then its contact sheets and its objects."""
        page = Report(f"objects: {self.recipe.model}")
        page.table(HEADER, rows(report["results"]))
        for source, found in report["results"].items():
            page.heading(source)
            for kind in found["kinds"]:
                page.paragraph(f"{kind}: green frames where everything is right, numbers are those of the prompts")
                with Image.open(self.output / f"sheet_{source}_{kind}.png") as sheet:
                    page.sheet(sheet)
            page.table(HEADER_BY_OBJECT, rows_by_object(found))
        page.heading("Protocol")
        page.data({key: report[key] for key in ("protocol", "drawn_with", "versions", "hashes") if key in report})
        page.write(self.output / REPORT)

    def _about(self) -> dict:
        """Protocol, versions and hashes: what has to be equal for numbers to be comparable."""
        drawn = {"drawn_with": self.painter.protocol()} if self.painter else {}
        return {**about("objects", self.recipe, self.hashes), **drawn}

