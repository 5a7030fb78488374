"""Tables of names: one YAML file each, read and checked.

A table has `labels`: for each label of a detector its names `zh` and `en` (the first of each is the one that completion
writes), its `measure` word, and `zh_kinds`, `en_kinds`: words that name a kind of it; `spellings`
are labels of other detectors for it, which no caption has. `others` are words that end like a name and mean something
else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ppvilg.files import read_text

WORDS = ("zh", "en", "zh_kinds", "en_kinds")
LISTS = (*WORDS, "spellings")
_SHIPPED = Path(__file__).parent


class NamesError(ValueError):
    """A table of names that cannot be used; the message names file and key."""


@dataclass(frozen=True)
class Entry:
    """What one label is called."""

    label: str
    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    measure: str = ""
    zh_kinds: tuple[str, ...] = ()
    en_kinds: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What means the same as the label."""
        return (*self.zh, *self.en)

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that names it."""
        return (*self.zh, *self.en, *self.zh_kinds, *self.en_kinds)


@dataclass(frozen=True)
class Table:
    """One file: entries by normal label, and words that name nothing."""

    file: str
    entries: Mapping[str, Entry] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def normal(label: str) -> str:
    """A label as it is compared: `Traffic_Light` and `traffic light` are one."""
    return " ".join(label.replace("_", " ").replace("-", " ").lower().split())


def shipped_tables() -> list[str]:
    """Names of the tables that come with ppvilg."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yml"))


def find_table(name: str | os.PathLike) -> Path:
    """The user's file of this name, else the table that comes with ppvilg; FileNotFoundError names those there are."""
    path = Path(name)
    if path.is_file():
        return path
    if os.fspath(name) in shipped_tables():
        return _SHIPPED / f"{name}.yml"
    raise FileNotFoundError(
        f"no table of names at {path}: give a YAML file, or one of those that come with ppvilg: "
        f"{', '.join(shipped_tables())}"
    )


def read_table(path: str | os.PathLike) -> Table:
    """A table, checked. NamesError names file and key of a double, a contradiction or a value of the wrong kind."""
    file = os.fspath(path)
    content = _parse(file, read_text(path))
    _check_keys(content, ("labels", "others"), file, "")
    labels = content.get("labels") or {}
    if not isinstance(labels, dict):
        raise NamesError(f"{file}: labels must be a mapping of labels, found {_shown(labels)}")
    entries: dict[str, Entry] = {}
    for label, value in labels.items():
        entry = _entry(file, label, value)
        if (same := entries.get(normal(entry.label))) is not None:
            raise NamesError(f"{file}: labels.{label} is there twice, the other time as {same.label!r}: join them")
        entries[normal(entry.label)] = entry
    others = _words(file, "others", content.get("others"))
    _check_contradictions(file, entries, others)
    return Table(file, entries, others)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as ever, but a key that is there twice is an error, where PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key_node, _ in node.value:
            key, line = str(self.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in seen:
                raise NamesError(f"{key} is there twice (lines {seen[key]} and {line}): join them")
            seen[key] = line
        return super().construct_mapping(node, deep)


def _parse(file: str, text: str) -> dict:
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except NamesError as error:
        raise NamesError(f"{file}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise NamesError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise NamesError(f"{file}: a table has the keys labels and others, found {_shown(content)}")
    return content


def _check_keys(content: dict, known: tuple[str, ...], file: str, place: str) -> None:
    for key in content:
        if key not in known:
            raise NamesError(f"{file}: {place}{key} is no key of a table; known: {', '.join(known)}")


def _entry(file: str, label: object, value: object) -> Entry:
    if not isinstance(label, str) or not normal(label):
        raise NamesError(f"{file}: labels.{label}: a label is a text, found {_shown(label)}: put it in quotation marks")
    if not isinstance(value, dict):
        raise NamesError(f"{file}: labels.{label} must have keys such as zh and en, found {_shown(value)}")
    _check_keys(value, (*LISTS, "measure"), file, f"labels.{label}.")
    words = {key: _words(file, f"labels.{label}.{key}", value.get(key)) for key in LISTS}
    seen: dict[str, str] = {}
    for key, listed in words.items():
        for word in listed:
            if (first := seen.setdefault(word.lower(), key)) != key:
                raise NamesError(f"{file}: labels.{label}.{key}: {word} is in labels.{label}.{first} too: strike one")
    if not any(words.values()):
        raise NamesError(f"{file}: labels.{label} has no words: give zh: [...] or en: [...]")
    measure = value.get("measure", "")
    if not isinstance(measure, str):
        raise NamesError(f"{file}: labels.{label}.measure is a text, found {_shown(measure)}")
    return Entry(label, measure=measure, **words)


def _words(file: str, place: str, listed: object) -> tuple[str, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise NamesError(f"{file}: {place} must be a list of words, found {_shown(listed)}")
    for word in listed:
        if not isinstance(word, str) or not word.strip():
            raise NamesError(f"{file}: {place}: a word is a text, found {_shown(word)}: put it in quotation marks")
    words = [word.strip() for word in listed]
    lower = [word.lower() for word in words]
    for word in words:
        if lower.count(word.lower()) > 1:
            raise NamesError(f"{file}: {place}: {word} is there twice: strike one")
    return tuple(words)


def _check_contradictions(file: str, entries: Mapping[str, Entry], others: tuple[str, ...]) -> None:
    """No name is that of two labels, no word names something and nothing."""
    owners: dict[str, str] = {}
    for entry in entries.values():
        for key in ("zh", "en", "spellings"):
            for name in getattr(entry, key):
                place = f"labels.{entry.label}.{key}"
                if (other := owners.setdefault(name.lower(), place)) != place:
                    raise NamesError(f"{file}: {name} is in {other} and in {place}: a name is that of one label; "
                                     "a word for a kind of several belongs in their zh_kinds or en_kinds")  # fmt: skip
    silent = set(others)
    for entry in entries.values():
        for key, word in _keyed(entry):
            if word in silent:
                raise NamesError(f"{file}: {word} is in others and in labels.{entry.label}.{key}: it cannot name "
                                 "something and nothing")  # fmt: skip


def _keyed(entry: Entry) -> Iterator[tuple[str, str]]:
    for key in WORDS:
        for word in getattr(entry, key):
            yield key, word


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
