"""What detected objects are called, and which of them a caption names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache

from ppvilg.files import digest_of

from .mentions import Word, is_chinese, occurrences
from .reading import LISTS, Entry, NamesError, Table, find_table, normal, read_table


class NameTable:
    """Labels of detectors with names, measure words and kinds, of one table or of several laid over each other.

    Of later tables come the names that are written, and what their words mean; an empty one knows no label. `identity`
    is a hash of everything in it that decides.
    """

    def __init__(self, tables: Sequence[Table] = (), synonyms: Mapping[str, Sequence[str]] | None = None):
        self._entries: dict[str, Entry] = {}
        self._others: set[str] = set()
        for table in tables:
            self._lay_over(table)
        self._labels = {normal(name): label for label, entry in reversed(self._entries.items())
                        for name in (*entry.names, *entry.spellings)}  # fmt: skip
        self._labels |= {label: label for label in self._entries}
        self._synonyms = {label: tuple(names) for label, names in (synonyms or {}).items()}
        self._words = self._meanings()
        self._longest = max((len(word) for word in self._words if is_chinese(word)), default=0)
        entries = {label: astuple(entry) for label, entry in self._entries.items()}
        self.identity = digest_of([entries, sorted(self._others), self._synonyms])
        self._named = lru_cache(maxsize=16384)(self._find)  # completion and loss weights ask the same of a sample

    def __reduce__(self):
        """For worker processes: what was found so far stays behind."""
        return NameTable, ([Table("", self._entries, tuple(sorted(self._others)))], self._synonyms)

    def with_synonyms(self, synonyms: Mapping[str, Sequence[str]]) -> NameTable:
        """This table with further names of labels, which count wherever they stand and are written before its own."""
        return NameTable([Table("", self._entries, tuple(sorted(self._others)))], {**self._synonyms, **synonyms})

    def knows(self, label: str) -> bool:
        """Whether a label of a detector has an entry, by its own or another of its names."""
        return normal(label) in self._labels

    def unknown(self, labels: Sequence[str]) -> list[str]:
        """Those of `labels` without an entry or synonyms, in order, each once."""
        return [label for label in dict.fromkeys(labels) if not self.knows(label) and label not in self._synonyms]

    def names_of(self, label: str) -> list[str]:
        """A label and all that means the same: what the user added first, then the table's names."""
        entry = self._entry(label)
        return list(dict.fromkeys([label, *self._synonyms.get(label, ()), *(entry.names if entry else ())]))

    def name_of(self, label: str, chinese: bool = True) -> str | None:
        """The name of a label in one language; None where it has none, but a Latin label may stand in Chinese text."""
        same = [name for name in self._written(label) if is_chinese(name) == chinese]
        # a Latin name inside Chinese text is ordinary (T恤, iPhone); Chinese inside English text is not
        return same[0] if same else label if chinese else None

    def measure_of(self, label: str) -> str:
        """The measure word that counts a label's objects; 个 where none is known."""
        entry = self._entry(label)
        return (entry.measure if entry else "") or "个"

    def mentioned(self, caption: str, labels: Sequence[str]) -> list[str]:
        """Those of `labels` that a caption names by a name or a kind, in order, each once."""
        labels = list(dict.fromkeys(labels))
        keys = {label: self._key(label) for label in labels}
        extra = tuple(sorted({label for label in labels if not self.knows(label) and label not in self._synonyms}))
        named = self._named(caption, extra) if labels else ()
        return [label for label in labels if keys[label] in named]

    def _written(self, label: str) -> list[str]:
        """Names as completion prefers them: a detector's Moniter/TV is no word to write where there is a name."""
        if is_chinese(label):
            return self.names_of(label)
        entry = self._entry(label)
        return [*self._synonyms.get(label, ()), *(entry.names if entry else ()), label]

    def _key(self, label: str) -> str:
        """What a label's words are filed under: its entry, else itself."""
        return self._labels.get(normal(label), label)

    def _entry(self, label: str) -> Entry | None:
        return self._entries.get(self._key(label))

    def _lay_over(self, table: Table) -> None:
        """Take in a table; NamesError where a name is another label's already."""
        owners = {name.lower(): entry for entry in self._entries.values() for name in entry.names}
        for label, entry in table.entries.items():
            for name in entry.names:
                other = owners.get(name.lower())
                if other is not None and normal(other.label) != label:
                    raise NamesError(
                        f"{table.file}: labels.{entry.label}: {name} is a name of the label {other.label!r} already: "
                        f"add {entry.label!r} to the spellings of {other.label!r} if they are one, or make it a kind"
                    )
            words = set(entry.words)
            self._others -= words
            before = self._entries.get(label, Entry(entry.label))
            self._entries[label] = _joined(entry, before)
        silent = set(table.others)
        self._others |= silent
        self._entries = {label: _without(entry, silent) for label, entry in self._entries.items()}

    def _meanings(self) -> dict[str, Word]:
        """Every word in small letters with the entries it names; a user's synonyms count wherever they stand."""
        labels, anywhere = defaultdict(set, {word.lower(): set() for word in self._others}), set()
        for label, entry in self._entries.items():
            for word in entry.words:
                labels[word.lower()].add(label)
        for label, names in self._synonyms.items():
            for name in (label, *names):
                labels[name.lower()].add(self._key(label))
                anywhere.add(name.lower())
        return {word: Word(frozenset(named), word in anywhere) for word, named in labels.items()}

    def _find(self, caption: str, extra: tuple[str, ...]) -> frozenset[str]:
        """Entries that a caption names, and which of the labels `extra`, that have none."""
        words = dict(self._words) if extra else self._words
        for label in extra:
            known = words.get(label.lower(), Word())
            words[label.lower()] = Word(known.labels | {label}, True)
        longest = max(self._longest, *map(len, extra), 0)
        return occurrences(caption, words, longest)


def _joined(over: Entry, below: Entry) -> Entry:
    """One entry of two; names and measure of `over` come first, its word decides whether it is a name or a kind."""
    taken = set(over.words)
    joined = {key: (*getattr(over, key), *(word for word in getattr(below, key) if word not in taken))
              for key in LISTS}  # fmt: skip
    return Entry(below.label, measure=over.measure or below.measure, **joined)


def _without(entry: Entry, words: set[str]) -> Entry:
    if not words.intersection(entry.words):
        return entry
    left = {key: tuple(word for word in getattr(entry, key) if word not in words) for key in LISTS}
    return Entry(entry.label, measure=entry.measure, **left)


@lru_cache(maxsize=16)
def _opened(files: tuple[tuple[str, int, int], ...]) -> NameTable:
    return NameTable([read_table(path) for path, _, _ in files])


def open_names(names: Sequence[str | os.PathLike] = ("coco",)) -> NameTable:
    """The tables of these names or files, later ones laid over earlier ones.

    Raises:
        FileNotFoundError: a file is not there.
        NamesError: a table has a double, a contradiction or a wrong value; file and key are named.
    """
    paths = [find_table(name) for name in names]
    return _opened(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
