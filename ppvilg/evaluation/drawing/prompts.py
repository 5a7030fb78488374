"""Prompts from files, and which of them an evaluation draws."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppvilg.data import open_source
from ppvilg.files import find_shipped, read_lines, read_text

LARGEST = 2**30  # bytes of a list of prompts


def read_prompts(path: str | os.PathLike, language: str = "zh") -> list[dict]:
    """[{"prompt", and where the file has them "id", "image_id", "width", "height"}, ...] in the order of the file.

    .txt: one per line. .jsonl: objects with "prompt". .json: captions of COCO, `{"annotations": [{"image_id", "id",
    "caption"}]}`. A folder or .tar: the captions of samples in `language`, with the sizes of their pictures. ValueError
    names the file and what is wrong with it.
    """
    path = find_shipped(path)  # of a recipe that came with ppvilg
    if path.suffix in (".txt", ".jsonl", ".json") and not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}")
    if path.suffix == ".txt":
        prompts = [{"prompt": line} for line in read_lines(path)]
    elif path.suffix == ".jsonl":
        lines = read_text(path, LARGEST).split("\n")  # not splitlines: JSON may hold its other ends of lines
        prompts = [_parse_line(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    elif path.suffix == ".json":
        prompts = _coco_captions(path)
    else:
        prompts = _captions_of_samples(path, language)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def choose_prompts(prompts: Sequence[dict], count: int, seed: int) -> list[dict]:
    """`count` of the prompts in random order, none twice; all in their own order when there are just as many.

    ValueError when there are fewer.
    """
    if count > len(prompts):
        raise ValueError(f"count={count} pictures are asked for, but there are {len(prompts)} prompts")
    if count == len(prompts):
        return list(prompts)
    return [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))[:count]]


def _parse_line(path: Path, number: int, line: str) -> dict:
    try:
        prompt = json.loads(line)
        json.dumps(prompt, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # halves of characters are no UTF-8
        raise ValueError(f"{path}:{number} is not JSON ({error})") from error
    if not isinstance(prompt, dict) or not isinstance(prompt.get("prompt"), str) or not prompt["prompt"].strip():
        raise ValueError(f'{path}:{number} has no "prompt"')
    return prompt


def _coco_captions(path: Path) -> list[dict]:
    try:
        annotations = json.loads(read_text(path, LARGEST))["annotations"]
        return [
            {"prompt": each["caption"].strip(), "id": each["id"], "image_id": each["image_id"]} for each in annotations
        ]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not a file of COCO captions, {{"annotations": [...]}} ({error!r})') from error


def _captions_of_samples(path: Path, language: str) -> list[dict]:
    source, prompts = open_source(path), []
    for i, (width, height) in enumerate(source.sizes.tolist()):
        captions = source.read_text(i).captions
        if language not in captions:
            raise ValueError(f"{path}: sample {source.keys[i]} has no caption in {language!r}, only {sorted(captions)}")
        prompts.append({"prompt": captions[language], "id": source.keys[i], "width": width, "height": height})
    return prompts
