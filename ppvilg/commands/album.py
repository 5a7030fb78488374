"""A folder of numbered pictures that is filled by one or several runs, each of which may be killed and go on.

    00000.png ...    pictures, whole or not there, with what they were drawn from as text chunks
    run_00000.json   one for each run: its first number, and everything that decides its pictures
    grid.png         the pictures of the first run together; grid_2.png, ... those of later ones

A run with the record of an earlier one goes on where that one ended. Any other takes the numbers behind all others, so
that nothing is written over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ppvilg.files import write_whole

RECORD = "run_{:05d}.json"
MAX_GRID_PIXELS = 32 * 2**20  # a larger grid is made of smaller copies


class Run(NamedTuple):
    """Pictures `first` to `first + count - 1` of a folder."""

    folder: Path
    first: int
    count: int
    grid: Path
    is_new: bool

    def path(self, index: int) -> Path:
        """Of picture `index` of this run."""
        return self.folder / f"{self.first + index:05d}.png"

    def missing(self) -> list[int]:
        """Indices of the pictures that are not there."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def forget(self) -> None:
        """Removes the record, and the folder if it held nothing else."""
        (self.folder / RECORD.format(self.first)).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def open_run(folder: Path, count: int, decides: dict) -> Run:
    """The run of `count` pictures that `decides` describes (what JSON can hold): an earlier one, or a new one.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: a folder is needed for the pictures")
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"count": count, **decides}, ensure_ascii=False, indent=1) + "\n"
    while True:
        named = {path: re.fullmatch(r"run_(\d+)", path.stem) for path in folder.glob("run_*.json")}
        records = {int(found[1]): path for path, found in named.items() if found}
        for order, first in enumerate(sorted(records)):
            if records[first].read_bytes() == content.encode():
                return Run(folder, first, count, _grid(folder, order), False)
        first = max([_next_picture(folder), *(_behind(first, path) for first, path in records.items())])
        try:
            write_whole(folder / RECORD.format(first), content, replace=False)
        except FileExistsError:  # another run took these numbers in the meantime
            continue
        return Run(folder, first, count, _grid(folder, len(records)), True)


def _next_picture(folder: Path) -> int:
    return 1 + max((int(path.stem) for path in folder.glob("*.png") if re.fullmatch(r"\d+", path.stem)), default=-1)


def _behind(first: int, record: Path) -> int:
    """The first number that a run leaves to others."""
    try:
        return first + int(json.loads(record.read_text(encoding="utf-8"))["count"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is damaged ({error}): remove it, or give another folder") from error


def _grid(folder: Path, order: int) -> Path:
    """grid.png of the first run, grid_2.png of the second."""
    return folder / (f"grid_{order + 1}.png" if order else "grid.png")


def columns_of(count: int, together: int) -> int:
    """Columns of a grid of `count` pictures, `together` of which share a row: four, or about as many as rows."""
    if together > 1:
        return together * max(1, round(math.sqrt(count) / together))
    return min(count, max(4, math.ceil(math.sqrt(count))))


def small_copies(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures in RGB, all scaled down alike where together they have more than MAX_GRID_PIXELS."""
    sizes = []
    for path in paths:
        with Image.open(path) as picture:
            sizes.append(picture.size)
    scale = min(1.0, math.sqrt(MAX_GRID_PIXELS / sum(width * height for width, height in sizes)))
    copies = []
    for path, size in zip(paths, sizes):
        with Image.open(path) as picture:
            small = tuple(max(1, int(side * scale)) for side in size)
            copies.append(picture.convert("RGB") if scale == 1.0 else picture.convert("RGB").resize(small))
    return copies
