"""Records: a picture with its captions, objects and tags; checks of boxes, decoding of pictures."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ppvilg.files import MAX_PIXELS, PictureError, picture_size, read_picture

CAPTION_KINDS = ("zh", "en", "generated")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# Names under which a picture may lie that is one of ours in truth, or of a type that is not supported.
OTHER_PICTURE_EXTENSIONS = ("jpe", "jfif", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "jp2", "ppm")
BAD_SAMPLE_SHARE = 0.1  # of a data set, by default
MAX_SHARDS = 2**20  # that one range may stand for
MAX_TEXT_BYTES = 2**20  # a caption or .json larger than this is damage, not text


class BadSample(ValueError):
    """A sample or piece of a shard that cannot be used: `key` ("" when unknown), `source` ("file:member"), `reason`."""

    def __init__(self, key: str, source: str, reason: str):
        super().__init__(key, source, reason)
        self.key = key
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(
            part for part in (self.source, f"sample {self.key!r}" if self.key else "", self.reason) if part
        )


class TooManyBadSamples(RuntimeError):
    """More of a data set is bad than may be; the message names the first ones and the list of all."""


@dataclass(frozen=True)
class BadSampleLimit:
    """At most `share` of the `samples` of a data set may be bad (recipe: `data.bad_sample_share`), rounded up.

    Different samples are counted, however often each is met. Nothing is deleted when there are too many: what was
    made of the good ones stays. ValueError when the share is not within [0, 1].
    """

    samples: int
    share: float = BAD_SAMPLE_SHARE

    def __post_init__(self):
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"data.bad_sample_share={self.share} must be within [0, 1]")

    @property
    def count(self) -> int:
        """So many may be bad."""
        return math.ceil(round(self.share * self.samples, 6))

    def check(self, bad: int, first: Iterable[BadSample] = (), listing: str | os.PathLike | None = None) -> None:
        """Raise TooManyBadSamples when `bad` are more; `first` are shown, `listing` is where all are named."""
        if bad <= self.count:
            return
        lines = "".join(f"\n  {problem}" for problem in itertools.islice(first, 10))
        raise TooManyBadSamples(
            f"{bad} bad samples of {self.samples}: more than data.bad_sample_share={self.share} allows. "
            f"{f'All are named in {listing}. ' if listing else ''}Mend or remove them, or raise "
            f"data.bad_sample_share; what was made of the others is kept. The first:{lines}"
        )


@dataclass(frozen=True)
class ObjectBox:
    """One detected object: `box` is (x0, y0, x1, y1) in pixels of the upright picture, x1 and y1 exclusive."""

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True)
class Record:
    """One sample; `image` is RGB or None (text only), `captions` holds any of "zh", "en", "generated"."""

    key: str
    image: Image.Image | None = None
    captions: dict[str, str] = field(default_factory=dict)
    objects: list[ObjectBox] = field(default_factory=list)
    tags: list[tuple[str, str]] | None = None
    source: str = ""
    extra: dict = field(default_factory=dict)


def validate_objects(objects: Sequence[ObjectBox], width: int, height: int, key: str = "", source: str = "") -> None:
    """Raise BadSample when a box is not finite, has no area or leaves the width x height picture."""
    for item in objects:
        x0, y0, x1, y1 = item.box
        fault = None
        if not all(map(math.isfinite, item.box)):
            fault = "is not finite"
        elif x0 < 0 or y0 < 0:
            fault = "has a negative corner"
        elif x1 <= x0 or y1 <= y0:
            fault = "has no area (x1 <= x0 or y1 <= y0)"
        elif x1 > width or y1 > height:
            fault = f"leaves the {width}x{height} picture"
        if fault:
            raise BadSample(key, source, f"box {list(item.box)} of {item.label!r} {fault}")


def decode_image(data: bytes, key: str = "", source: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright RGB picture, as `ppvilg.files.read_picture` reads it; BadSample when that fails."""
    try:
        return read_picture(data, max_pixels)
    except PictureError as error:
        raise BadSample(key, source, str(error)) from error


def image_size(data: bytes, key: str = "", source: str = "", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of the upright picture from its header, without decoding; BadSample when there is no header."""
    try:
        return picture_size(data, max_pixels)
    except PictureError as error:
        raise BadSample(key, source, str(error)) from error


def expand_braces(pattern: str) -> list[str]:
    """`x-{000..009}.tar` or `{a,b}.tar` -> list of paths, zero padding kept; a plain path gives itself."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        first, last = int(ends[1]), int(ends[2])
        if last < first:
            raise ValueError(f"{pattern!r}: range {match[0]} runs backwards")
        if last - first >= MAX_SHARDS:
            raise ValueError(f"{pattern!r}: range {match[0]} has more than {MAX_SHARDS} shards")
        choices = [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise ValueError(f"{pattern!r}: {match[0]} is neither a range like {{000..009}} nor a list like {{a,b}}")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return list(itertools.chain.from_iterable(expand_braces(head + choice + tail) for choice in choices))
