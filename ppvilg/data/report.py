"""What became of every sample, as lines of JSON that a script can read; lines are only ever added."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .records import BadSample
from .source import RecordSource

_FILE = re.compile(r"(.*?\.(?:tar|jsonl))(?::.*)?", re.DOTALL)
_PARTICULAR = re.compile(r"\(.*\)|\[.*?\]|'.*?'|(?:/\S+)|\d+", re.DOTALL)


def file_of(source: str) -> str:
    """The shard, sidecar or picture that the source of a problem speaks of: "a.tar:7.png" -> "a.tar"."""
    match = _FILE.fullmatch(source)
    return match[1] if match else source


def kind_of(reason: str) -> str:
    """A reason without what is particular to one sample, to count by: names and numbers become *."""
    return _PARTICULAR.sub("*", reason)


class Tally:
    """Problems counted by reason and by file; keeps no problem."""

    def __init__(self, problems: Iterable[BadSample] = ()):
        self.reasons, self.files = Counter(), Counter()
        for problem in problems:
            self.add(problem)

    def add(self, problem: BadSample) -> None:
        """Count one."""
        self.reasons[kind_of(problem.reason)] += 1
        self.files[file_of(problem.source)] += 1


class DataReport:
    """Appends to one file: a line about the data, then a line per epoch, and one when reading ends."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def data(self, source: RecordSource, **fields) -> None:
        """What indexing found: every file with a problem is named, with how many and the first reason."""
        manifest = source.index.manifest
        files: dict[str, list] = {}
        for problem in source.index.problems():
            entry = files.setdefault(file_of(problem.source), [0, problem.reason])
            entry[0] += 1
        self._write({
            "what": "data", "index": str(source.index.folder), "fingerprint": source.fingerprint(),
            "files": manifest["files_used"], "samples": len(source), "problems": manifest["problems"],
            "annotations_without_sample": manifest["unmatched"],
            "samples_without_annotation": manifest["unannotated"], "left_out": manifest["left_out"],
            "files_with_problems": {name: {"problems": n, "first": first} for name, (n, first) in files.items()},
            "files_changed_since_the_index_before": manifest["changed"], **fields,
        })  # fmt: skip

    def samples(self, what: str, read: int, used: int, skipped: Tally, **fields) -> None:
        """What reading found: samples read, used, and those skipped by reason and by file."""
        self._write({"what": what, "read": read, "used": used, "skipped": read - used,
                     "skipped_by_reason": dict(skipped.reasons), "skipped_by_file": dict(skipped.files), **fields}
                    )  # fmt: skip

    def _write(self, row: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
