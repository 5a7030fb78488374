"""Textual knowledge (ERNIE-ViLG 2.0, section 2.2): part-of-speech marks and key-token weights.

A prompt is cut into words by jieba; every content word gets a mark token in front, and the word pieces of content words
get the weight 1 + w_a that the cross-attention applies. `[a]灰色的[n]猫和[a]棕色的[n]狗`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ppvilg.files import cache_folder

MARKS = {"n": "[n]", "a": "[a]", "v": "[v]", "m": "[m]", "f": "[f]"}  # noun, adjective, verb, numeral, direction
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")

Tags = Sequence[tuple[str, str]]  # (word, jieba part of speech)

_MARK_PATTERN = re.compile("|".join(re.escape(mark) for mark in MARKS.values()))
_TOKEN_PATTERN = re.compile("(" + "|".join(re.escape(token) for token in (*MARKS.values(), *SPECIAL_TOKENS)) + ")")

# First letter of a jieba tag -> mark. Besides the plain classes: b (distinguishing words, 彩色), z (states, 黑白) and
# idioms, i and l (五颜六色), describe like adjectives; s (places, 室内), t (times, 夜晚), j (short forms) name things.
_MARK_OF_POS = {**{pos: pos for pos in MARKS}, **dict.fromkeys("bzil", "a"), **dict.fromkeys("stj", "n")}

# jieba calls these v, t or n, but they show nothing in a picture
_FUNCTION_WORDS = frozenset("是 有 没有 为 正在 正 着 会 能 可以 要 让 使 进行 位于 展示 时候 样子 时".split())

# jieba calls 蓝色 a noun; what the picture needs from it is the quality
_COLOUR = re.compile(
    r"(?:[深浅淡亮暗鲜大]?[红橙黄绿青蓝紫粉白黑灰棕褐]{1,2}"
    r"|.{0,3}(?:[红橙黄绿青蓝紫粉白黑灰棕褐金银米驼杏]|咖啡|巧克力)色)"
)

_NUMERALS = "0-9一二两三四五六七八九十百千几半"
_MEASURES = (
    "个只条头匹辆架艘列台部棵朵株枝束片颗粒串根把张顶件双对副座栋间块杯碗盘瓶盒袋桶本支封枚份盏面幅道团堆群滴轮位名"
)
_COUNT = re.compile(rf"([{_NUMERALS}]+[{_MEASURES}])(.*)")

# Everyday nouns that jieba's dictionary lacks or gives another class (树 as v, 相机 as d, 火烈鸟 as i)
_NOUNS = (*"甜甜圈 纸杯蛋糕 热气球 火烈鸟 相机 信封 牙刷 闪电".split(), *"树车锁鼓花火云灯门书床笔伞船梨桃鸟虫")

# Entries of jieba's dictionary that take 一本书 for 一 + 本书 ("this book") and 三架飞机 for 三 + 架飞机
_NOT_WORDS = ("本书", "架飞机")

# 背景上有一只猫: jieba makes one verb of 上有
_PLACE_AND_VERB = re.compile("([上下中里内外前后])([有是])")

# jieba knows English words only as "eng": all are taken for nouns except these
_ENGLISH = {
    "": "a an the and or of on in at to with by is are was were be has have there it its this that for from no not",
    "a": "red yellow green blue purple pink white black gray grey brown beige cyan golden light dark big small large "
    "little tiny bright old young cute beautiful",
    "m": "zero one two three four five six seven eight nine ten several many few single double",
    "f": "left right above below under over top bottom middle center centre beside between behind front up down",
    "v": "sits sitting stands standing runs running flies flying eats eating plays playing sleeps sleeping",
}
_MARK_OF_ENGLISH = {word: mark for mark, words in _ENGLISH.items() for word in words.split()}


@lru_cache(maxsize=1)
def _segmenter():
    """jieba's tagger over a dictionary of our own, so that neither side changes the other's words."""
    import jieba
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    with tokenizer.get_dict_file() as dictionary:  # jieba itself would trust any user's /tmp/jieba.cache
        tokenizer.cache_file = f"jieba-{hashlib.sha256(dictionary.read()).hexdigest()}.cache"
    tokenizer.tmp_dir = str(cache_folder())
    for word in _NOUNS:
        tokenizer.add_word(word, tag="n")
    for word in _NOT_WORDS:
        tokenizer.del_word(word)
    return jieba.posseg.POSTokenizer(tokenizer)


def tag(text: str) -> list[tuple[str, str]]:
    """Words of a text with jieba's part of speech; the words spell the text exactly; '' gives []."""
    tags: list[tuple[str, str]] = []
    for part in _TOKEN_PATTERN.split(text):
        if _TOKEN_PATTERN.fullmatch(part):
            tags.append((part, "x"))
        elif part:
            words = [(pair.word, pair.flag) for pair in _segmenter().cut(part)]
            tags += _measures_as_things(_split_compounds(_join_runs(words)))
    return tags


def _join_runs(tags: Tags) -> list[tuple[str, str]]:
    """Join words that a word-piece tokenizer would read as one run ("3" + "D", "caf" + "é"), so that pieces agree."""
    joined: list[tuple[str, str]] = []
    for word, pos in tags:
        if joined and _in_run(joined[-1][0][-1]) and _in_run(word[0]):
            word = joined.pop()[0] + word
            pos = "eng" if re.search("[A-Za-z0-9]", word) else "x"
        joined.append((word, pos))
    return joined


def _in_run(character: str) -> bool:
    """False for what BERT's basic tokenizer cuts at: white space, punctuation, symbols, Chinese characters."""
    if unicodedata.category(character)[0] in "PSZ" or character in "\t\n\r":
        return False
    # symbols by paddlenlp's rule though letters or controls by Unicode's
    if ord(character) in (0xAD, 0xB2, 0xBA, 0x3007, 0xB5, 0xD8, 0x14B, 0x1B1):
        return False
    code = ord(character)
    chinese = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
    return not any(first <= code <= last for first, last in chinese)


def _split_compounds(tags: Tags) -> list[tuple[str, str]]:
    """Cut dictionary words like 一棵树 and 一个碗 into count and noun (but not 一朵朵), 上有 into place and verb."""
    classes = _segmenter().word_tag_tab
    split: list[tuple[str, str]] = []
    for word, pos in tags:
        count = _COUNT.fullmatch(word)
        if count and classes.get(count[2], "").startswith(("n", "q")) and count[2] != count[1][-1]:
            split += [(count[1], "m"), (count[2], classes[count[2]])]
        elif place := _PLACE_AND_VERB.fullmatch(word):
            split += [(place[1], "f"), (place[2], "v")]
        else:
            split.append((word, pos))
    return split


def _measures_as_things(tags: Tags) -> list[tuple[str, str]]:
    """A measure word (q: 碗, 杯) that no bare numeral or pronoun precedes is the thing itself: 一个碗."""
    things: list[tuple[str, str]] = []
    for word, pos in tags:
        before, before_pos = things[-1] if things else ("", "")
        counted = before_pos.startswith("r") or (before_pos.startswith("m") and not _COUNT.fullmatch(before))
        things.append((word, "n" if pos == "q" and not counted else pos))
    return things


@lru_cache(maxsize=65536)
def mark_of(word: str, pos: str) -> str:
    """Mark of a word, "" for words without content (particles, punctuation, copulas, white space)."""
    if word in _FUNCTION_WORDS or not any(character.isalnum() for character in word):
        return ""
    if _TOKEN_PATTERN.fullmatch(word):
        return ""
    if pos in ("eng", "x") and re.search("[A-Za-z0-9]", word):
        return MARKS.get(_english_class(word.lower()), "")
    if _COLOUR.fullmatch(word) and pos != "v":
        return MARKS["a"]
    count = _COUNT.fullmatch(word)
    if count and not count[2]:
        return MARKS["m"]
    if pos == "zg":  # jieba's left-over class of single characters, not the state words z
        return ""
    return MARKS.get(_MARK_OF_POS.get(pos[:1], ""), "")


def _english_class(word: str) -> str:
    if word.isdigit():
        return "m"
    return _MARK_OF_ENGLISH.get(word, "n" if len(word) > 1 else "")


def _marked_words(tags: Tags) -> Iterator[tuple[str, str]]:
    """(mark or "", word) for each word; a mark already in the text decides for the word after it."""
    given = ""
    for word, pos in tags:
        if _MARK_PATTERN.fullmatch(word):
            given = word
        else:
            content = any(character.isalnum() for character in word)
            yield (given if given and content else mark_of(word, pos)), word
            given = ""


def mark(tags: Tags) -> str:
    """Text with a mark before each content word: `[a]灰色的[n]猫`; marks already there are kept, not doubled."""
    return "".join(given + word for given, word in _marked_words(tags))


def strip_marks(text: str) -> str:
    """Text without marks."""
    return _MARK_PATTERN.sub("", text)


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
    words = {word for text in texts for word in split(_TOKEN_PATTERN.sub(" ", text))}
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

        Latin words that it can only spell letter by letter count among them: the model never met them as words.
        """
        tokenizer, found = self.tokenizer, []
        for part in _TOKEN_PATTERN.split(text):
            if _TOKEN_PATTERN.fullmatch(part):
                continue
            for word in tokenizer.basic_tokenizer.tokenize(part):
                pieces = tokenizer.wordpiece_tokenizer.tokenize(word)
                spelled = len(word) > 1 and word.isalpha() and all(len(piece.lstrip("#")) == 1 for piece in pieces)
                if (tokenizer.unk_token in pieces or spelled) and word not in found:
                    found.append(word)
        return tuple(found)

    def _knowing_tokens(self, text: str, tags: Tags | None) -> tuple[list[str], list[float]]:
        """Tokens with marks, and their weights."""
        if not self.mark:
            text = strip_marks(text)
        if tags is None or "".join(word for word, _ in tags) != text:
            tags = self.tagger(text)
        tokens: list[str] = []
        weights: list[float] = []
        for given, word in _marked_words(tags):
            if given and self.mark:
                tokens.append(given)
                weights.append(1.0)
            pieces = self._pieces(word)
            tokens += pieces
            weights += [1.0 + self.key_token_weight if given else 1.0] * len(pieces)
        return tokens, weights


def _readable(tokens: Sequence[str]) -> str:
    """Tokens as text: word pieces joined, no marks, no spaces around Chinese."""
    text = " ".join(token for token in tokens if token not in MARKS.values()).replace(" ##", "").removeprefix("##")
    return re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) | (?=[\u3000-\u9fff\uff00-\uffef])", "", text)
