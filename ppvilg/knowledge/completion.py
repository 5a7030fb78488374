"""Captions that leave objects out are completed (section 2.2 of the paper): what a caption mentions, what it lacks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .text import MARKS, strip_marks


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return bool(re.search(r"[\u3400-\u9fff]", text))


def names_of(label: str, synonyms: Mapping[str, Sequence[str]] | None) -> list[str]:
    """A label and its synonyms."""
    return [label, *(synonyms or {}).get(label, ())]


@lru_cache(maxsize=4096)  # completion and loss weights ask the same of a sample
def _occurrences(name: str, caption: str) -> list[tuple[int, int]]:
    """Where a name stands in a caption; Latin names as whole words, plural or not, in any case."""
    pattern = re.escape(name)
    if not is_chinese(name):
        pattern = rf"(?<![A-Za-z0-9]){pattern}(?:s|es)?(?![A-Za-z0-9])"
    return [match.span() for match in re.finditer(pattern, caption, re.IGNORECASE)]


def mentioned_labels(
    caption: str, labels: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Those of `labels` that the caption names itself or by a synonym, in order, each once.

    A name inside a longer name of another label of the list does not count: 熊猫 names the panda, not also 熊 and 猫.
    """
    labels = list(dict.fromkeys(labels))
    if not labels:
        return []
    caption = strip_marks(caption)
    spans = {label: [s for name in names_of(label, synonyms) for s in _occurrences(name, caption)] for label in labels}

    def swallowed(label: str, span: tuple[int, int]) -> bool:
        return any(
            other != label and start <= span[0] and span[1] <= end and (end - start) > (span[1] - span[0])
            for other, found in spans.items()
            for start, end in found
        )

    return [label for label in labels if any(not swallowed(label, span) for span in spans[label])]


def missing_objects(caption: str, objects, synonyms: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Labels of `objects` that the caption does not mention, in order, several of a kind once."""
    labels = list(dict.fromkeys(item.label for item in objects))
    mentioned = set(mentioned_labels(caption, labels, synonyms))
    return [label for label in labels if label not in mentioned]


def complete_caption(caption: str, labels: Sequence[str], marks: bool = True) -> str:
    """Caption with each label after it: `，[n]碗`, `，碗` without marks, `, [n]bowl` where there is no Chinese."""
    if not labels:
        return caption
    separator = "，" if is_chinese(caption or labels[0]) else ", "
    mark = MARKS["n"] if marks else ""
    # a full stop before the addition would make it a sentence of its own
    parts = [caption.rstrip("。.，,；;、 ")] if caption.strip() else []
    return separator.join(parts + [mark + label for label in labels])
