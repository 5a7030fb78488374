"""Knowledge from words and objects: marks and key-token weights (text), weight maps and captions (vision), styles."""

from .completion import complete_caption, missing_objects
from .finding import find_new_words
from .names import NamesError, NameTable, open_names
from .styles import NO_STYLE, STYLES, apply_style
from .tagging import MARKS, NewWord, mark, mark_of, strip_marks, tag
from .text import (
    EncodedText,
    TextKnowledge,
    add_marks,
    build_tokenizer,
    truncation_warning,
    unknown_words_warning,
)
from .vision import COMPLETION, REPLACEMENT, VisualKnowledge, box_weight_map
from .words import TokenizerWords, check_new_words, taught_words

__all__ = [
    "COMPLETION",
    "MARKS",
    "NO_STYLE",
    "REPLACEMENT",
    "STYLES",
    "EncodedText",
    "NameTable",
    "NamesError",
    "NewWord",
    "TextKnowledge",
    "TokenizerWords",
    "VisualKnowledge",
    "add_marks",
    "apply_style",
    "box_weight_map",
    "build_tokenizer",
    "check_new_words",
    "complete_caption",
    "find_new_words",
    "mark",
    "mark_of",
    "missing_objects",
    "open_names",
    "strip_marks",
    "tag",
    "taught_words",
    "truncation_warning",
    "unknown_words_warning",
]
