"""Write rendered scenes as tar shards in the webdataset convention, with their annotations in a sidecar JSONL."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .scenes import SHAPE_SHARES, SPLITS
from .worlds import world_by_name

TOOL = "ppvilg.emoji.prepare"
VERSION = "1"  # raise it when the same arguments give other pictures or captions
ANNOTATIONS = "annotations.jsonl"
LICENCES = "LICENCES.md"
USUAL_WORLD = "emoji64"


def make_sample(
    seed: int,
    index: int,
    split: str = "train",
    square_share: float = SHAPE_SHARES[0],
    world_name: str = USUAL_WORLD,
) -> tuple[bytes, dict]:
    """PNG bytes and annotation of sample `index`: a function of the arguments, the objects' pictures and VERSION."""
    world = world_by_name(world_name)
    scene = world.sample_scene(seed, index, split, square_share)
    captions = world.describe(scene, np.random.default_rng([seed, SPLITS.index(split), index, 1]))
    image, boxes = world.render(scene)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    annotation = {
        "key": f"{index:09d}",
        "width": scene.width,
        "height": scene.height,
        "captions": {"zh": captions.zh, "en": captions.en, "generated": captions.generated},
        "objects": [
            {"label": placement.name, "box": list(map(float, box)), "score": 1.0}
            for placement, box in zip(scene.objects, boxes)
        ],
        "style": scene.style,
        "background": scene.background,
        "layout": scene.layout,
        "omitted": list(captions.omitted),
        "held_out": world.scene_is_held_out(scene),
    }
    return buffer.getvalue(), annotation


def write_dataset(
    output: str | Path,
    num_samples: int,
    seed: int = 0,
    samples_per_shard: int = 10000,
    split: str = "train",
    square_share: float = SHAPE_SHARES[0],
    world_name: str = USUAL_WORLD,
) -> bool:
    """Write a split into the folder `output`; False when the very same dataset is already there.

    square_share: of square pictures; those of 2:3 and 3:2 share the rest evenly. world_name: of `worlds.WORLDS`.
    The folder appears under its name only when it is whole. Raises ValueError for arguments out of range and
    FileExistsError when `output` holds anything else.
    """
    if num_samples < 1 or samples_per_shard < 1 or seed < 0:
        raise ValueError(
            f"num_samples={num_samples} and samples_per_shard={samples_per_shard} must be >= 1 and seed={seed} >= 0"
        )
    if not 0 <= square_share <= 1:
        raise ValueError(f"square_share={square_share} must be from 0 to 1")
    world, output = world_by_name(world_name), Path(output).absolute()
    header = {
        "tool": TOOL,
        "version": VERSION,
        "seed": seed,
        "split": split,
        "num_samples": num_samples,
        "samples_per_shard": samples_per_shard,
        **world.identity(),
    }
    if square_share != SHAPE_SHARES[0]:  # datasets of the usual share do not name it
        header["square_share"] = square_share
    if _already_written(output, header):
        print(f"{output}: this dataset is already there, nothing to do")
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        _write_samples(partial, header, world_name)
        if world.licences is not None:
            (partial / LICENCES).write_text(world.licences(), encoding="utf-8")
        partial.chmod(0o755)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _already_written(output: Path, header: dict) -> bool:
    """True for the same dataset, False for nothing there; FileExistsError for anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    annotations = output / ANNOTATIONS
    if not annotations.is_file():
        raise FileExistsError(f"{output} exists and is not a dataset of {TOOL}; choose another output folder")
    with annotations.open(encoding="utf-8") as file:
        line = file.readline()
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise FileExistsError(f"{annotations} does not start with a header; choose another output folder")
    different = [key for key in sorted({*header, *found}) if header.get(key) != found.get(key)]
    if different:
        details = "; ".join(f"{key} {_short(found.get(key))}, not {_short(header.get(key))}" for key in different)
        raise FileExistsError(f"{output} holds another dataset ({details}); choose another output folder or remove it")
    return True


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _write_samples(folder: Path, header: dict, world_name: str) -> None:
    num_samples, per_shard = header["num_samples"], header["samples_per_shard"]
    square_share = header.get("square_share", SHAPE_SHARES[0])
    progress = tqdm(total=num_samples, desc=f"rendering {header['split']}", unit="sample")
    with progress, (folder / ANNOTATIONS).open("w", encoding="utf-8") as annotations:
        annotations.write(json.dumps(header, ensure_ascii=False) + "\n")
        for shard in range(math.ceil(num_samples / per_shard)):
            indices = range(shard * per_shard, min(num_samples, (shard + 1) * per_shard))
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                for index in indices:
                    png, annotation = make_sample(header["seed"], index, header["split"], square_share, world_name)
                    for name, content in _members(png, annotation):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    annotations.write(json.dumps(annotation, ensure_ascii=False) + "\n")
                    progress.update()


def _members(png: bytes, annotation: dict) -> Iterator[tuple[str, bytes]]:
    """The files of one sample, named and filled as img2dataset does."""
    key, caption = annotation["key"], annotation["captions"]["zh"]
    metadata = {"key": key, "caption": caption, "width": annotation["width"], "height": annotation["height"]}
    yield f"{key}.png", png
    yield f"{key}.txt", caption.encode()
    yield f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode()
