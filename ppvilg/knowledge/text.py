"""Textual knowledge (ERNIE-ViLG 2.0, section 2.2): part-of-speech marks and key-token weights.

A prompt is cut into words by jieba; every content word gets a mark token in front, and the word pieces of content words
get the weight 1 + w_a that the cross-attention applies. `[a]灰色的[n]猫和[a]棕色的[n]狗`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .tagging import (
    MARKS,
    SPECIAL_TOKENS,
    TOKEN_PATTERN,
    Tags,
    marked_words,
    new_words_pattern,
    strip_marks,
    tag,
)
from .words import taught_words


def add_marks(tokenizer, text_encoder=None) -> int:
    """Make the marks tokens of their own and give the encoder rows for them; returns the number of new tokens.

    Can be called again without harm. `tokenizer` is a paddlenlp tokenizer, `text_encoder` a paddlenlp model.
    """
    before = len(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if any(token not in vocabulary for token in MARKS.values()):
        # New ids start at len(tokenizer). Where a vocabulary has a line twice (ERNIE 3.0 has "$" twice) that is the id
        # of its last word, and the mark would share its embedding: fill the gap with tokens that never occur.
        gap = max(vocabulary.values()) + 1 - len(tokenizer)
        tokenizer.add_tokens([f"[gap{index}]" for index in range(gap)])
    present = [str(token) for token in tokenizer.additional_special_tokens or []]
    missing = [token for token in MARKS.values() if token not in present]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": present + missing})
    if text_encoder is not None:
        _grow_embeddings(text_encoder, max(tokenizer.get_vocab().values()) + 1)
    return len(tokenizer) - before


def _grow_embeddings(text_encoder, rows: int) -> None:
    """Resize to at least `rows`; new rows are drawn like the old ones (paddlenlp draws them ten times too large)."""
    import paddle

    old = text_encoder.get_input_embeddings().weight.astype("float32").numpy()  # (rows, D)
    if len(old) >= rows:  # published encoders have more rows than words
        return
    noise = np.random.default_rng(0).standard_normal((rows - len(old), old.shape[1]))
    new = old.mean(axis=0) + old.std(axis=0) * noise
    weight = text_encoder.resize_token_embeddings(rows).weight
    weight.set_value(paddle.to_tensor(np.concatenate([old, new]).astype(np.float32)).astype(weight.dtype))


def build_tokenizer(texts: Iterable[str], folder: str | os.PathLike):
    """ErnieTokenizer over the characters, Latin words and numbers of `texts`, with marks, saved in `folder`.

    Letters and digits are added one by one, so that words outside the texts are spelled instead of unknown. The order
    of the texts does not matter.
    """
    from paddlenlp.transformers import BasicTokenizer, ErnieTokenizer

    split = BasicTokenizer(do_lower_case=True).tokenize
    words = {word for text in texts for word in split(TOKEN_PATTERN.sub(" ", text))}
    if not words:
        raise ValueError("build_tokenizer: no words in the texts")
    spelling = "0123456789abcdefghijklmnopqrstuvwxyz"
    words |= set(spelling) | {"##" + character for character in spelling}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8", newline="\n") as file:
        file.writelines(word + "\n" for word in (*SPECIAL_TOKENS, *MARKS.values(), *sorted(words)))
    tokenizer = ErnieTokenizer(os.path.join(folder, "vocab.txt"))
    add_marks(tokenizer)
    tokenizer.save_pretrained(str(folder))
    return ErnieTokenizer.from_pretrained(str(folder))


@dataclass(frozen=True)
class EncodedText:
    """A batch of prompts for text encoder and denoiser."""

    input_ids: np.ndarray  # (N, L) int64
    attention_mask: np.ndarray  # (N, L) int64, 0 on padding
    key_token_weights: np.ndarray  # (N, L) float32
    truncated: list[bool]
    dropped: list[str]  # what truncation cut off, "" where nothing
    unknown: list[list[str]]  # characters and words that the vocabulary lacks, in their order


def truncation_warning(encoded: EncodedText) -> str | None:
    """Sentence that tells a user which part of which text the model does not see, None when it sees all."""
    parts = [f"text {index}: {text!r}" for index, text in enumerate(encoded.dropped) if encoded.truncated[index]]
    if not parts:
        return None
    length = encoded.input_ids.shape[1]
    return f"longer than the text encoder's {length} tokens, the end is ignored ({'; '.join(parts)})"


def unknown_words_warning(encoded: EncodedText) -> str | None:
    """Sentence that tells a user which words the model cannot read, None when it knows all."""
    parts = [f"text {index}: {' '.join(words)}" for index, words in enumerate(encoded.unknown) if words]
    if not parts:
        return None
    return f"has words that the model's vocabulary lacks and that it cannot draw ({'; '.join(parts)})"


class TextKnowledge:
    """Text -> token ids and key-token weights.

    tokenizer: ErnieTokenizer, with marks (`add_marks`) unless mark is False. max_length: L, with [CLS] and [SEP].
    key_token_weight: w_a of section 2.2, 0 turns the weights off. mark: put marks before content words.
    Words that the tokenizer was taught are those it knows now (`taught_words`); a text with one of them is tagged here,
    whatever tags were made beforehand.
    """

    def __init__(self, tokenizer, max_length: int, key_token_weight: float = 0.01, mark: bool = True) -> None:
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 ([CLS], one token, [SEP]), got {max_length}")
        if not (math.isfinite(key_token_weight) and key_token_weight >= 0):
            raise ValueError(f"key_token_weight must be a finite number >= 0, got {key_token_weight}")
        if mark and not set(MARKS.values()) <= set(tokenizer.all_special_tokens):
            raise ValueError(
                "the tokenizer has no mark tokens: call add_marks(tokenizer, text_encoder), or set mark=False"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.key_token_weight = key_token_weight
        self.mark = mark
        self.words = taught_words(tokenizer)
        self._own_weights = {
            word.key: word.key_token_weight for word in self.words if word.key_token_weight is not None
        }
        self.tagger = tag  # may be replaced by one that looks its words up
        self._encode_text = lru_cache(maxsize=65536)(self._encode_one)  # captions repeat over epochs
        self._pieces = lru_cache(maxsize=65536)(lambda word: tuple(tokenizer.tokenize(word)))

    def encode(
        self,
        texts: Sequence[str],
        apply: bool | Sequence[bool] = True,
        tags: Sequence[Tags | None] | None = None,
    ) -> EncodedText:
        """Encode N texts padded to max_length; apply=False gives the plain text and weights of one.

        `tags` are words and parts of speech made beforehand; those that do not spell their text (because it was
        completed) are not used. Marks in a text are kept where they apply and removed where not. '' is the
        unconditional prompt.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got the string {texts!r}")
        count = len(texts)
        apply = [apply] * count if isinstance(apply, (bool, np.bool_)) else list(apply)
        tags = [None] * count if tags is None else list(tags)
        if len(apply) != count or len(tags) != count:
            raise ValueError(f"{count} texts need as many apply and tags, got {len(apply)} and {len(tags)}")
        rows = [
            self._encode_text(text, bool(use), None if not given else tuple((word, pos) for word, pos in given))
            for text, use, given in zip(texts, apply, tags)
        ]
        length = self.max_length
        return EncodedText(
            input_ids=np.array([row[0] for row in rows], dtype=np.int64).reshape(count, length),  # (N, L)
            attention_mask=np.array([row[1] for row in rows], dtype=np.int64).reshape(count, length),  # (N, L)
            key_token_weights=np.array([row[2] for row in rows], dtype=np.float32).reshape(count, length),  # (N, L)
            truncated=[bool(row[3]) for row in rows],
            dropped=[row[3] for row in rows],
            unknown=[list(row[4]) for row in rows],
        )

    def _encode_one(self, text: str, apply: bool, tags: Tags | None) -> tuple:
        """(ids, attention mask, weights, dropped text) of one text; cached, so the arrays are read-only."""
        if apply and (self.mark or self.key_token_weight):
            tokens, weights = self._knowing_tokens(text, tags)
        else:
            tokens = self.tokenizer.tokenize(strip_marks(text))
            weights = [1.0] * len(tokens)
        kept = self.max_length - 2
        dropped = "" if len(tokens) <= kept else _readable(tokens[kept:])
        if dropped and tokens[kept - 1] in MARKS.values():
            kept -= 1  # a mark without its word says nothing
        ids = self.tokenizer.convert_tokens_to_ids([self.tokenizer.cls_token, *tokens[:kept], self.tokenizer.sep_token])
        padding = self.max_length - len(ids)
        weights = [1.0, *weights[:kept], 1.0] + [1.0] * padding
        mask = [1] * len(ids) + [0] * padding
        row = (
            np.array(ids + [self.tokenizer.pad_token_id] * padding, dtype=np.int64),  # (L,)
            np.array(mask, dtype=np.int64),  # (L,)
            np.array(weights, dtype=np.float32),  # (L,)
        )
        for array in row:
            array.setflags(write=False)
        return (*row, dropped, self.unknown_words(text))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Characters and words of a text that the vocabulary lacks, each once, in their order.

        Latin words that it can only spell letter by letter, or from their third piece on, count among them: the model
        never met them as words.
        """
        tokenizer, found = self.tokenizer, []
        for part in TOKEN_PATTERN.split(text):
            if TOKEN_PATTERN.fullmatch(part):
                continue
            for word in tokenizer.basic_tokenizer.tokenize(new_words_pattern(self.words).sub(" ", part)):
                pieces = tokenizer.wordpiece_tokenizer.tokenize(word)
                spelled = word.isalpha() and all(len(piece.lstrip("#")) == 1 for piece in pieces[1:])
                spelled = spelled and (len(pieces) > 2 or (len(pieces) == 2 and len(pieces[0]) == 1))
                if (tokenizer.unk_token in pieces or spelled) and word not in found:
                    found.append(word)
        return tuple(found)

    def _knowing_tokens(self, text: str, tags: Tags | None) -> tuple[list[str], list[float]]:
        """Tokens with marks, and their weights."""
        if not self.mark:
            text = strip_marks(text)
        tokens: list[str] = []
        weights: list[float] = []
        for given, word in marked_words(self.tags_of(text, tags)):
            if given and self.mark:
                tokens.append(given)
                weights.append(1.0)
            pieces = self._pieces(word)
            tokens += pieces
            weights += [self.weight_of(word, given)] * len(pieces)
        return tokens, weights

    def tags_of(self, text: str, given: Tags | None = None) -> Tags:
        """Words and parts of speech of a text: those given where they spell it and it has no new word."""
        if self.words and new_words_pattern(self.words).search(text):
            return tag(text, self.words)
        if given is None or "".join(word for word, _ in given) != text:
            return self.tagger(text)
        return given

    def weight_of(self, word: str, mark: str) -> float:
        """Key-token weight W_j of a word with this mark, "" for none."""
        default = self.key_token_weight if mark else 0.0
        return 1.0 + (self._own_weights.get(word.lower(), default) if self.key_token_weight else 0.0)


def _readable(tokens: Sequence[str]) -> str:
    """Tokens as text: word pieces joined, no marks, no spaces around Chinese."""
    text = " ".join(token for token in tokens if token not in MARKS.values()).replace(" ##", "").removeprefix("##")
    return re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) | (?=[\u3000-\u9fff\uff00-\uffef])", "", text)
