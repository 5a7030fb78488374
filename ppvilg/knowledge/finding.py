"""Words of captions that a model cannot read, for those who want to teach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .tagging import MARKS, NewWord, marked_words
from .text import TextKnowledge


def find_new_words(knowledge: TextKnowledge, texts: Iterable[str]) -> Counter[NewWord]:
    """Words with content, numerals apart, that the vocabulary lacks, and how many of the texts have each.

    Words are cut by jieba: one that it does not know (a name) may come in parts, and is better given by hand.
    """
    names, found = {token: name for name, token in MARKS.items()}, Counter()
    for text in texts:
        found.update(
            {
                NewWord(word.lower(), names[given])
                for given, word in marked_words(knowledge.tags_of(text))
                if given not in ("", MARKS["m"])
                and word.isalnum()
                and len(word) <= 32
                and knowledge.unknown_words(word)
            }
        )
    return found
