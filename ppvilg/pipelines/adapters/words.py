"""New words of a pipeline: tokens, rows of the text encoder, marks and weights, as a training and an adapter need them.

Training:
    words = [NewWord("狐狸", "n")]
    rows = starting_rows(tokenizer, text_encoder, words, ["动物"])
    added = AddedWords(tokenizer, text_encoder, words, rows, learn=True)
    knowledge = TextKnowledge(tokenizer, ...)  # made after the words were added, it knows them
    optimizer = AdamW(parameters=[added.rows, ...])
    Adapter(..., words=added.taught())
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppvilg.knowledge import NewWord, TokenizerWords, check_new_words
from ppvilg.models.lora import TaughtWord
from ppvilg.models.token_rows import LearnedRows, append_rows, drop_rows


class AddedWords:
    """New words in a tokenizer and the token embedding of its text encoder, until `take_out`.

    rows: (k, D), see `starting_rows`. learn: `self.rows` is then a Parameter (k, D), the only rows of the embedding
    that have a gradient; without it they are part of the text encoder's table, which is exported and saved as such.
    ValueError, before anything is changed: a word is a token already, or rows do not fit.
    """

    def __init__(
        self, tokenizer, text_encoder, words: Sequence[NewWord], rows: np.ndarray, learn: bool = False
    ) -> None:
        check_new_words(tokenizer, words)
        embedding = text_encoder.get_input_embeddings()
        count, width = embedding.weight.shape
        if rows.shape != (len(words), width):
            raise ValueError(f"{len(words)} new words need rows of {width} numbers each, got {tuple(rows.shape)}")
        self.words = tuple(words)
        self.rows = None
        self._given, self._text_encoder, self._base = rows, text_encoder, embedding if learn else None
        self._was_frozen = embedding.weight.stop_gradient
        if learn:
            learned = LearnedRows(embedding, rows)
            text_encoder.set_input_embeddings(learned)
            text_encoder.config.vocab_size = count + len(words)  # so that a pipeline takes them for one model
            self.rows = learned.rows
        else:
            append_rows(text_encoder, rows)
        self._tokens = TokenizerWords(tokenizer, words, count)

    def taught(self) -> list[TaughtWord]:
        """The words with their rows as they are now: what an adapter's file holds of them."""
        rows = self._given if self.rows is None else self.rows.cast("float32").numpy()
        return [
            TaughtWord(word.word, word.mark, word.key_token_weight, row.copy()) for word, row in zip(self.words, rows)
        ]

    def take_out(self) -> None:
        """Tokenizer and text encoder as they were, bit for bit."""
        self._tokens.take_out()
        if self._base is None:
            drop_rows(self._text_encoder, len(self.words))
        else:
            self._base.weight.stop_gradient = self._was_frozen
            self._text_encoder.set_input_embeddings(self._base)
            self._text_encoder.config.vocab_size = self._base.weight.shape[0]


def starting_rows(tokenizer, text_encoder, words: Sequence[NewWord], like: Sequence[str | None] = ()) -> np.ndarray:
    """Rows (k, D) to begin a training with: the mean of the tokens of a text, or drawn like the rows there are.

    like: for each word a text that the model can read, such as the word's class, or None. ValueError: it cannot.
    """
    table = text_encoder.get_input_embeddings().weight.cast("float32").numpy()  # (V, D)
    noise = np.random.default_rng(0).standard_normal((len(words), table.shape[1]))
    rows = table.mean(axis=0) + table.std(axis=0) * noise
    for index, text in enumerate(like):
        if text is None:
            continue
        tokens = tokenizer.tokenize(text)
        if not tokens or tokenizer.unk_token in tokens:
            raise ValueError(f"{words[index].word!r} cannot begin like {text!r}, which the model cannot read")
        rows[index] = table[tokenizer.convert_tokens_to_ids(tokens)].mean(axis=0)
    return rows.astype(np.float32)


def word_of(taught: TaughtWord) -> NewWord:
    """The word without its row. ValueError: it cannot be one."""
    return NewWord(taught.word, taught.mark, taught.key_token_weight)
