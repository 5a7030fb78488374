"""Tables and the bar chart of the paper's figure (user preference rates with 95 % intervals)."""

from __future__ import annotations

import warnings
from pathlib import Path

from ppvilg.files import write_whole

from ..reporting.figures import class_figure, overall_figure, svg
from ..reporting.html import Report
from ..reporting.markdown import table, value_text
from ..reporting.protocol import REPORT
from .votes import CRITERIA

CAPTION = (
    "Share of votes in percent; bars of error are 95 % intervals over prompts (votes of one prompt count as one unit)."
)


def percent(value: dict) -> str:
    """`61.2 (55.0 to 67.1)`."""
    return value_text(value["mean"], value["interval"], 1, 100)


def rows(report: dict, criterion: str) -> list[list]:
    """Lines of the table of a criterion: all pairs first, then each class."""
    entry = report["results"]["criteria"][criterion]
    named = [("all", entry["all"]), *entry["classes"].items()]
    return [
        [name, rate["pairs"], rate["votes"], *(percent(rate[key]) for key in ("first", "tie", "second", "score"))]
        for name, rate in named
    ]


def header(report: dict) -> list[str]:
    """Names of the columns of `rows`."""
    first, second = report["names"]["first"], report["names"]["second"]
    return ["class", "pairs", "votes", f"{first}, %", "tie, %", f"{second}, %", f"{first} with half the ties, %"]


def markdown(report: dict) -> str:
    """One table per criterion with 95 % intervals, and the voters' agreement."""
    parts = []
    for criterion in CRITERIA:
        parts += [criterion, table(header(report), rows(report, criterion)), agreement(report, criterion)]
    return "\n\n".join(parts)


def agreement(report: dict, criterion: str) -> str:
    """Sentence about how far voters agree."""
    found = report["results"]["criteria"][criterion]["agreement"]
    if not found["pairs_with_several_votes"]:
        return "No pair was judged by two voters: nothing is known of their agreement."
    alpha = found["krippendorff_alpha"]
    beyond = "cannot be told (all answers are the same)" if alpha is None else f"{alpha:.3f}"
    return (
        f"Agreement over {found['pairs_with_several_votes']} pairs with several votes: the same answer in "
        f"{100 * found['same_answer']:.1f} %, Krippendorff's alpha {beyond}."
    )


def write_report(output: Path, report: dict) -> None:
    """report.html, and with votes preference.svg and preference.md."""
    page = Report(f"Side by side: {report['names']['first']} and {report['names']['second']}")
    if report["results"] is None:
        page.paragraph(f"{report['pairs']} pairs are ready to be judged; there are no votes yet.")
    else:
        with warnings.catch_warnings():  # the reader's browser has the Chinese letters that matplotlib may lack
            warnings.filterwarnings("ignore", message="Glyph")
            _fill(page, output, report)
    page.heading("Protocol")
    page.data({key: report[key] for key in ("study", "pairs", "protocol", "versions", "hashes")})
    page.write(output / REPORT)


def _fill(page: Report, output: Path, report: dict) -> None:
    figure = overall_figure(report)
    page.plot(figure, CAPTION)
    write_whole(output / "preference.svg", svg(figure))
    write_whole(output / "preference.md", markdown(report) + "\n")
    for criterion in CRITERIA:
        page.heading(criterion.capitalize())
        page.table(header(report), rows(report, criterion))
        page.paragraph(agreement(report, criterion))
    if report["results"]["criteria"][CRITERIA[0]]["classes"]:
        page.heading("Classes")
        page.plot(class_figure(report), "Right of the dashed line the first model is preferred.")
    page.heading("Voters")
    names = ["voter", "votes", *(f"{name} score, %" for name in CRITERIA), "left chosen, %", "ties, %", "seconds"]
    page.table(names, [_voter(name, entry) for name, entry in report["results"]["voters"].items()])


def _voter(name: str, entry: dict) -> list:
    scores = [round(100 * entry["score"][each], 1) if each in entry["score"] else None for each in CRITERIA]
    left = None if entry["left_share"] is None else round(100 * entry["left_share"], 1)
    return [name, entry["votes"], *scores, left, round(100 * entry["tie_share"], 1), round(entry["median_seconds"], 1)]
