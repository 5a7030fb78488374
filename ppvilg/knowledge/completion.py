"""Captions that leave objects out are completed (section 2.2 of the paper): what a caption mentions, what it lacks."""

from __future__ import annotations

from collections.abc import Sequence

from .names import NameTable, is_chinese
from .tagging import MARKS

NO_NAMES = NameTable()


def missing_objects(caption: str, objects, names: NameTable = NO_NAMES) -> list[str]:
    """Labels of `objects` that the caption does not name, in order, several of a kind once.

    A label that another missing one names is left out as well: with 牧羊犬 to be appended, 狗 is not missing.
    """
    labels = list(dict.fromkeys(item.label for item in objects))
    mentioned = set(names.mentioned(caption, labels))
    missing = [label for label in labels if label not in mentioned]
    if len(missing) < 2:
        return missing
    chinese = is_chinese(caption or missing[0])
    written = {label: names.name_of(label, chinese) for label in missing}
    kept: list[str] = []
    for place, label in enumerate(missing):
        others = {written[other] for other in (*kept, *missing[place + 1 :])} - {None, written[label]}
        if label not in names.mentioned("，".join(sorted(others)), labels):
            kept.append(label)
    return kept


def complete_caption(caption: str, labels: Sequence[str], marks: bool = True) -> str:
    """Caption with each label after it: `，[n]碗`, `，碗` without marks, `, [n]bowl` where there is no Chinese."""
    if not labels:
        return caption
    separator = "，" if is_chinese(caption or labels[0]) else ", "
    mark = MARKS["n"] if marks else ""
    # a full stop before the addition would make it a sentence of its own
    parts = [caption.rstrip("。.，,；;、 ")] if caption.strip() else []
    return separator.join(parts + [mark + label for label in labels])
