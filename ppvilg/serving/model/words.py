"""A prompt as the model reads it: words with their marks, weights and tokens, what it cannot read, what it cuts off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppvilg.knowledge import MARKS, TextKnowledge, mark

_MARK_OF_TOKEN = {token: name for name, token in MARKS.items()}


@dataclass(frozen=True)
class Word:
    """A word of a prompt; `start` to `end` in characters, `first` its first token after [CLS] (its mark, if any)."""

    word: str
    start: int
    end: int
    pos: str
    mark: str  # a name in MARKS, or ""
    tokens: tuple[str, ...]  # word pieces, without the mark
    first: int
    weight: float
    default_weight: float


def words_of(knowledge: TextKnowledge, text: str, word_weights: Mapping[str, float] | None = None) -> list[Word]:
    """The words of a prompt with its style, in the order of the text, which they spell exactly."""
    given, start, token = "", 0, 1
    words = []
    for word, pos in knowledge.tags_of(text):
        end = start + len(word)
        if word in _MARK_OF_TOKEN:
            words.append(Word(word, start, end, pos, "", (), token, 1.0, 1.0))
            given = word
        else:
            marked = mark([(given, "x"), (word, pos)] if given else [(word, pos)])
            name = _MARK_OF_TOKEN.get(marked[: len(marked) - len(word)], "")
            pieces = tuple(knowledge.tokenizer.tokenize(word))
            default = knowledge.weight_of(word, name)
            weight = float((word_weights or {}).get(word, default))
            words.append(Word(word, start, end, pos, name, pieces, token, weight, default))
            token += len(pieces) + (1 if name and knowledge.mark else 0)
            given = ""
        start = end
    return words


def token_weights(knowledge: TextKnowledge, text: str, word_weights: Mapping[str, float]) -> np.ndarray:
    """float32 (L,): key-token weights of a prompt with those of some words chosen by the user."""
    weights = np.array(knowledge.encode([text]).key_token_weights[0])  # (L,)
    last = knowledge.max_length - 1  # [SEP] keeps its weight
    for word in words_of(knowledge, text, word_weights):
        if word.word in word_weights:
            first = word.first + (1 if word.mark and knowledge.mark else 0)
            weights[min(first, last) : min(first + len(word.tokens), last)] = word.weight
    return weights


def describe_prompt(knowledge: TextKnowledge, text: str, word_weights: Mapping[str, float] | None = None) -> dict:
    """The knowledge view as JSON."""
    words = words_of(knowledge, text, word_weights)
    shown = []
    room = knowledge.max_length - 1  # positions 1 to max_length - 2 hold tokens
    total = 0
    for word in words:
        last = word.first + len(word.tokens) + (1 if word.mark and knowledge.mark else 0)
        total = max(total, last - 1)
        values = {name: value for name, value in vars(word).items() if name != "first"}
        shown.append(
            {
                **values,
                "tokens": list(word.tokens),
                "unknown": list(knowledge.unknown_words(word.word)),
                "cut": last > room,
            }
        )
    return {
        "text": text,
        "marked": mark(knowledge.tags_of(text)) if knowledge.mark else text,
        "tokens": total + 2,
        "max_tokens": knowledge.max_length,
        "cut": knowledge.encode([text]).dropped[0],
        "unknown": list(knowledge.unknown_words(text)),
        "words": shown,
    }
