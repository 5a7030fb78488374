"""The samples of one shard, or of a folder, as a list in memory: for work that goes through data shard by shard.

What a sample is, and what is wrong with one, is decided by the same code as for training; but a sample need not have a
caption, and a folder of pictures need not have a JSONL.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ppvilg.files import MAX_PIXELS, PictureError, read_text

from .index import HOME
from .indexing import fill_from_folder, fill_from_shard, find_files, find_listing, is_picture
from .indexing.entries import Found, add
from .records import BadSample, decode_image


@dataclass(frozen=True)
class Listed:
    """One sample: `entry` has "captions", and "objects", "tags", "extra" where the JSONL of its folder gives them."""

    key: str
    source: str
    path: str
    offset: int
    length: int
    size: tuple[int, int]
    entry: dict

    def read(self, file=None) -> Image.Image:
        """The upright RGB picture, from the open file that holds it or from its own; BadSample when that fails."""
        try:
            if file is None:
                data = Path(self.path).read_bytes()
            else:
                data = os.pread(file.fileno(), self.length, self.offset)
        except OSError as error:
            raise BadSample(self.key, self.source, f"cannot be read ({error.strerror or error})") from error
        return decode_image(data, self.key, self.source)


@dataclass
class Listing:
    """Takes samples in like an IndexWriter, and keeps them. `problems` are BadSample; `left_out` too, with a reason."""

    base: str
    max_pixels: int = MAX_PIXELS
    needs_captions: bool = False
    samples: list[Listed] = field(default_factory=list)
    problems: list[BadSample] = field(default_factory=list)
    left_out: list[BadSample] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add_file(self, path: str, length: int) -> int:
        """Note a shard; returns its number."""
        self.files.append(path)
        return len(self.files) - 1

    def append(self, key: str, size: tuple[int, int], location: tuple[int, int, int, int], extension: str, entry: dict,
               annotated: bool) -> None:
        """Take a sample; of a folder's, `extension` is the name of its file."""
        number, offset, length, _ = location
        path = os.path.join(self.base, extension) if number < 0 else self.files[number]
        source = path if number < 0 else f"{path}:{key}.{extension}"
        self.samples.append(Listed(key, source, path, offset, length, size, entry))

    def reject(self, key: str, source: str, reason: str) -> None:
        """Name what cannot be used."""
        self.problems.append(BadSample(key, os.path.relpath(source, self.base or "."), reason))

    def leave_out(self, key: str, source: str, reason: str) -> None:
        """Name what the JSONL of a folder wants left out."""
        self.left_out.append(BadSample(key, os.path.relpath(source, self.base or "."), reason))

    def unlisted(self, name: str) -> None:
        """A picture of which the JSONL does not speak is no sample, but named."""
        self.problems.append(BadSample("", name, "no line speaks of this picture"))

    def wrong_hint(self, source: str, declared: tuple, real: tuple) -> None:
        """A declared size that is not the picture's: the picture decides."""


def list_shard(path: str) -> Listing:
    """The samples of one tar and everything that is wrong with it; its sidecars are not looked at."""
    listing = Listing(os.path.dirname(path))
    fill_from_shard(listing, path)
    return listing


def list_folder(folder: str) -> Listing:
    """The pictures of a folder: those of its JSONL, or all, each with the caption of a .txt of its name beside it.

    ValueError when there are several JSONL.
    """
    folder = os.path.normpath(folder)
    listing = Listing(folder)
    files, unreadable = find_files(folder, skip=HOME)
    if glob.glob(os.path.join(glob.escape(folder), "*.jsonl")):
        fill_from_folder(listing, folder, find_listing(folder), files, unreadable)
        return listing
    for error in unreadable:
        listing.reject("", str(error.filename), f"folder cannot be read ({error.strerror})")
    for name in sorted(filter(is_picture, files)):
        _add_picture(listing, name, files)
    return listing


def _add_picture(listing: Listing, name: str, files: dict[str, str]) -> None:
    """Take a picture that no JSONL speaks of."""
    path, stem = files[name], os.path.splitext(name)[0]
    text = files.get(f"{stem}.txt")
    try:
        caption = read_text(text) if text else ""
        content = Path(path).read_bytes
        add(listing, Found(stem, path, (-1, 0, os.path.getsize(path), 0), name, content, caption))
    except (OSError, ValueError, PictureError) as error:
        listing.reject(stem, path, str(error))
