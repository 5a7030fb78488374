"""Knowledge from words and objects: marks and key-token weights (text), weight maps and captions (vision), styles."""

from .completion import complete_caption, mentioned_labels, missing_objects
from .styles import NO_STYLE, STYLES, apply_style
from .text import (
    MARKS,
    EncodedText,
    TextKnowledge,
    add_marks,
    build_tokenizer,
    mark,
    mark_of,
    strip_marks,
    tag,
    truncation_warning,
    unknown_words_warning,
)
from .vision import COMPLETION, REPLACEMENT, VisualKnowledge, box_weight_map

__all__ = [
    "COMPLETION",
    "MARKS",
    "NO_STYLE",
    "REPLACEMENT",
    "STYLES",
    "EncodedText",
    "TextKnowledge",
    "VisualKnowledge",
    "add_marks",
    "apply_style",
    "box_weight_map",
    "build_tokenizer",
    "complete_caption",
    "mark",
    "mark_of",
    "mentioned_labels",
    "missing_objects",
    "strip_marks",
    "tag",
    "truncation_warning",
    "unknown_words_warning",
]
