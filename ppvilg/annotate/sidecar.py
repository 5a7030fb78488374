"""The sidecar of one unit: a header that says what made it, then a line for each sample. There whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ppvilg.files import naming_disk_errors

TOOL = "ppvilg annotate"


def encode(line: dict) -> str:
    """One line of JSON."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


@contextlib.contextmanager
def new_sidecar(path: Path):
    """A text file to write lines to, `PATH.part`, that becomes `path` when the block ends and stays `.part` if not.

    BlockingIOError: another process is writing it.
    """
    part = path.with_name(f"{path.name}.part")
    with naming_disk_errors(path), _opened_alone(part) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _opened_alone(part: Path):
    """The file, empty, and nobody else's while it is open; what a killed process left in it is dropped."""
    while True:
        with open(part, "a", encoding="utf-8", errors="surrogatepass") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"{part} is being written by another process: give each process its own --shard-index"
                ) from None
            if not _is_still(part, file):  # it was finished and renamed since it was opened
                continue
            file.truncate(0)
            yield file
            return


def _is_still(path: Path, file) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_header(path: Path) -> dict:
    """The first line of a sidecar; ValueError when `ppvilg annotate` did not write it."""
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        try:
            header = json.loads(file.readline())
            if header["tool"] == TOOL and isinstance(header["stages"], list):
                return header
        except (ValueError, KeyError, TypeError):
            pass
    raise ValueError(f"{path} is there already and was not made by {TOOL}: choose another --output")


def read_lines_of(path: Path) -> Iterator[dict]:
    """The lines about samples, one by one."""
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        next(file)
        yield from map(json.loads, file)


def check_same(path: Path, header: dict, stages: Sequence[dict]) -> None:
    """ValueError, naming the first thing that differs, when other stages made a sidecar than are to make the rest."""
    made, now = ([stage["name"] for stage in each] for each in (header["stages"], stages))
    if made != now:
        raise ValueError(f"{path} was made with the stages {', '.join(made) or 'none'}, not "
                         f"{', '.join(now) or 'none'}: choose another --output, or the same stages")  # fmt: skip
    for before, after in zip(header["stages"], json.loads(json.dumps(stages))):
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                raise ValueError(
                    f"{path} was made with another {before['name']}: {name} was {_short(before.get(name))} and is "
                    f"{_short(after.get(name))} now; choose another --output, or the same {before['name']} as before"
                )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
