"""Where words of a table stand in a caption.

Chinese puts the thing last in a compound: 牧羊犬 is a dog and 狗粮 is not, so a word of the table counts where a word
of the caption ends (as jieba cuts it). Exceptions (热狗) are words of their own in the table, and the longest one wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from ..tagging import segmenter, strip_marks

# What jieba joins to the end of a word without making another thing of it: 桌上, 孩子们, 人和 ("harmony")
_TRAILING = frozenset("上下里内中外旁边前后和与跟们的在")
# A word of one character that makes another thing of the noun before it: 狗|粮, 苹果|树
_HEADS = frozenset("树汁皮店屋窝粮毛肉壳笼巢套垫厂园馆派酱茶油奶蛋花叶味状形型色纹座牌架柜盒袋轮猴鲸")
_LATIN = re.compile("[A-Za-z0-9]+")
_LATIN_WORDS = 4  # of the longest English name


@dataclass(frozen=True)
class Word:
    """Labels that a word names (none: it means something else); `anywhere`: also inside other words."""

    labels: frozenset[str] = frozenset()
    anywhere: bool = False


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return bool(re.search(r"[\u3400-\u9fff]", text))


@lru_cache(maxsize=1)
def _simplified() -> dict[int, str]:
    text = Path(__file__).with_name("traditional.txt").read_text(encoding="utf-8")
    pairs = [pair for line in text.splitlines() if not line.startswith("#") for pair in line.split()]
    return {ord(traditional): simplified for traditional, simplified in pairs}


def simplified(text: str) -> str:
    """A text with simplified characters; as long as before."""
    return text.translate(_simplified())


def occurrences(caption: str, words: Mapping[str, Word], longest: int) -> frozenset[str]:
    """Labels that a caption names by `words` (in small letters, of up to `longest` characters).

    A word inside a longer one does not count.
    """
    text = simplified(strip_marks(caption)).lower()
    found = [*_chinese_spans(text, words, longest), *_latin_spans(text, words)]
    if not found:
        return frozenset()
    ends = None
    named: set[str] = set()
    for start, end, word in found:
        if any(first <= start and end <= last and last - first > end - start for first, last, _ in found):
            continue
        if word.labels and not word.anywhere and is_chinese(text[start:end]):
            ends = _word_ends(text) if ends is None else ends
            if end not in ends:
                continue
        named |= word.labels
    return frozenset(named)


def _chinese_spans(text: str, words: Mapping[str, Word], longest: int) -> Iterator[tuple[int, int, Word]]:
    """(start, end, word) of words with a Chinese character, wherever they stand."""
    for start in range(len(text)):
        for end in range(start + 1, min(len(text), start + longest) + 1):
            piece = text[start:end]
            if (word := words.get(piece)) is not None and is_chinese(piece):
                yield start, end, word


def _latin_spans(text: str, words: Mapping[str, Word]) -> Iterator[tuple[int, int, Word]]:
    """(start, end, word) of Latin words and phrases, in the singular or the plural."""
    tokens = list(_LATIN.finditer(text))
    for first in range(len(tokens)):
        for last in range(first, min(len(tokens), first + _LATIN_WORDS)):
            if last > first and text[tokens[last - 1].end() : tokens[last].start()] not in (" ", "-"):
                break
            phrase = " ".join(token[0] for token in tokens[first : last + 1])
            word = next((words[form] for form in _singular(phrase) if form in words), None)
            if word is not None:
                yield tokens[first].start(), tokens[last].end(), word


def _singular(phrase: str) -> Iterator[str]:
    yield phrase
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f")):
        if phrase.endswith(ending):
            yield phrase.removesuffix(ending) + singular


def _word_ends(text: str) -> set[int]:
    """Where a name may end: at the ends of words, but for those before a word that makes another thing of it."""
    place, ends = 0, set()
    pieces = list(segmenter().tokenizer.cut(text, HMM=False))
    for word, after in pairwise([*pieces, ""]):
        place += len(word)
        if after not in _HEADS:
            ends.add(place)
        cut = len(word)
        while cut > 1 and word[cut - 1] in _TRAILING:
            cut -= 1
            ends.add(place - (len(word) - cut))
    return ends
