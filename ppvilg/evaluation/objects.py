"""The "objects" suite, after GenEval: held-out prompts are drawn, a detector judges, tables say how often all is right.

Three sources of pictures for the same prompts: the model; the autoencoder's reconstructions of real renders, which is
the most the model could reach; and the renders themselves, which is the most the judge could see.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from omegaconf import MISSING
from PIL import Image
from tqdm import tqdm

from ppvilg import __version__
from ppvilg.data.captions import held_out_prompts
from ppvilg.data.objects import font_sha256
from ppvilg.data.render import render
from ppvilg.data.scenes import Scene, draw_scene
from ppvilg.pipelines import ErnieViLG2Pipeline, build_scheduler, resolve

from .detector import Detector, detector_sha256, to_input
from .judging import CRITERIA, Verdict, judge, markdown, markdown_by_object, tables
from .layout import PictureFolder, write_whole
from .sheets import contact_sheet, write_blind_sheets

MODEL_FILES = (".json", ".txt", ".safetensors", ".pdparams", ".model")
SOURCES = ("model", "reconstruction", "renders")


@dataclass
class ObjectsRecipe:
    """Everything an evaluation depends on."""

    suite: str = "objects"
    output: str = MISSING
    model: str = "emoji64"  # pipeline folder or zoo name
    detector: str | None = None  # folder; None: the detector that comes with the package
    sources: list[str] = field(default_factory=lambda: list(SOURCES))
    prompts: dict[str, int] = field(default_factory=lambda: {"single": 120, "pair": 100, "count": 100})
    prompt_seed: int = 0
    images_per_prompt: int = 1
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: Any = 3.0  # one number, or one per expert
    scheduler: str | None = None  # None: the model's own
    batch_size: int = 16
    bootstrap_resamples: int = 2000
    blind_pictures: int = 60

    def __post_init__(self) -> None:
        unknown = [source for source in self.sources if source not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"sources={list(self.sources)}: use some of {', '.join(SOURCES)}")
        unknown = [kind for kind in self.prompts if kind not in CRITERIA]
        if unknown or not any(self.prompts.values()) or min(self.prompts.values()) < 0:
            raise ValueError(f"prompts={dict(self.prompts)}: use how many of {', '.join(CRITERIA)}")
        for name in ("images_per_prompt", "num_inference_steps", "batch_size", "bootstrap_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.blind_pictures < 0:
            raise ValueError(f"blind_pictures={self.blind_pictures} must not be negative")


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


def picture_seed(seed: int, prompt: int, image: int) -> int:
    """The seed of one picture, whatever else is drawn with it."""
    return int(np.random.SeedSequence([seed, prompt, image]).generate_state(1)[0])


class ObjectsSuite:
    """One evaluation: draw what is missing, judge everything, write results.json and sheets."""

    def __init__(self, recipe: ObjectsRecipe):
        self.recipe, self.output = recipe, Path(recipe.output)
        self.prompts = suite_prompts(recipe)
        self.detector = Detector.load(recipe.detector)
        self.model_folder = None if recipe.sources == ["renders"] else resolve(recipe.model)
        self.model_sha256 = None if self.model_folder is None else folder_sha256(self.model_folder)
        self._pipeline: ErnieViLG2Pipeline | None = None

    @property
    def pipeline(self) -> ErnieViLG2Pipeline:
        """The model, loaded when the first picture needs it."""
        if self._pipeline is None:
            self._pipeline = ErnieViLG2Pipeline.from_pretrained(self.model_folder)
            if self.recipe.scheduler:
                config = self._pipeline.scheduler.config
                self._pipeline.scheduler = build_scheduler(self.recipe.scheduler, config)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

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
            results[source] = tables(self.prompts, verdicts, self.recipe.bootstrap_resamples)
            self._write_verdicts(source, verdicts)
            self._write_sheets(source, pictures, verdicts)
        report = {**self._about(), "results": results}
        write_whole(self.output / "results.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        text = markdown(results) + "".join(
            f"\n\n{source}, by object:\n\n{markdown_by_object(table)}" for source, table in results.items()
        )
        write_whole(self.output / "results.md", text + "\n")
        return report

    def summary(self, report: dict) -> str:
        """One table of every source."""
        return markdown(report["results"])

    def draw(self, source: str) -> list[Image.Image]:
        """All pictures of a source, drawing those that are not there yet; in the order of the prompts."""
        protocol = self._protocol(source)
        folder = PictureFolder(self.output / source, self.prompts, self.recipe.images_per_prompt, protocol)
        make: Callable = {"model": self._generate, "reconstruction": self._reconstruct, "renders": self._render}[source]
        shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for key in folder.missing():
            shapes.setdefault((self.prompts[key[0]]["width"], self.prompts[key[0]]["height"]), []).append(key)
        with tqdm(total=sum(map(len, shapes.values())), desc=source, unit="picture") as progress:
            for keys in shapes.values():
                for start in range(0, len(keys), self.recipe.batch_size):
                    batch = keys[start : start + self.recipe.batch_size]
                    for key, picture in zip(batch, make(batch)):
                        about = {"seed": picture_seed(self.recipe.seed, *key), **protocol}
                        folder.write(*key, picture, about)
                    progress.update(len(batch))
        folder.write_grids()
        return [folder.read(*key) for key in folder.all()]

    def _protocol(self, source: str) -> dict:
        """What the pictures of a source depend on, besides the prompts."""
        recipe = self.recipe
        protocol: dict = {"source": source, "suite_seed": recipe.seed}
        if source != "renders":
            protocol["model_sha256"] = self.model_sha256
        if source == "model":
            names = ("num_inference_steps", "guidance_scale", "scheduler")
            return {**protocol, **{name: getattr(recipe, name) for name in names}}
        return {**protocol, "font_sha256": font_sha256()}

    def _generate(self, keys: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """Pictures of one shape drawn by the model."""
        prompts = [self.prompts[prompt] for prompt, _ in keys]
        return self.pipeline(
            [prompt["prompt"] for prompt in prompts],
            width=prompts[0]["width"],
            height=prompts[0]["height"],
            num_inference_steps=self.recipe.num_inference_steps,
            guidance_scale=self.recipe.guidance_scale,
            generator=[picture_seed(self.recipe.seed, *key) for key in keys],
        ).images

    def _render(self, keys: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """Real scenes that the prompts describe."""
        rngs = [np.random.default_rng(picture_seed(self.recipe.seed, *key)) for key in keys]
        return [render(scene_of(self.prompts[prompt], rng))[0] for (prompt, _), rng in zip(keys, rngs)]

    @paddle.no_grad()
    def _reconstruct(self, keys: Sequence[tuple[int, int]]) -> list[Image.Image]:
        """The same real scenes through the model's autoencoder and back."""
        pixels = to_input(np.stack([np.asarray(picture) for picture in self._render(keys)]))  # (N, 3, H, W)
        decoded = self.pipeline.decode_latents(self.pipeline.encode_image(pixels))  # (N, 3, H, W) in [0, 1]
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
                contact_sheet(*parts).save(self.output / f"sheet_{source}_{kind}.png")
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

    def _about(self) -> dict:
        """Protocol, versions and hashes: what has to be equal for numbers to be comparable."""
        packages = ("paddlepaddle", "paddlenlp", "ppdiffusers", "numpy", "Pillow")
        return {
            "suite": "objects",
            "protocol": asdict(self.recipe),
            "versions": {"ppvilg": __version__, "python": platform.python_version(), **installed(packages)},
            "hashes": {
                "model": self.model_sha256,
                "detector": detector_sha256(self.recipe.detector),
                "font": font_sha256(),
            },
        }


def installed(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of the packages that are installed under these names."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def folder_sha256(folder: Path) -> str:
    """One hash over the names and contents of a model's files, without what only people read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()
