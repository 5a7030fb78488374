"""New words that an adapter brings: those that the recipe lists, or whatever the captions have and the model lacks."""
from __future__ import annotations

import logging
from collections.abc import Iterable

from omegaconf import OmegaConf

from ppvilg.config import ConfigError, Recipe
from ppvilg.engine import builder
from ppvilg.knowledge import NewWord, check_new_words
from ppvilg.knowledge.finding import find_new_words
from ppvilg.pipelines.adapters import AddedWords, starting_rows

logger = logging.getLogger(__name__)
_KEYS = {"word", "mark", "key_token_weight", "like"}


def listed_words(recipe: Recipe) -> list[tuple[NewWord, str | None]] | None:
    """(word, text that it begins like) of `train.lora.words`; None: the captions say. ConfigError: they cannot be."""
    given = recipe.train.lora.words
    if given == "auto":
        return None
    given = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
    if not isinstance(given, list):
        raise ConfigError(f"train.lora.words={given}: auto, or a list such as [{{word: 狐狸, mark: n, like: 狗}}]")
    return [_word(entry) for entry in given]


def _word(entry) -> tuple[NewWord, str | None]:
    settings = {"word": entry} if isinstance(entry, str) else entry
    if not isinstance(settings, dict) or "word" not in settings or not settings.keys() <= _KEYS:
        raise ConfigError(f"train.lora.words: {entry} is neither a word nor a mapping of {', '.join(sorted(_KEYS))}")
    settings = dict(settings)
    like = settings.pop("like", None)
    try:
        return NewWord(**settings), like
    except ValueError as error:
        raise ConfigError(f"train.lora.words: {error}") from error


def chosen_words(recipe: Recipe, tokenizer, captions: Iterable[str]) -> list[tuple[NewWord, str | None]]:
    """The new words and what they begin like, those of the captions in their order of frequency.

    Raises:
        ConfigError: the model knows one of them.
    """
    listed = listed_words(recipe)
    if listed is None:
        found = find_new_words(builder.build_text_knowledge(recipe, tokenizer), captions)
        words = sorted(found, key=lambda word: (-found[word], word.word))
        if words:
            told = ", ".join(f"{word.word} ({word.mark}, {found[word]} captions)" for word in words)
            logger.info("words of the captions that the model lacks, each of which becomes a token: %s", told)
        return [(word, None) for word in words]
    try:
        check_new_words(tokenizer, [word for word, _ in listed])
    except ValueError as error:
        raise ConfigError(f"train.lora.words: {error}") from error
    return listed


def add_words(tokenizer, text_encoder, chosen: list[tuple[NewWord, str | None]]) -> AddedWords | None:
    """The words in a tokenizer and a text encoder, whose rows for them are the only ones that learn; None: no words."""
    if not chosen:
        return None
    words = [word for word, _ in chosen]
    try:
        rows = starting_rows(tokenizer, text_encoder, words, [like for _, like in chosen])
        return AddedWords(tokenizer, text_encoder, words, rows, learn=True)
    except ValueError as error:
        raise ConfigError(f"train.lora.words: {error}") from error
