"""FID-against-alignment curves over guidance scales, as the paper draws them, and the tables below."""

from __future__ import annotations

from pathlib import Path

from ppvilg.files import write_whole

from ..reporting.figures import curves, svg
from ..reporting.html import Report
from ..reporting.markdown import table, value_text
from ..reporting.protocol import REPORT
from .loss import block_edges

NAMES = {"none": "no knowledge", "text": "text", "vision": "vision", "both": "text and vision"}
ALIGNMENT = {"all": "prompts with everything right, %", "criteria": "demands of the prompts met, %"}


def label(family: str, entry: dict) -> str:
    """Name of an arm within its family."""
    if family == "knowledge":
        return NAMES[entry["knowledge"]]
    return "1 expert" if entry["experts"] == 1 else f"{entry['experts']} experts"


def value(entry: dict, digits: int = 2) -> str:
    """`3.10 (2.95 to 3.25)`; without an interval where there was one seed."""
    return value_text(entry["mean"], entry["interval"], digits)


def header(report: dict) -> list[str]:
    """Names of the columns of `rows`."""
    alignment = ALIGNMENT[report["protocol"]["alignment"]]
    columns = ["FID", alignment, "everything right, %"]
    return ["arm", *columns, *(f"{column}, difference to the first" for column in columns)]


def rows(report: dict, family: str) -> list[list[str]]:
    """One line per arm: means over seeds and guidance scales, and paired differences, with 95 % intervals.

    Of FID and alignment over seeds, of the prompts with everything right over prompts.
    """
    alignment, lines = report["protocol"]["alignment"], []
    for i, entry in enumerate(report["results"][family]):
        level, change = entry["mean_over_scales"], entry["difference_to_first"]
        levels = [value(level["fid"]), value(level[alignment]), value(entry["right"], 1)]
        differences = [value(change["fid"]), value(change[alignment]), value(entry["right_difference_to_first"], 1)]
        lines.append([label(family, entry), *levels, *(differences if i else [""] * 3)])
    return lines


def loss_header(report: dict) -> list[str]:
    """Names of the columns of `loss_rows`: blocks from low to high noise."""
    edges = block_edges(report["num_train_timesteps"], report["protocol"]["loss_blocks"])
    blocks = [f"t = {low} to {high - 1}" for low, high in zip(edges, edges[1:])]
    return ["arm", *blocks, "mean", "mean, change to the first, %"]


def loss_rows(report: dict, family: str) -> list[list[str]]:
    """The base, then one line per arm: loss per block over seeds, and its change to the first arm's in percent."""
    before = report["losses_of_base"]
    lines = [["the base itself", *(f"{loss:.4f}" for loss in (*before, sum(before) / len(before))), ""]]
    for i, entry in enumerate(report["losses"][family]):
        pairs = list(zip(entry["loss"], entry["percent_change_to_first"]))
        cells = [f"{loss['mean']:.4f}" + (f", {change['mean']:+.1f} %" if i else "") for loss, change in pairs[:-1]]
        loss, change = pairs[-1]
        lines.append([label(family, entry), *cells, f"{loss['mean']:.4f}", value(change, 1) if i else ""])
    return lines


def markdown(report: dict) -> str:
    """Both tables of both families."""
    parts = []
    for family in report["results"]:
        parts += [family, table(header(report), rows(report, family))]
        parts += [f"{family}: denoising loss", table(loss_header(report), loss_rows(report, family))]
    return "\n\n".join(parts)


def write_report(output: Path, report: dict) -> None:
    """curves.svg, ablation.md and report.html."""
    alignment = report["protocol"]["alignment"]
    families = {
        family: {label(family, entry): entry["curve"] for entry in entries}
        for family, entries in report["results"].items()
    }
    figure = curves(families, alignment, ALIGNMENT[alignment])
    write_whole(output / "curves.svg", svg(figure))
    write_whole(output / "ablation.md", markdown(report) + "\n")
    page = Report("Ablation: knowledge and experts at equal training compute")
    seeds, steps = len(report["protocol"]["seeds"]), report["steps_per_arm"]
    page.paragraph(
        f"Every arm continues one base for {steps} steps of one batch size; number of seeds: {seeds}. Lower and "
        "further right is better. Numbers beside the points of the first arm are guidance scales; small points are "
        "single seeds."
    )
    page.plot(figure)
    page.paragraph(
        "Means over guidance scales and seeds; 95 % intervals by Student's t over seeds. Differences are paired by "
        "seed: arms of one seed saw the same samples and draw from the same noise. Intervals of the prompts with "
        "everything right are intervals over prompts: how far other prompts would have changed them."
    )
    for family in report["results"]:
        page.heading(family.capitalize())
        page.table(header(report), rows(report, family))
        page.paragraph(
            f"Denoising loss on {report['protocol']['loss_scenes']} real scenes of these prompts, none of them in the "
            "training data, by block of timesteps; behind it the change to the first arm in percent. The last column "
            "has its 95 % interval over seeds."
        )
        page.table(loss_header(report), loss_rows(report, family))
    page.heading("Protocol")
    page.data({key: report[key] for key in ("protocol", "versions", "hashes")})
    page.write(output / REPORT)
