"""The "fid" suite: how near generated pictures are, as a set, to a reference; one row per guidance scale."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from ppvilg.config import ConfigError, bounded, choice
from ppvilg.files import PictureError, file_sha256

from ..drawing.folder import PROTOCOL, read_json
from ..drawing.painter import Painter, scale_name
from ..drawing.prompts import choose_prompts, read_prompts
from ..drawing.sampling import Sampling
from ..metrics.distribution import METRICS, compare, neighbour_distances, squared_distances
from ..metrics.features import (
    CROPS,
    FILTERS,
    NETWORKS,
    Pictures,
    Preparation,
    Statistics,
    build_network,
    extract,
    feature_protocol,
)
from ..reporting.figures import scatter_figure, sweep_figure
from ..reporting.html import Report
from ..reporting.markdown import table, value_text
from ..reporting.protocol import REPORT, about, open_output, write_results

KEPT = "reference.npz"
NUMBERS = ("fid", "kid", "precision", "recall", "density", "coverage")
SHOWN = 48  # pictures of a kind in the report


@dataclass(frozen=True)
class FidRecipe(Sampling):
    """Everything the numbers depend on."""

    suite: str = "fid"
    output: str = MISSING
    # Reference: a folder of pictures, shards, or a statistics file (.npz) with its protocol inside.
    reference: str = MISSING
    reference_count: int | None = bounded(None, least=2)  # None: as many as there are
    # Generated: drawn by a model, or pictures that exist already.
    pictures: str | None = None  # a folder of pictures or shards; then nothing is drawn
    count: int = bounded(5000, least=2)
    prompts: str | None = None  # .txt, .jsonl, COCO .json or samples; None: captions of the reference's samples
    language: str = "zh"  # of the captions of samples
    prompt_seed: int = bounded(0, least=0)
    draw_size: list[int] | None = bounded(None, least=1)  # width, height; None: those of the prompts, else the model's
    guidance_scales: list[Any] | None = bounded(None)  # instead of guidance_scale: several, a row of numbers each
    # Features.
    size: list[int] | None = bounded(None, least=1)  # width, height that pictures are brought to; None: as they are
    resize: str = choice("bicubic", tuple(FILTERS))
    crop: str = choice("centre", CROPS)
    network: str = choice("detector", NETWORKS)
    weights: str | None = None
    mean: list[float] = bounded([0.485, 0.456, 0.406])  # network=paddle only
    std: list[float] = bounded([0.229, 0.224, 0.225], above=0)  # network=paddle only
    feature_batch_size: int = bounded(64, least=1)
    # Numbers.
    metrics: list[str] = choice(list(METRICS), METRICS)
    kid_subsets: int = bounded(100, least=1)
    kid_subset_size: int = bounded(1000, least=2)
    nearest_k: int = bounded(5, least=1)
    groups: int = bounded(20, least=0)  # of the jackknife; 0: no intervals

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"metrics={self.metrics}: needs some of {', '.join(METRICS)}, each once")
        if self.groups == 1:
            raise ConfigError("groups=1: must be 0 (no intervals) or at least 2")
        if "kid" in self.metrics and self.kid_subset_size > self.count:
            raise ConfigError(f"kid_subset_size={self.kid_subset_size} is more than the count={self.count} pictures")
        for name, length in (("draw_size", 2), ("size", 2), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise ConfigError(f"{name}={value}: needs {length} numbers" + (", width and height" * (length == 2)))
        if self.guidance_scales is not None and (self.pictures is not None or not self.guidance_scales):
            raise ConfigError("guidance_scales is a list for a model that draws; leave it out with pictures=")
        if self.guidance_scales is not None and self.guidance_scale is not None:
            raise ConfigError("guidance_scale and guidance_scales are both given; leave one of them out")


class FidSuite:
    """One evaluation: reference statistics, then for each guidance scale pictures, features and numbers."""

    def __init__(self, recipe: FidRecipe):
        self.recipe = recipe
        self.preparation = Preparation(tuple(recipe.size) if recipe.size else None, recipe.resize, recipe.crop)
        self.network = build_network(recipe.network, recipe.weights, recipe.mean, recipe.std)
        self.given = self._open_reference()
        self._check_counts()
        if recipe.pictures is None:
            self.painter = Painter(recipe)
            self.prompts = self._choose_prompts()
            self.painter.check_sizes(self.prompts)
            scales = recipe.guidance_scales or [self.painter.guidance_scale]
            self.painters = [self.painter.at_guidance(scale) for scale in scales]
        else:
            self.painter, self.painters = None, [None]
            self.pictures = Pictures(recipe.pictures, recipe.count)
        self.output = open_output(recipe.output, "fid")
        self.kept = self._open_kept()

    def _open_reference(self) -> Statistics | Pictures:
        """The reference, its number of pictures and its protocol checked before anything is drawn."""
        recipe = self.recipe
        if not recipe.reference.endswith(".npz"):
            return Pictures(recipe.reference, recipe.reference_count)
        statistics = Statistics.load(recipe.reference)
        wanted = feature_protocol(self.preparation, self.network)
        if recipe.reference_count is not None:
            wanted = {"count": recipe.reference_count, **wanted}
        statistics.require(wanted, recipe.reference)
        if statistics.features is None and set(recipe.metrics) != {"fid"}:
            raise ValueError(f"{recipe.reference} holds no features, only mean and covariance: use metrics=[fid]")
        return statistics

    def _check_counts(self) -> None:
        """Numbers that the reference is too small for are refused now, not after everything is drawn."""
        recipe = self.recipe
        count = self.given.moments.count if isinstance(self.given, Statistics) else len(self.given)
        for metric, name in (("kid", "kid_subset_size"), ("prdc", "nearest_k")):
            value = getattr(recipe, name)
            if metric in recipe.metrics and value > count - (name == "nearest_k"):
                raise ValueError(f"{name}={value} is too large for the {count} pictures of {recipe.reference}")

    def _choose_prompts(self) -> list[dict]:
        recipe = self.recipe
        if recipe.prompts is None and recipe.reference.endswith(".npz"):
            raise ValueError("prompts= must be given when the reference is a statistics file")
        prompts = read_prompts(recipe.prompts or recipe.reference, recipe.language)
        prompts = choose_prompts(prompts, recipe.count, recipe.prompt_seed)
        if recipe.draw_size is None:
            return prompts
        width, height = recipe.draw_size
        return [{**prompt, "width": width, "height": height} for prompt in prompts]

    def _open_kept(self) -> Statistics | None:
        """What an earlier run measured on the same reference, or ValueError when it was another one."""
        path = self.output / KEPT
        if isinstance(self.given, Statistics) or not path.is_file():
            return None
        try:
            kept = Statistics.load(path)
        except ValueError as error:
            warnings.warn(f"{error}: the reference is measured again", stacklevel=3)
            return None
        wanted = {**self.given.protocol(), **feature_protocol(self.preparation, self.network)}
        kept.require(wanted, str(path), "; choose another output")
        return kept

    def run(self) -> dict:
        """Draw, measure and write everything; returns what results.json holds."""
        rows, generated = [], None
        reference = self._measure_reference()
        for painter in self.painters:
            scale = None if painter is None else painter.guidance_scale
            pictures, protocol = self._pictures(painter)
            generated, sha256 = self._measure(pictures, f"features, guidance {scale_name(scale)}")
            about_pictures = {**protocol, "pictures_sha256": sha256}
            rows.append({"guidance_scale": scale, "generated": about_pictures, **self._compare(generated, reference)})
        head = about("fid", self.recipe, self._hashes(reference))
        report = {**head, "reference": reference.protocol, "results": rows}
        write_results(self.output, report)
        self._write_page(report, generated, reference, pictures)
        return report

    def _measure_reference(self) -> Statistics:
        """Given, or measured once and kept as reference.npz in the output."""
        if isinstance(self.given, Statistics):
            return self.given
        if self.kept is None:
            arguments = (self.preparation, self.network, self.recipe.feature_batch_size, "reference")
            self.kept = Statistics.of(self.given, *arguments)
            self.kept.save(self.output / KEPT)
        return self.kept

    def _pictures(self, painter: Painter | None) -> tuple[Pictures, dict]:
        """Pictures of one guidance scale, or those that were given, and their protocol as far as it is known."""
        if painter is None:
            path = Path(self.recipe.pictures) / PROTOCOL
            return self.pictures, read_json(path) if path.is_file() else {"source": "pictures"}
        name = scale_name(painter.guidance_scale)
        folder = self.output / "pictures" / f"guidance_{name}"
        painter.draw(folder, self.prompts, description=f"guidance {name}")
        return Pictures(folder, self.recipe.count), painter.protocol()

    def _measure(self, pictures: Pictures, description: str) -> tuple[np.ndarray, str]:
        arguments = (pictures, self.preparation, self.network, self.recipe.feature_batch_size, description)
        try:
            return extract(*arguments)
        except PictureError as error:
            hint = "" if self.painter is None else "; remove it to have it drawn again"
            raise ValueError(f"{error}{hint}") from error

    def _compare(self, generated: np.ndarray, reference: Statistics) -> dict:
        recipe = self.recipe
        features = reference.moments if reference.features is None else reference.features
        settings = (recipe.metrics, recipe.kid_subsets, recipe.kid_subset_size, recipe.nearest_k, recipe.groups)
        return compare(generated, features, *settings)

    def _hashes(self, reference: Statistics) -> dict:
        statistics = file_sha256(self.recipe.reference) if isinstance(self.given, Statistics) else None
        return {
            "model": self.painter.sha256 if self.painter else None,
            "network": self.network.sha256,
            "reference_pictures": reference.protocol.get("pictures_sha256"),
            "reference_file": statistics,
        }

    def summary(self, report: dict) -> str:
        """One row per guidance scale."""
        return table(*table_rows(report["results"]))

    # ---- report.html ----

    def _write_page(self, report: dict, generated: np.ndarray, reference: Statistics, pictures: Pictures) -> None:
        page = Report(f"fid: {self.recipe.pictures or self.recipe.model}")
        page.table(*table_rows(report["results"]))
        page.paragraph(
            f"{self.recipe.count} generated pictures against {reference.protocol['count']}; in brackets 95 % intervals"
            " for other pictures of the same model. FID falls as the number of pictures grows: compare equal ones."
        )
        if len(report["results"]) > 1:
            labels = [scale_name(row["guidance_scale"]) for row in report["results"]]
            page.plot(sweep_figure(report["results"], labels), "Over guidance scales.")
        page.heading("Generated")
        first = range(min(SHOWN, len(pictures)))
        page.pictures([self.preparation(pictures[i]) for i in first], [self._caption(pictures, i) for i in first])
        features = reference.features
        if features is not None:
            page.plot(scatter_figure(features, generated), "First two principal components of the reference.")
            self._write_extremes(page, features, generated, pictures)
        page.heading("Protocol")
        page.data({key: report[key] for key in ("protocol", "reference", "versions", "hashes")})
        page.write(self.output / REPORT)

    def _caption(self, pictures: Pictures, i: int) -> str:
        """The prompt of a generated picture, or its name where the prompt is not known."""
        return pictures.names[i] if self.painter is None else self.prompts[i]["prompt"]

    def _write_extremes(self, page: Report, reference: np.ndarray, generated: np.ndarray, pictures: Pictures) -> None:
        """Generated pictures least like any of the reference, and of the reference those least like any generated."""
        reference, generated = reference.astype(np.float64), generated.astype(np.float64)
        nearest_to_generated, nearest_to_reference = np.full(len(generated), np.inf), np.empty(len(reference))
        for start in range(0, len(reference), 1024):
            distances = squared_distances(reference[start : start + 1024], generated)
            nearest_to_reference[start : start + 1024] = distances.min(axis=1)
            nearest_to_generated = np.minimum(nearest_to_generated, distances.min(axis=0))
        page.heading("Generated, farthest from the reference")
        worst = np.argsort(-nearest_to_generated)[: SHOWN // 2]
        page.pictures([self.preparation(pictures[i]) for i in worst], [self._caption(pictures, i) for i in worst])
        if isinstance(self.given, Pictures):
            radii = neighbour_distances(reference, min(self.recipe.nearest_k, len(reference) - 1))
            missed = np.argsort(-(nearest_to_reference / np.maximum(radii, 1e-12)))[: SHOWN // 2]
            page.heading("Reference, farthest from anything generated")
            page.pictures([self.preparation(self.given[i]) for i in missed], [self.given.names[i] for i in missed])


def table_rows(results: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: one row per guidance scale."""
    names = [name for name in NUMBERS if name in results[0]]
    rows = [[scale_name(row["guidance_scale"]), *(_number(row[name]) for name in names)] for row in results]
    return ["guidance", *names], rows


def _number(entry: dict) -> str:
    """12.34 (12.01 to 12.67); smaller numbers with more digits."""
    size = abs(entry["value"])
    return value_text(entry["value"], entry["interval"], 2 if size >= 10 else 3 if size >= 0.1 else 5)
