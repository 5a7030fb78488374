"""The sheet as one HTML file with everything inside it, readable without a network."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ppvilg.data import BadSample
from ppvilg.knowledge import MARKS

from ..report import AnnotationReport
from .card import APPENDED, DOUBTFUL, NAMED, NAMELESS, Card, Row, Thing
from .drawing import Box, colour_of

if TYPE_CHECKING:
    from .show import Facts, Settings

_THUMBNAIL = (160, 120)
_MOST_LISTED = 30  # of labels in a table
_KINDS = {"n": "noun", "a": "adjective", "v": "verb", "m": "numeral", "f": "direction"}
_FATES = {
    NAMED: "named by the caption: heavier loss",
    APPENDED: "appended to the caption: heavier loss",
    DOUBTFUL: "under knowledge.vision.min_score: not used",
    NAMELESS: "without a name in the caption's language: not used",
}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; max-width: 96rem; color: #1a1a1a;
       margin: 1.5rem auto; padding: 0 1rem; background: #f4f4f2; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .1rem .6rem .1rem 0; text-align: left;
        vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 3rem; }
.legend span.word, .row span.word { white-space: nowrap; }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; margin: .8rem 0; display: flex;
          flex-wrap: wrap; gap: 1rem; }
article img { display: block; } .panels { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; }
figure { margin: 0; } figcaption { font-size: .75rem; color: #666; }
.text { flex: 1 1 24rem; min-width: 18rem; }
.key { font-size: .8rem; color: #666; overflow-wrap: anywhere; margin-bottom: .4rem; }
.row { margin: .35rem 0; } .row b { display: inline-block; font-size: .75rem; color: #555; min-width: 6.5rem; }
.row.same { color: #888; }
.word { border-bottom: 3px solid transparent; } .word sub { font-size: .65rem; color: #555; }
.n { border-color: #4363d8; } .a { border-color: #e6194b; } .v { border-color: #3cb44b; } .m { border-color: #911eb4; }
.f { border-color: #f58231; } .new { background: #fff0b3; } .chip { display: inline-block; color: #fff; padding: 0 .4em;
        border-radius: 3px; font-size: .75rem; min-width: 1.2em; text-align: center; }
.remark { color: #a04000; font-size: .85rem; } .unknown { color: #a04000; }
.left { display: flex; flex-wrap: wrap; gap: .8rem; } .left figure { width: 160px; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Left:
    """A sample that is left out; `picture` is None where it cannot be read."""

    key: str
    stage: str
    reason: str
    picture: Image.Image | None


def page(title: str, cards: Sequence[Card], bad: Sequence[BadSample], left: Sequence[Left], report: AnnotationReport,
         facts: Facts, settings: Settings) -> str:
    """The whole file."""
    parts = [_head(title, report, facts, settings), f"<h2>{len(cards)} samples</h2>", _legend(settings)]
    parts += [_card(card, settings) for card in cards]
    if bad:
        parts.append(f"<h2>Cannot be used</h2><ul>{''.join(f'<li>{_text(problem)}</li>' for problem in bad)}</ul>")
    if left:
        parts.append(f"<h2>Left out: {len(left)} of {report.left_out.total()}</h2>"
                     f'<div class="left">{"".join(map(_left, left))}</div>')  # fmt: skip
    return (f'<!DOCTYPE html>\n<html lang="zh"><head><meta charset="utf-8"><title>{_text(title)}</title>'
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n")  # fmt: skip


def _head(title: str, report: AnnotationReport, facts: Facts, settings: Settings) -> str:
    knowledge, samples = settings.knowledge, report.kept + report.left_out.total()
    of = f"of {facts.counted} samples"
    rows = [
        ("samples in the sidecars", samples), ("kept", report.kept), ("left out", report.left_out.total()),
        ("other problems of the data", report.problems.total()), ("kept without any object", report.without_objects),
        ("kept with a generated caption", report.captioned),
        (f"completed, {of}", _share(facts.completed, facts.counted)),
        (f"with an object that weighs more, {of}", _share(facts.with_key_objects, facts.counted)),
        (f"of the picture that weighs more, {of}", f"{facts.weighted_share:.1%}"),
    ]  # fmt: skip
    recipe = [
        ("knowledge.vision.min_score", f"{knowledge.min_score:g}"),
        ("loss.object_weight", f"{knowledge.object_weight:g}"),
        ("completion", f"on, {knowledge.completion_probability:g} of samples" if knowledge.completion else "off"),
        ("replacement.probability", f"{settings.replacement:g}"),
        ("text.key_token_weight", f"{settings.key_token_weight:g}"),
        ("data.shapes", " ".join(f"{width}x{height}" for width, height in settings.transform.shapes)),
        ("pixels of a latent cell's side", settings.factor),
    ]  # fmt: skip
    tables = [_table("", rows), _table("as the recipe says", recipe)]
    if report.left_out:
        counts = Counter({f"{stage}: {reason}": count for (stage, reason), count in report.left_out.items()})
        tables.append(_table("left out", _most(counts)))
    tables += [_table("labels found", _most(report.labels)), _table(f"appended, {of}", _most(facts.appended))]
    unknown = ""
    if facts.unknown:
        labels = _text(", ".join(facts.unknown))
        unknown = (f'<p class="unknown">Without an entry in the tables of names: {labels}. Captions are completed with '
                   "these labels as they are, and only these count as mentions; a table of your own "
                   "(knowledge.vision.names) gives them names and kinds.</p>")  # fmt: skip
    return f'<h1>{_text(title)}</h1>\n{unknown}<div class="facts">{"".join(tables)}</div>'


def _legend(settings: Settings) -> str:
    words = " ".join(f'<span class="word {kind}">{name}<sub>[{kind}]</sub></span>' for kind, name in _KINDS.items())
    weight = f"{1 + settings.key_token_weight:g}"
    return (
        f'<p class="legend">Words with a mark are key words, which attention weighs {weight} where marks apply: '
        f'{words}. <span class="new">Appended</span> by completion. On the right what training sees, on the grid '
        "of latent cells: bright cells weigh more in the loss.</p>"
    )


def _card(card: Card, settings: Settings) -> str:
    notes = [f"{card.size[0]}x{card.size[1]}, boxes",
             f"{card.shape[0]}x{card.shape[1]}, {card.weights.shape[1]}x{card.weights.shape[0]} cells, "
             f"{(card.weights > 1).mean():.0%} weigh {card.weights.max():g}"]  # fmt: skip
    panels = "".join(
        f'<figure><img src="{_data_uri(panel)}" alt=""><figcaption>{note}</figcaption></figure>'
        for panel, note in zip(card.panels, notes)
    )
    rows = "".join(_row(row, card.rows[0], settings) for row in card.rows)
    things = "".join(map(_thing, card.things))
    remarks = "".join(f'<div class="remark">{_text(remark)}</div>' for remark in card.remarks)
    return (f'<article><div class="panels">{panels}</div><div class="text"><div class="key">{_text(card.key)} · '
            f"{_text(card.source)}</div>{rows}<table>{things}</table>{remarks}</div></article>")  # fmt: skip


def _row(row: Row, first: Row, settings: Settings) -> str:
    title = row.title + (f", {settings.replacement:.0%}" if row.title == "generated" else "")
    if row is not first and row.title == "completed" and row.words == first.words:
        return f'<div class="row same"><b>{title}</b> nothing to append</div>'
    words = "".join(_word(mark, word, number >= row.given) for number, (mark, word) in enumerate(row.words))
    return f'<div class="row"><b>{_text(title)}</b> {words}</div>'


def _word(mark: str, word: str, is_new: bool) -> str:
    kind = next((kind for kind, sign in MARKS.items() if sign == mark), "")
    classes = f"word {kind}{' new' if is_new else ''}"
    return f'<span class="{classes}">{_text(word)}{f"<sub>{mark}</sub>" if kind else ""}</span>'


def _thing(thing: Thing) -> str:
    sure = thing.fate in (NAMED, APPENDED)
    colour = colour_of(Box(thing.number, "", thing.box, sure))
    label = "" if thing.label == thing.name else f" ({_text(thing.label)})"
    box = ", ".join(f"{value:.0f}" for value in thing.box)
    fate = _FATES[thing.fate] + (", but outside of the crop" if sure and thing.is_cut_off else "")
    return (f'<tr><td><span class="chip" style="background:{colour}">{thing.number}</span></td>'
            f'<td>{_text(thing.name)}{label}</td><td class="number">{thing.score:.2f}</td><td>{box}</td>'
            f"<td>{fate}</td></tr>")  # fmt: skip


def _left(left: Left) -> str:
    picture = ""
    if left.picture is not None:
        thumbnail = ImageOps.contain(left.picture, _THUMBNAIL)
        picture = f'<img src="{_data_uri(thumbnail)}" alt="">'
    return f"<figure>{picture}<figcaption>{_text(left.key)}<br><b>{_text(left.stage)}</b>: {_text(left.reason)}" \
           "</figcaption></figure>"  # fmt: skip


def _table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    body = "".join(f'<tr><td>{_text(name)}</td><td class="number">{_text(value)}</td></tr>' for name, value in rows)
    head = f'<tr><th colspan="2">{_text(title)}</th></tr>' if title else ""
    return f"<div><table>{head}{body}</table></div>" if body else ""


def _most(counts: Counter) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = list(counts.most_common(_MOST_LISTED))
    if len(counts) > _MOST_LISTED:
        rows.append((f"{len(counts) - _MOST_LISTED} others", counts.total() - sum(count for _, count in rows)))
    return rows


def _share(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})" if of else "0"


def _text(value: object) -> str:
    return html.escape(str(value))


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
