"""The figures of the reports, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

COLOURS = ("#888a85", "#3465a4", "#f57900", "#73d216", "#75507b", "#cc0000")
MARKERS = "osD^vP"
SIDE_COLOURS = {"first": "#3465a4", "tie": "#c4c4c0", "second": "#f57900"}


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Any) -> str:
    """The <svg> element of a figure, the same for the same figure; its text stays text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ppvilg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


# ---- fid ----


def sweep_figure(rows: Sequence[dict], labels: Sequence[str]) -> Any:
    """FID over guidance scales, called `labels`, and recall over precision where both are known."""
    panels = [name for name in ("fid", "kid") if name in rows[0]] + (["recall"] if "recall" in rows[0] else [])
    figure = new_figure(4.5 * len(panels), 3.6)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        if name == "recall":
            axes.plot(*([row[key]["value"] for row in rows] for key in ("precision", "recall")), marker="o")
            for row, label in zip(rows, labels):
                axes.annotate(label, (row["precision"]["value"], row["recall"]["value"]))
            axes.set(xlabel="precision", ylabel="recall")
            continue
        values = np.array([row[name]["value"] for row in rows])
        bounds = np.array([row[name]["interval"] or [row[name]["value"]] * 2 for row in rows])
        axes.errorbar(range(len(rows)), values, yerr=np.abs(bounds.T - values), marker="o", capsize=3)
        axes.set(xlabel="guidance scale", ylabel=name.upper(), xticks=range(len(rows)), xticklabels=labels)
    return figure


def scatter_figure(reference: np.ndarray, generated: np.ndarray, most: int = 1500) -> Any:
    """Both sets over the two directions in which the reference varies most."""
    mean = reference.mean(axis=0)
    directions = np.linalg.eigh(np.cov(reference.astype(np.float64), rowvar=False))[1][:, :-3:-1]  # (D, 2)
    figure = new_figure(6, 5)
    axes = figure.subplots()
    for features, label, colour in ((reference, "reference", "#888888"), (generated, "generated", "#d62728")):
        x, y = ((features[:most] - mean) @ directions).T
        axes.scatter(x, y, s=10, alpha=0.6, label=label, color=colour, linewidths=0, rasterized=True)
    axes.legend(markerscale=2, loc="upper right")
    axes.set(xlabel="first component", ylabel="second component")
    return figure


# ---- clipscore ----


def histogram_figure(cosines: np.ndarray) -> Any:
    """How the cosines are spread."""
    figure = new_figure(6, 3.5)
    axes = figure.subplots()
    axes.hist(cosines, bins=40, color="#1f77b4")
    axes.axvline(cosines.mean(), color="black", linewidth=1)
    axes.set(xlabel="cosine", ylabel="pictures")
    return figure


# ---- side_by_side ----


def overall_figure(report: dict) -> Any:
    """The paper's figure: alignment and fidelity, a bar for each model and one for ties, with their intervals."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    criteria = list(report["results"]["criteria"])
    labels = {"first": report["names"]["first"], "tie": "no difference", "second": report["names"]["second"]}
    for place, outcome in enumerate(("first", "tie", "second")):
        for group, criterion in enumerate(criteria):
            _bar(axes, group + 0.27 * (place - 1), report, criterion, outcome, labels[outcome] if not group else None)
    axes.set_xticks(range(len(criteria)), [name.capitalize() for name in criteria])
    axes.set_ylim(0, 100)
    axes.set_ylabel("user preference rate, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
    return figure


def _bar(axes: Any, x: float, report: dict, criterion: str, outcome: str, label: str | None) -> None:
    rate = report["results"]["criteria"][criterion]["all"][outcome]
    if rate["mean"] is None:
        return
    mean, (low, high) = 100 * rate["mean"], (100 * bound for bound in rate["interval"])
    axes.bar(x, mean, width=0.25, color=SIDE_COLOURS[outcome], label=label)
    axes.errorbar(x, mean, yerr=[[max(0, mean - low)], [max(0, high - mean)]], color="#333", capsize=4, linewidth=1.2)
    axes.text(x, high + 1.5, f"{mean:.1f}", ha="center", fontsize=9)


def class_figure(report: dict) -> Any:
    """Score of the first model per class, with half the ties: right of the line the first is preferred."""
    criteria = report["results"]["criteria"]
    classes = next(iter(criteria.values()))["classes"]
    figure = new_figure(9, 1.2 + 0.3 * len(classes))
    for axes, criterion in zip(figure.subplots(1, len(criteria), sharey=True), criteria):
        entries = criteria[criterion]["classes"]
        for y, name in enumerate(classes):
            if name not in entries:
                continue
            rate = entries[name]["score"]
            low, high = rate["interval"]
            axes.plot([100 * low, 100 * high], [y, y], color="#333", linewidth=1.2)
            axes.plot([100 * rate["mean"]], [y], "o", color=SIDE_COLOURS["first" if rate["mean"] >= 0.5 else "second"])
        axes.axvline(50, color="#999", linewidth=0.8, linestyle="--")
        axes.set_xlim(0, 100)
        axes.set_title(criterion.capitalize())
        axes.set_xlabel(f"{report['names']['first']} preferred, ties half, %")
        axes.set_yticks(range(len(classes)), list(classes))
        axes.set_ylim(len(classes) - 0.4, -0.6)
    return figure


# ---- ablation ----


def curves(families: Mapping[str, Mapping[str, Sequence[dict]]], alignment: str, axis: str) -> Any:
    """A panel per family: each arm's mean over seeds, a point per guidance scale; small points are seeds.

    families[family][name of an arm] is its curve: [{"guidance_scale", "fid", `alignment`}, ...]; axis: what is below.
    """
    figure = new_figure(11, 4.6)
    for axes, (family, arms) in zip(figure.subplots(1, len(families)), families.items()):
        for (name, curve), colour, marker in zip(arms.items(), cycle(COLOURS), cycle(MARKERS)):
            points = [(point[alignment]["mean"], point["fid"]["mean"]) for point in curve]
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=6, label=name)
            for point in curve:
                seeds = point[alignment]["values"], point["fid"]["values"]
                axes.scatter(*seeds, color=colour, marker=marker, s=9, alpha=0.45, linewidths=0)
        for point in next(iter(arms.values())):
            place = point[alignment]["mean"], point["fid"]["mean"]
            axes.annotate(f"{point['guidance_scale']:g}", place, (5, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(axis)
        axes.set_ylabel("FID")
        axes.set_title(family.capitalize())
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure
