"""One sample as training will see it: its boxes and weights, its captions before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ppvilg.data import Record
from ppvilg.knowledge import VisualKnowledge, strip_marks, tag
from ppvilg.knowledge.tagging import marked_words

from .drawing import Box, draw_boxes, draw_weights

if TYPE_CHECKING:
    from .show import Settings

NAMED, APPENDED, DOUBTFUL, NAMELESS = "named", "appended", "doubtful", "nameless"


@dataclass(frozen=True)
class Row:
    """A caption: words as (mark or "", word); those from number `given` on were appended."""

    title: str
    words: list[tuple[str, str]]
    given: int

    @property
    def text(self) -> str:
        """With marks, as the text encoder gets it."""
        return "".join(mark + word for mark, word in self.words)


@dataclass(frozen=True)
class Thing:
    """A detected object with the number it has in the picture, and what becomes of it."""

    number: int
    label: str
    name: str
    score: float
    box: tuple[float, float, float, float]
    fate: str
    is_cut_off: bool  # for the most part outside of the crop


@dataclass(frozen=True)
class Card:
    """What the sheet shows of one sample."""

    key: str
    source: str
    size: tuple[int, int]
    shape: tuple[int, int]
    panels: list[Image.Image]
    rows: list[Row]
    things: list[Thing]
    weights: np.ndarray  # (h, w)
    remarks: list[str]


def completed(record: Record, knowledge: VisualKnowledge, replaced: bool = False) -> tuple[str, list[str]]:
    """(caption with the names of missing objects, those names); of the generated caption where `replaced`."""
    always = replace(knowledge, completion_probability=1.0, replacement_probability=float(replaced))
    plain = replace(always, completion=False)
    before, _ = plain.choose_caption(record.captions, record.objects, None, marks=False)
    after, _ = always.choose_caption(record.captions, record.objects, None, marks=False)
    if before == after:
        return after, []
    return after, always.missing_names(before, record.objects)


def card_of(record: Record, settings: Settings) -> Card:
    """Look at a record; BadSample when its boxes are wrong."""
    knowledge, transform = settings.knowledge, settings.transform.deterministic()
    width, height = record.image.size
    bucket = transform.bucket_of(width, height)
    pixels, objects = transform(record.image, record.objects, bucket, np.random.default_rng(0))
    text, _ = completed(record, knowledge)
    shape = transform.shapes[bucket]
    latent = (shape[1] // settings.factor, shape[0] // settings.factor)
    weights = knowledge.weight_map(objects, text, shape, latent)[0]  # (h, w)
    placement = transform.plan(width, height, bucket, np.random.default_rng(0))
    cut_off = {id(item) for item in record.objects if not placement.objects([item], transform.min_visible)}
    things = _things(record, knowledge, cut_off)
    boxes = [Box(thing.number, f"{thing.name} {thing.score:.2f}", thing.box, thing.fate in (NAMED, APPENDED))
             for thing in things]  # fmt: skip
    panels = [draw_boxes(record.image, boxes), draw_weights(Image.fromarray(pixels), weights)]
    return Card(record.key, record.source, (width, height), shape, panels, _rows(record, knowledge), things, weights,
                _remarks(record, len(cut_off)))  # fmt: skip


def _things(record: Record, knowledge: VisualKnowledge, cut_off: set[int]) -> list[Thing]:
    caption, _ = replace(knowledge, completion=False, replacement_probability=0.0).choose_caption(
        record.captions, record.objects, None
    )
    named = {id(item) for item in knowledge.key_objects(record.objects, caption)}
    keyed = {id(item) for item in knowledge.key_objects(record.objects, completed(record, knowledge)[0])}
    things = []
    for number, item in enumerate(sorted(record.objects, key=lambda item: -item.score), start=1):
        fate = NAMELESS
        if item.score < knowledge.min_score:
            fate = DOUBTFUL
        elif id(item) in named:
            fate = NAMED
        elif id(item) in keyed:
            fate = APPENDED
        name = knowledge.names.name_of(item.label) or item.label
        things.append(Thing(number, item.label, name, item.score, item.box, fate, id(item) in cut_off))
    return things


def _rows(record: Record, knowledge: VisualKnowledge) -> list[Row]:
    """The caption as it is, as it is completed, and the one that may replace it."""
    own = {kind: text for kind, text in record.captions.items() if kind != "generated"}
    rows = [_row(f"caption ({kind})", text) for kind, text in own.items()]
    if own:
        text, names = completed(record, knowledge)
        first = replace(knowledge, completion=False, replacement_probability=0.0).choose_caption(own, [], None)[0]
        rows.append(_row("completed", text, first if names else None))
    if "generated" in record.captions:
        text, names = completed(record, knowledge, replaced=True)
        rows.append(_row("generated", text, record.captions["generated"] if names else None))
    return rows


def _row(title: str, text: str, before: str | None = None) -> Row:
    """Words with marks; of a completed text those of the caption `before` first."""
    if before is None:
        words = list(marked_words(tag(strip_marks(text))))
        return Row(title, words, len(words))
    kept = before.rstrip("。.，,；;、 ")
    words = list(marked_words(tag(kept)))
    return Row(title, words + list(marked_words(tag(text[len(kept) :]))), len(words))


def _remarks(record: Record, lost: int) -> list[str]:
    remarks = []
    if not record.objects:
        remarks.append("nothing was detected: every cell of the loss weighs the same")
    if lost:
        remarks.append(f"{lost} of {len(record.objects)} boxes lie outside of the crop for the most part: dropped")
    if set(record.captions) == {"generated"}:
        remarks.append("there is no caption but the generated one")
    return remarks
