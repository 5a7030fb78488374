"""Words of a text, their parts of speech and their marks (ERNIE-ViLG 2.0, section 2.2): `[a]灰色的[n]猫`."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ppvilg.files import cache_folder

MARKS = {"n": "[n]", "a": "[a]", "v": "[v]", "m": "[m]", "f": "[f]"}  # noun, adjective, verb, numeral, direction
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")

Tags = Sequence[tuple[str, str]]  # (word, jieba part of speech)

MARK_PATTERN = re.compile("|".join(re.escape(mark) for mark in MARKS.values()))
TOKEN_PATTERN = re.compile("(" + "|".join(re.escape(token) for token in (*MARKS.values(), *SPECIAL_TOKENS)) + ")")

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


# a character that a word-piece tokenizer reads in one run with its neighbours, as _in_run tells it
_RUN = r"[^\W_\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
_NEW = "new-"  # part of speech of a new word, followed by the name of its mark


@dataclass(frozen=True)
class NewWord:
    """A word that a model was taught: one token of its own, cut out of every text before jieba sees the rest.

    word: letters, digits and Chinese characters, case is ignored. mark: a name in MARKS, "" for none.
    key_token_weight: its own w_a, None: the model's. ValueError: one of them cannot be.
    """

    word: str
    mark: str = "n"
    key_token_weight: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.word, str) or not 0 < len(self.word) <= 32 or not self.word.isalnum():
            raise ValueError(
                f"a new word has 1 to 32 letters, digits or Chinese characters without spaces, got {self.word!r}"
            )
        if self.mark not in ("", *MARKS):
            raise ValueError(f"the mark of {self.word!r} must be one of {', '.join(MARKS)} or '', got {self.mark!r}")
        weight = self.key_token_weight
        if weight is not None and not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
            raise ValueError(f"key_token_weight of {self.word!r} must be a finite number >= 0, got {weight!r}")

    @property
    def key(self) -> str:
        """By which the word is found: lower case."""
        return self.word.lower()

    @property
    def is_run(self) -> bool:
        """Whether it has no Chinese characters, so that a tokenizer reads it in one run: a name like sks."""
        return all(map(_in_run, self.word))


@lru_cache(maxsize=64)
def new_words_pattern(words: tuple[NewWord, ...]) -> re.Pattern:
    """Finds the words in a text, the longest first; letters and digits that are part of a longer run are none."""
    longest = sorted({word.key for word in words}, key=lambda key: (-len(key), key))
    found = "|".join(
        (f"(?<!{_RUN})" if _in_run(key[0]) else "") + key + (f"(?!{_RUN})" if _in_run(key[-1]) else "")
        for key in longest
    )
    return re.compile(f"({found})" if found else "((?!))", re.IGNORECASE)


@lru_cache(maxsize=1)
def segmenter():
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


def tag(text: str, words: tuple[NewWord, ...] = ()) -> list[tuple[str, str]]:
    """Words of a text with jieba's part of speech; the words spell the text exactly; '' gives [].

    words: new ones, which jieba does not know; their part of speech is one that `mark_of` reads their mark from.
    """
    tags: list[tuple[str, str]] = []
    for part in TOKEN_PATTERN.split(text):
        if TOKEN_PATTERN.fullmatch(part):
            tags.append((part, "x"))
        elif part:
            tags += _measures_as_things(_split_compounds(_join_runs(list(_cut(part, words)))))
    return tags


def _cut(text: str, words: tuple[NewWord, ...]) -> Iterator[tuple[str, str]]:
    """New words, and what jieba makes of the text between them."""
    marks = {word.key: word.mark for word in words}
    for index, part in enumerate(new_words_pattern(words).split(text) if words else [text]):
        if index % 2:
            yield part, _NEW + marks[part.lower()]
        else:
            yield from ((pair.word, pair.flag) for pair in segmenter().cut(part))


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
    classes = segmenter().word_tag_tab
    split: list[tuple[str, str]] = []
    for word, pos in tags:
        count = _COUNT.fullmatch(word)
        if pos.startswith(_NEW):
            split.append((word, pos))
        elif count and classes.get(count[2], "").startswith(("n", "q")) and count[2] != count[1][-1]:
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
    if pos.startswith(_NEW):
        return MARKS.get(pos.removeprefix(_NEW), "")
    if word in _FUNCTION_WORDS or not any(character.isalnum() for character in word):
        return ""
    if TOKEN_PATTERN.fullmatch(word):
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


def marked_words(tags: Tags) -> Iterator[tuple[str, str]]:
    """(mark or "", word) for each word; a mark already in the text decides for the word after it."""
    given = ""
    for word, pos in tags:
        if MARK_PATTERN.fullmatch(word):
            given = word
        else:
            content = any(character.isalnum() for character in word)
            yield (given if given and content else mark_of(word, pos)), word
            given = ""


def mark(tags: Tags) -> str:
    """Text with a mark before each content word: `[a]灰色的[n]猫`; marks already there are kept, not doubled."""
    return "".join(given + word for given, word in marked_words(tags))


def strip_marks(text: str) -> str:
    """Text without marks."""
    return MARK_PATTERN.sub("", text)
