"""Two folders of pictures for the same prompts -> pairs, or one sentence on why they do not pair up."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import UnidentifiedImageError

from ppvilg.pipelines import read_metadata

from ..drawing.folder import METADATA
from ..drawing.prompts import read_prompts

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_NUMBERED = re.compile(r"(\d+)(?:[_-](\d+))?")


@dataclass(frozen=True)
class PromptPictures:
    """The pictures of one prompt. `line` is what is known of the prompt besides its text (class, other languages)."""

    prompt: str
    pictures: tuple[Path, ...]
    line: dict


@dataclass(frozen=True)
class Pair:
    """One prompt and its pictures from two folders."""

    prompt: str
    first: tuple[Path, ...]
    second: tuple[Path, ...]
    line: dict


def read_pictures(folder: str | os.PathLike, prompts: str | os.PathLike | None = None) -> list[PromptPictures]:
    """Prompts and their pictures from a folder in one of three layouts.

    GenEval's (`evaluation_metadata.jsonl`, `00000/samples/0000.png`), as the suites of this package write it; numbered
    pictures `00000.png`, or `00000_0.png` for several of a prompt, in the order of a `prompts` file (see
    read_prompts); numbered PNGs that say their prompt themselves, as tools/infer.py writes them.
    ValueError names the folder and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of pictures at {folder}")
    if (folder / METADATA).is_file():
        lines = read_prompts(folder / METADATA)
        files = [_files(folder / f"{index:05d}" / "samples") for index in range(len(lines))]
    elif prompts is not None:
        lines = read_prompts(prompts)
        files = _numbered(folder, len(lines))
    else:
        return _telling(folder)
    empty = [index for index, pictures in enumerate(files) if not pictures]
    if empty:
        raise ValueError(f"{folder} has no pictures for {len(empty)} of {len(lines)} prompts, first {empty[0]:05d}")
    return [PromptPictures(line["prompt"], tuple(pictures), line) for line, pictures in zip(lines, files)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS and path.name[0] != ".")


def _numbered(folder: Path, count: int) -> list[list[Path]]:
    """Pictures of prompts 0 to count - 1 by the number in their names; other names (grid.png) do not count."""
    files: list[list[tuple[int, Path]]] = [[] for _ in range(count)]
    for path in _files(folder):
        match = _NUMBERED.fullmatch(path.stem)
        if match and int(match[1]) >= count:
            raise ValueError(f"{path} is picture {int(match[1])}, but there are only {count} prompts, counted from 0")
        if match:
            files[int(match[1])].append((int(match[2] or 0), path))
    return [[path for _, path in sorted(entries)] for entries in files]


def _telling(folder: Path) -> list[PromptPictures]:
    pictures: dict[str, list[Path]] = {}
    for path in _files(folder):
        if not _NUMBERED.fullmatch(path.stem):
            continue
        try:
            prompt = read_metadata(path).get("prompt")
        except (UnidentifiedImageError, OSError, SyntaxError, AttributeError):
            prompt = None
        if not prompt:
            raise ValueError(
                f"{path} does not say its prompt, and {folder} has no {METADATA}: give a list of prompts (prompts=...)"
            )
        pictures.setdefault(prompt, []).append(path)
    if not pictures:
        raise ValueError(f"{folder} holds no numbered pictures (00000.png, 00001.png, ...) and no {METADATA}")
    return [PromptPictures(prompt, tuple(paths), {"prompt": prompt}) for prompt, paths in pictures.items()]


def pair_up(first: Sequence[PromptPictures], second: Sequence[PromptPictures], names: tuple[str, str]) -> list[Pair]:
    """Pairs in the order of `first`, by the text of the prompt; ValueError when a prompt or a picture has no partner.

    A prompt that stands there several times (in different shapes) pairs up in order.
    """
    texts = [Counter(entry.prompt for entry in entries) for entries in (first, second)]
    for (mine, other), (name, lacking) in zip((texts, texts[::-1]), (names, names[::-1])):
        alone = list((mine - other).elements())
        if alone:
            total = sum(mine.values())
            raise ValueError(
                f"{name} and {lacking} do not pair up: {len(alone)} of the {total} prompts of {name} are not in "
                f"{lacking}, first {alone[0]!r}"
            )
    partners: dict[str, list[PromptPictures]] = {}
    for entry in second:
        partners.setdefault(entry.prompt, []).append(entry)
    pairs = []
    for entry in first:
        partner = partners[entry.prompt].pop(0)
        if len(entry.pictures) != len(partner.pictures):
            raise ValueError(
                f"{names[0]} and {names[1]} do not pair up: {len(entry.pictures)} and {len(partner.pictures)} pictures "
                f"of {entry.prompt!r}"
            )
        pairs.append(Pair(entry.prompt, entry.pictures, partner.pictures, {**partner.line, **entry.line}))
    return pairs
