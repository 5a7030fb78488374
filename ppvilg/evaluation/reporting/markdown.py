"""Tables and intervals as text, for the terminal, results.md and the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; None is an empty cell, and no cell can break the table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def interval_text(interval: Sequence[float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """`2.95 to 3.25`, times `scale`; empty where there is no interval."""
    return "" if interval is None else " to ".join(f"{scale * bound:.{digits}f}" for bound in interval)


def value_text(value: float | None, interval: Sequence[float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """`3.10 (2.95 to 3.25)`, times `scale`; without an interval where there is none, empty without a value."""
    if value is None:
        return ""
    bounds = interval_text(interval, digits, scale)
    return f"{scale * value:.{digits}f}" + (f" ({bounds})" if bounds else "")


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).replace("|", "\\|").split())
