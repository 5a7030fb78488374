"""The tokenizer of the model in the API's process, loaded in the background: for the knowledge view and warnings."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

from ppvilg.knowledge import NewWord, TextKnowledge, TokenizerWords, apply_style, tag

from ..errors import ServiceError
from .adapters import words_of_choice
from .info import ModelInfo

log = logging.getLogger("ppvilg.serving.knowledge")


class KnowledgeLoader:
    """Text knowledge of a model; until it is loaded there are no warnings and no knowledge view."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self._knowledge = None
        self._failed: str | None = None
        self._lock = threading.Lock()  # jieba and the tokenizer keep caches

    def start(self) -> None:
        """Begins to load; the process does not end in the middle of it, which could crash it."""
        threading.Thread(target=self._load, name="knowledge").start()

    @property
    def is_loaded(self) -> bool:
        return self._knowledge is not None

    def describe(self, settings: dict) -> dict:
        """The knowledge view of a prompt. ServiceError not_ready."""
        if self._knowledge is None:
            raise ServiceError("not_ready", self._failed or "the tokenizer is still being loaded", retry_after=2)
        from .words import describe_prompt

        text = apply_style(settings["prompt"], settings["style"])
        words = words_of_choice(settings["lora"], self._model.adapters)
        with self._lock, self._knowing(words) as knowledge:
            return describe_prompt(knowledge, text, settings["word_weights"])

    @contextlib.contextmanager
    def _knowing(self, words: Sequence[NewWord]) -> Iterator[TextKnowledge]:
        """The knowledge with words that a job's adapters bring."""
        if not words:
            yield self._knowledge
            return
        tokenizer = self._knowledge.tokenizer
        added = TokenizerWords(tokenizer, words, max(tokenizer.get_vocab().values()) + 1)
        try:
            yield self._knowledge_over(tokenizer)
        finally:
            added.take_out()

    def _knowledge_over(self, tokenizer) -> TextKnowledge:
        model = self._model
        return TextKnowledge(tokenizer, model.max_length, model.key_token_weight, model.mark)

    def warnings(self, settings: dict) -> list[str]:
        """What a user should know of a prompt: its end cut off, characters that cannot be read."""
        if self._knowledge is None:
            return []
        seen = self.describe(settings)
        warnings = []
        if seen["cut"]:
            warnings.append(f"the prompt is longer than {seen['max_tokens']} tokens; ignored: {seen['cut']}")
        if seen["unknown"]:
            warnings.append(f"the model cannot read: {' '.join(seen['unknown'])}")
        known = {word["word"] for word in seen["words"]}
        missed = [word for word in settings["word_weights"] if word not in known]
        if missed:
            warnings.append(f"weights of words that are not in the prompt: {' '.join(missed)}")
        return warnings

    def _load(self) -> None:
        try:
            from paddlenlp.transformers import ErnieTokenizer

            knowledge = self._knowledge_over(ErnieTokenizer.from_pretrained(str(self._model.folder / "tokenizer")))
            tag("预热")  # jieba reads its dictionary on first use
            self._knowledge = knowledge
        except Exception as error:  # the service draws without it, and says why there is no knowledge view
            log.exception("the tokenizer could not be loaded")
            self._failed = f"the tokenizer could not be loaded ({type(error).__name__})"
