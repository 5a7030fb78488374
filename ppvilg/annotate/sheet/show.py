"""Draws samples of annotated data and writes them as one HTML page, and to VisualDL."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.data import BadSample, ImageTransform, open_source
from ppvilg.files import write_whole
from ppvilg.knowledge import VisualKnowledge, open_names

from ..report import AnnotationReport, report_on
from ..sidecar import read_lines_of
from ..units import Unit
from .card import Card, card_of, completed
from .drawing import side_by_side
from .page import Left, page

FOLDER = "sheet"  # in the folder of the sidecars
_COUNTED = 2000  # samples that shares on the page are counted over
_MOST_LEFT_OUT = 24  # pictures of samples that are left out
_MOST_BAD = 50  # sentences about what cannot be used


@dataclass(frozen=True)
class Settings:
    """What training will do, as its recipe says.

    factor: pixels of a latent cell's side. key_token_weight: w_a. replacement: probability of the generated caption.
    """

    knowledge: VisualKnowledge = field(default_factory=lambda: VisualKnowledge(names=open_names()))
    transform: ImageTransform = field(default_factory=lambda: ImageTransform([(256, 256)]))
    factor: int = 8
    key_token_weight: float = 0.01
    replacement: float = 0.1


def show(data: str | os.PathLike, units: Sequence[Unit], count: int, settings: Settings, seed: int = 0) -> Path:
    """Write the sheet of `count` samples, drawn by `seed`, beside the sidecars of `units`; gives the page's path.

    ValueError: no sidecar is there, or none of the samples can be used.
    """
    done = [unit for unit in units if unit.output.exists()]
    if not done:
        raise ValueError(f"no sidecar is in {units[0].output.parent}: annotate first, then look at it")
    folder = units[0].output.parent
    sidecars = done[0].output if done[0].is_folder else folder
    source = open_source(data, sidecars, index=folder / ".ppvilg")
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(source))
    cards, bad = _cards(source, order, count, settings)
    bad = [*itertools.islice(source.index.problems(), _MOST_BAD), *bad]
    if not cards:
        raise ValueError(f"none of {len(source)} samples of {data} can be used, the first: {bad[0]}")
    report = report_on(done)
    facts = _facts(source, order[:_COUNTED], report, settings)
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    path = place / "index.html"
    write_whole(path, page(str(data), cards, bad, _left_out(done, draw), report, facts, settings))
    _write_visualdl(place / "visualdl", cards)
    return path


def _cards(source, order: np.ndarray, count: int, settings: Settings) -> tuple[list[Card], list[BadSample]]:
    """Cards of the first `count` samples that can be used, and those met on the way that cannot."""
    cards, bad = [], []
    for index in tqdm(order, desc="drawing samples", unit="sample", delay=2, total=min(count, len(order))):
        if len(cards) == count:
            break
        try:
            cards.append(card_of(source.read(int(index)), settings))
        except BadSample as problem:
            bad.append(problem)
    return cards, bad


@dataclass(frozen=True)
class Facts:
    """Shares over `counted` samples, and labels without a name."""

    counted: int
    completed: int
    with_key_objects: int
    weighted_share: float
    appended: Counter
    unknown: list[str]


def _facts(source, order: np.ndarray, report: AnnotationReport, settings: Settings) -> Facts:
    appended, changed, keyed, weighted = Counter(), 0, 0, []
    counted = 0
    for index in order:
        with contextlib.suppress(BadSample):
            record = source.read_text(int(index))
            text, names = completed(record, settings.knowledge)
            objects = settings.knowledge.key_objects(record.objects, text)
            appended.update(names)
            changed += bool(names)
            keyed += bool(objects)
            width, height = (int(side) for side in source.sizes[int(index)])
            cells = settings.knowledge.weight_map(record.objects, text, (width, height), (32, 32))
            weighted.append(float((cells > 1).mean()))
            counted += 1
    return Facts(counted, changed, keyed, float(np.mean(weighted)) if weighted else 0.0, appended,
                 settings.knowledge.names.unknown(list(report.labels)))  # fmt: skip


def _left_out(units: Sequence[Unit], draw: np.random.Generator) -> list[Left]:
    """Some of the samples that are left out, with their pictures where these can be read."""
    rejected = [(number, line["key"], line["rejected"]) for number, unit in enumerate(units)
                for line in read_lines_of(unit.output) if "rejected" in line]  # fmt: skip
    chosen = sorted(draw.permutation(len(rejected))[:_MOST_LEFT_OUT].tolist())
    found, listed = [], {}
    for place in chosen:
        number, key, why = rejected[place]
        if number not in listed:
            listed = {number: {each.key: each for each in units[number].list().samples}}  # of one shard at a time
        picture = None
        if (sample := listed[number].get(key)) is not None:
            with contextlib.suppress(BadSample, OSError), open(sample.path, "rb") as file:
                picture = sample.read(file)
        found.append(Left(key, why["stage"], why["reason"], picture))
    return found


def _write_visualdl(folder: Path, cards: Sequence[Card]) -> None:
    """One picture and one text a sample; what an earlier sheet wrote is replaced, for VisualDL only adds."""
    from visualdl import LogWriter

    for old in folder.glob("vdlrecords.*.log"):
        old.unlink()
    with contextlib.redirect_stdout(io.StringIO()):
        writer = LogWriter(logdir=str(folder), file_name="vdlrecords.sheet.log")
    for step, card in enumerate(cards):
        writer.add_image("samples", np.asarray(side_by_side(card.panels)), step)
        writer.add_text("captions", "\n".join(f"{row.title}: {row.text}" for row in card.rows), step)
    writer.close()
