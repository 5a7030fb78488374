"""Shards and detectors for tests of annotation: pictures whose boxes are known."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of files, in order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int, samples: int) -> Path:
    """Shards of pictures with captions; keys number through."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = {}
        for number in range(shard * samples, (shard + 1) * samples):
            members[f"{number:06d}.jpg"] = encode(noise(number))
            members[f"{number:06d}.txt"] = f"第{number}张图".encode()
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def brightest(pictures: list[Image.Image]) -> list[list[tuple]]:
    """A detector as a function: a box around the brightest pixel, and one that is not sure."""
    found = []
    for picture in pictures:
        grey = np.asarray(picture.convert("L"))
        y, x = map(int, np.unravel_index(grey.argmax(), grey.shape))
        found.append([("star", grey[y, x] / 255, (x - 2, y - 2, x + 3, y + 3)), ("ghost", 0.05, (0, 0, 5, 5))])
    return found


def slowly(pictures: list[Image.Image]) -> list[list[tuple]]:
    """The same, with time to be killed in."""
    time.sleep(0.02)
    return brightest(pictures)
