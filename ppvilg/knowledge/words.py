"""New words of a model as tokens of its tokenizer, taken out again without a trace."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Sequence
from dataclasses import asdict

from .tagging import NewWord

_SETTING = "new_words"  # in tokenizer_config.json
_STATE = ("init_kwargs", "added_tokens_encoder", "added_tokens_decoder", "unique_no_split_tokens", "tokens_trie")


def taught_words(tokenizer) -> tuple[NewWord, ...]:
    """The new words of a tokenizer, which it keeps with its settings and saves with them."""
    words = tuple(NewWord(**word) for word in tokenizer.init_kwargs.get(_SETTING, ()))
    runs = {token_of(tokenizer, word) for word in words if word.is_run}
    if not runs.isdisjoint(tokenizer.unique_no_split_tokens):  # it was read from files
        _leave_to_word_pieces(tokenizer, runs)
    return words


def token_of(tokenizer, word: NewWord) -> str:
    """The token that stands for a word. ValueError: the tokenizer would not read the word in one piece."""
    if not word.is_run:
        return word.key if tokenizer.do_lower_case else word.word
    pieces = tokenizer.basic_tokenizer.tokenize(word.word)
    if len(pieces) != 1:
        raise ValueError(f"{word.word!r} cannot be one token, the tokenizer reads {' '.join(pieces)}")
    return pieces[0]


def check_new_words(tokenizer, words: Sequence[NewWord], besides: Collection[NewWord] = ()) -> None:
    """ValueError, naming the word, if one of them is a token already, those `besides` left out, or comes twice."""
    vocabulary, seen = tokenizer.get_vocab(), set()
    ignored = {token_of(tokenizer, word) for word in besides}
    for word in words:
        token = token_of(tokenizer, word)
        if token in vocabulary and token not in ignored:
            raise ValueError(f"{word.word!r} is a token of the model already, it cannot be a new word")
        if token in seen:
            raise ValueError(f"{word.word!r} comes twice among the new words")
        seen.add(token)


class TokenizerWords:
    """New words as tokens of a paddlenlp tokenizer, with ids from first_id on, until `take_out`."""

    def __init__(self, tokenizer, words: Sequence[NewWord], first_id: int) -> None:
        self._tokenizer = tokenizer
        self._before = {name: getattr(tokenizer, name) for name in _STATE}
        self._vocabulary = tokenizer.wordpiece_tokenizer.vocab
        ids = {token_of(tokenizer, word): first_id + index for index, word in enumerate(words)}
        # Ids of a saved tokenizer must have no gap, and published encoders have more rows than words.
        gap = {f"[row{index}]": index for index in range(len(tokenizer), first_id)}
        told = [*tokenizer.init_kwargs.get(_SETTING, ()), *map(asdict, words)]
        tokenizer.init_kwargs = {**tokenizer.init_kwargs, _SETTING: told}
        tokenizer.added_tokens_encoder = {**tokenizer.added_tokens_encoder, **gap, **ids}
        tokenizer.added_tokens_decoder = {index: token for token, index in tokenizer.added_tokens_encoder.items()}
        tokenizer.unique_no_split_tokens = [*tokenizer.unique_no_split_tokens, *ids]
        _leave_to_word_pieces(tokenizer, {token_of(tokenizer, word) for word in words if word.is_run})

    def take_out(self) -> None:
        """The tokenizer as it was, which knows none of the words."""
        for name, value in self._before.items():
            setattr(self._tokenizer, name, value)
        self._tokenizer.wordpiece_tokenizer.vocab = self._vocabulary


def _leave_to_word_pieces(tokenizer, runs: Collection[str]) -> None:
    """The trie finds its tokens inside longer words too, as it should Chinese ones, but not `sks` in `tasks`."""
    tokenizer.unique_no_split_tokens = sorted({*tokenizer.unique_no_split_tokens} - {*runs})
    tokenizer._create_trie(tokenizer.unique_no_split_tokens)
    pieces = tokenizer.wordpiece_tokenizer
    pieces.vocab = ChainMap({token: tokenizer.added_tokens_encoder[token] for token in runs}, pieces.vocab)
