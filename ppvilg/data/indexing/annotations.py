"""Sidecars: lines of JSON about samples, joined by shard and key.

A line speaks of the shard that it names, or of the one beside which its sidecar lies (`00000.annotations.jsonl` of
`00000.tar`), or else of the one sample with its key in the shards that the sidecar is for. Where several shards have
that key, the line is nobody's, and is named.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ppvilg.files import LFS_POINTER

from .entries import json_object
from .writer import IndexWriter

_HEAD = 2**16  # bytes by which an encoding is judged


@dataclass(frozen=True)
class Sidecars:
    """`shared`: {path: numbers of the shards it speaks of}; `own`: {number of a shard: path}."""

    shared: dict[str, Sequence[int]] = field(default_factory=dict)
    own: dict[int, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return [*self.shared, *self.own.values()]


def find_sidecars(shards: Sequence[str], given: str | None) -> Sidecars:
    """The sidecars of shards: the file `given`, or those in the folder `given`, or those beside the shards."""
    if given is not None and not os.path.isdir(given):
        return Sidecars({given: range(len(shards))})
    shared, own = defaultdict(list), {}
    for number, shard in enumerate(shards):
        folder, name = os.path.dirname(shard) if given is None else given, os.path.basename(shard)
        beside = os.path.join(folder, name.removesuffix(".tar") + ".annotations.jsonl")
        if os.path.isfile(beside):
            own[number] = beside
        shared[os.path.join(folder, "annotations.jsonl")].append(number)
    found = Sidecars({path: numbers for path, numbers in shared.items() if os.path.isfile(path)}, own)
    if given is not None and not found.paths:
        raise FileNotFoundError(f"{given}: holds neither annotations.jsonl nor NAME.annotations.jsonl of these shards")
    return found


def read_jsonl(path: str, digest=None) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, line) of the lines that hold something; `digest` is updated with every byte.

    ValueError, with the remedy, when the file as a whole is no UTF-8 text.
    """
    with open(path, "rb") as file:
        _check_encoding(path, file.read(_HEAD))
        file.seek(0)
        start = 0
        for number, line in enumerate(file, start=1):
            if digest is not None:
                digest.update(line)
            if line.strip():
                yield number, start, line
            start += len(line)


def _check_encoding(path: str, head: bytes) -> None:
    if head.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull'")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:4]:
        raise ValueError(f"{path} is UTF-16 or UTF-32: save it as UTF-8")
    lines = [line for line in head.splitlines()[: -1 if len(head) == _HEAD else None] if not line.isascii()]
    if lines and not any(_is_utf8(line) for line in lines):
        raise ValueError(f"{path} is not UTF-8; it may be GBK: save it as UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class Annotations:
    """Where the lines of sidecars are, by place and key, in a temporary SQLite file.

    A place is the number of a shard, or -1 - n for the n-th shared sidecar's lines that name none.
    """

    def __init__(self, folder: Path, writer: IndexWriter, shards: Sequence[str], sidecars: Sidecars):
        self.path, self.writer, self.shards, self.sidecars = folder / "keys.sqlite", writer, shards, sidecars
        self.numbers = {path: number for number, path in enumerate(sidecars.paths)}
        self.digest, self.files = hashlib.sha256(), {}
        self.shared_of = {shard: -1 - n for n, numbers in enumerate(sidecars.shared.values()) for shard in numbers}
        self.base = sqlite3.connect(self.path, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-65536",
            "CREATE TABLE IF NOT EXISTS several (key BLOB, place INTEGER, PRIMARY KEY (key, place)) WITHOUT ROWID",
            "DROP TABLE IF EXISTS line",
            "CREATE TABLE line (key BLOB, place INTEGER, file INTEGER, start INTEGER, length INTEGER, number INTEGER, "
            "shard INTEGER, PRIMARY KEY (key, place)) WITHOUT ROWID", "BEGIN",
        ):  # fmt: skip
            self.base.execute(statement)
        self.found_several = False
        writer.has_annotations = bool(self.numbers)
        for path in sidecars.shared:
            self._load(path, self.shared_of[sidecars.shared[path][0]])

    def open_shard(self, shard: int) -> None:
        """Load the sidecar that lies beside a shard."""
        if shard in self.sidecars.own:
            self._load(self.sidecars.own[shard], shard)

    def take(self, shard: int, key: str) -> bytes | None:
        """The line about a sample, once."""
        if not self.numbers:
            return None
        line = "SELECT file, start, length FROM line WHERE key = ? AND place = ? AND shard IS NULL"
        for place in (shard, self.shared_of.get(shard)):
            row = (_bytes(key), place)
            found = self.base.execute(line, row).fetchone()
            if found is not None:
                self.base.execute("UPDATE line SET shard = ? WHERE key = ? AND place = ?", (shard, *row))
                self.files[found[0]].seek(found[1])
                return self.files[found[0]].read(found[2])
            if place is not None and place < 0:
                self._note_several(shard, row)
        return None

    def _note_several(self, shard: int, row: tuple[bytes, int]) -> None:
        """A second shard has a key of which a shared sidecar speaks without saying which is meant."""
        other = self.base.execute("SELECT shard FROM line WHERE key = ? AND place = ?", row).fetchone()
        if other is not None and other[0] not in (None, shard):
            self.found_several = True
            self.base.execute("INSERT OR IGNORE INTO several VALUES (?, ?)", row)

    def close_shard(self, shard: int) -> None:
        """Let go of the sidecar that lies beside a shard."""
        if shard in self.sidecars.own:
            self.files.pop(self.numbers[self.sidecars.own[shard]]).close()

    def finish(self) -> None:
        """Name the lines that no sample took."""
        for (key,) in self.base.execute("SELECT key FROM line WHERE shard IS NULL ORDER BY file, start"):
            self.writer.unmatched(key.decode("utf-8", "surrogatepass"))
        self.writer.annotation_hash = self.digest.hexdigest() if self.numbers else ""

    def close(self) -> None:
        """Let go of the files; which lines speak of several samples is kept."""
        self.base.execute("COMMIT")
        self.base.close()
        for file in self.files.values():
            file.close()

    def _load(self, path: str, place: int) -> None:
        """Note where each sample's line is; a broken or repeated line is named."""
        file, header = self.numbers[path], None
        for number, start, line in read_jsonl(path, self.digest):
            source = f"{path}:{number}"
            try:
                entry = json_object(line)
                if header is None:
                    header = self._check_header(path, entry)
                    continue
                key = entry.get("key")
                if not isinstance(key, str) or not key:
                    raise ValueError('has no "key"')
                self._keep(key, self._place_of(entry, place), source, (file, start, len(line), number))
            except ValueError as error:
                if header is None:
                    raise ValueError(f"{source}: the first line must be a header: {error}") from None
                self.writer.reject("", source, str(error))
        self.files[file] = open(path, "rb")  # noqa: SIM115 (closed in close_shard or close)

    @staticmethod
    def _check_header(path: str, entry: dict) -> dict:
        if "tool" not in entry or "key" in entry:
            raise ValueError('{"tool": ..., "version": ...}')
        return entry

    def _keep(self, key: str, place: int | None, source: str, where: tuple[int, int, int, int]) -> None:
        if place is None:
            self.writer.unmatched(key)
        elif place < 0 and self._is_several(key, place):
            self.writer.reject(key, source, 'its key is in several shards: the line must name its "shard"')
        elif not self.base.execute("INSERT OR IGNORE INTO line VALUES (?, ?, ?, ?, ?, ?, NULL)",
                                   (_bytes(key), place, *where)).rowcount:  # fmt: skip
            self.writer.reject(key, source, "key is annotated twice; the first entry is used")

    def _is_several(self, key: str, place: int) -> bool:
        found = self.base.execute("SELECT 1 FROM several WHERE key = ? AND place = ?", (_bytes(key), place))
        return found.fetchone() is not None

    def _place_of(self, entry: dict, place: int) -> int | None:
        """The place of a line: of the shard it names, if any; None when that shard is not among ours."""
        name = entry.get("shard")
        if name is None:
            return place
        if not isinstance(name, str):
            raise ValueError(f'"shard" must be the name of a shard, not {name!r}')
        found = self._shards_named.get(name.replace("\\", "/").removeprefix("./").removesuffix(".tar"), [])
        if len(found) > 1:
            raise ValueError(f'"shard": {name!r} is the name of {len(found)} shards: write its folder as well')
        if place >= 0 and found != [place]:
            raise ValueError(f'"shard": {name!r} is not the shard beside which the line stands')
        return found[0] if found else None

    @cached_property
    def _shards_named(self) -> dict[str, list[int]]:
        """Numbers of the shards of a name without .tar, with and without folders."""
        named = defaultdict(list)
        for number, shard in enumerate(self.shards):
            relative = os.path.relpath(shard, self.writer.base or ".").replace(os.sep, "/")
            for name in {relative, os.path.basename(shard), os.path.abspath(shard)}:
                named[name.removesuffix(".tar")].append(number)
        return named


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
