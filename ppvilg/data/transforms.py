"""Geometry of training pictures: shape buckets, cover-resize, crop and flip, with the boxes carried along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .records import ObjectBox, validate_objects


@dataclass(frozen=True)
class Placement:
    """How a picture lands in its bucket: `source_box` (x0, y0, x1, y1) is cut out, resized, maybe flipped."""

    source_size: tuple[int, int]
    source_box: tuple[float, float, float, float]
    width: int
    height: int
    flip: bool = False

    def image(self, image: Image.Image) -> np.ndarray:
        """RGB picture of `source_size` -> uint8 (height, width, 3)."""
        if image.mode != "RGB" or image.size != self.source_size:
            raise ValueError(f"expected an RGB picture of {self.source_size}, got {image.mode} {image.size}")
        if self.source_box != (0.0, 0.0, *image.size) or image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.LANCZOS, box=self.source_box)
        pixels = np.asarray(image)
        return np.ascontiguousarray(pixels[:, ::-1]) if self.flip else pixels

    def objects(self, objects: Sequence[ObjectBox], min_visible: float = 0.0) -> list[ObjectBox]:
        """Boxes in source pixels -> output pixels, cut at the border; dropped when less of their area is visible."""
        left, top, right, bottom = self.source_box
        scale_x, scale_y = self.width / (right - left), self.height / (bottom - top)
        carried = []
        for item in objects:
            x0, y0, x1, y1 = item.box
            full = (x1 - x0) * scale_x * (y1 - y0) * scale_y
            x0, x1 = (min(max((x - left) * scale_x, 0.0), float(self.width)) for x in (x0, x1))
            y0, y1 = (min(max((y - top) * scale_y, 0.0), float(self.height)) for y in (y0, y1))
            visible = (x1 - x0) * (y1 - y0)
            if visible <= 0 or visible < min_visible * full:
                continue
            if self.flip:
                x0, x1 = self.width - x1, self.width - x0
            carried.append(replace(item, box=(x0, y0, x1, y1)))
        return carried


def to_pixel_values(pixels: np.ndarray) -> np.ndarray:
    """uint8 pictures (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1], as the networks take them."""
    count, height, width, channels = pixels.shape
    values = np.empty((count, channels, height, width), dtype=np.float32)
    np.divide(pixels.transpose(0, 3, 1, 2), 127.5, out=values, dtype=np.float32)
    values -= 1.0
    return values


class ImageTransform:
    """Picture -> bucket of nearest aspect ratio: resize to cover it, crop ("center" or "random"), flip by chance.

    `shapes` are (width, height) in pixels, multiples of `stride`; an object keeps its box while at least `min_visible`
    of its area is inside the crop. ValueError on shapes or settings that cannot work.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        crop: str = "center",
        horizontal_flip: float = 0.0,
        stride: int = 8,
        min_visible: float = 0.25,
    ):
        self.shapes = [(int(width), int(height)) for width, height in shapes]
        wrong = [shape for shape in self.shapes if min(shape) < 1 or shape[0] % stride or shape[1] % stride]
        if not self.shapes or wrong:
            raise ValueError(
                f"shapes must be (width, height) in positive multiples of {stride}; wrong: {wrong or 'none given'}"
            )
        if len(set(self.shapes)) < len(self.shapes):
            raise ValueError(f"shapes {self.shapes} repeat themselves")
        if crop not in ("center", "random"):
            raise ValueError(f"crop must be 'center' or 'random', not {crop!r}")
        if not 0.0 <= horizontal_flip <= 1.0 or not 0.0 <= min_visible <= 1.0:
            raise ValueError(f"horizontal_flip {horizontal_flip} and min_visible {min_visible} must be within [0, 1]")
        self.crop, self.stride = crop, stride
        self.horizontal_flip = float(horizontal_flip)
        self.min_visible = float(min_visible)

    def deterministic(self) -> ImageTransform:
        """The same shapes with the crop in the centre and no flip: for latents that are kept, and for validation."""
        return ImageTransform(self.shapes, "center", 0.0, self.stride, self.min_visible)

    def bucket_of(self, width: int, height: int) -> int:
        """Index into `shapes` of the nearest aspect ratio (on a log scale); of equal ratios the nearest area."""
        return int(self.buckets_of(np.array([[width, height]]))[0])

    def buckets_of(self, sizes: np.ndarray) -> np.ndarray:
        """`bucket_of` for many pictures: (n, 2) width, height -> int64 (n,)."""
        sizes = np.asarray(sizes)
        if sizes.ndim != 2 or sizes.shape[1] != 2 or (len(sizes) and sizes.min() < 1):
            raise ValueError(f"sizes must be (n, 2) positive width, height; got shape {sizes.shape}")
        logs = np.log(sizes.astype(np.float64))  # (n, 2)
        shape_logs = np.log(np.array(self.shapes, dtype=np.float64))  # (k, 2)
        ratio = np.abs((logs[:, 0] - logs[:, 1])[:, None] - (shape_logs[:, 0] - shape_logs[:, 1]))  # (n, k)
        area = np.abs(logs.sum(1)[:, None] - shape_logs.sum(1))  # (n, k)
        nearest = ratio <= ratio.min(axis=1, keepdims=True) + 1e-9  # equal up to rounding
        return np.where(nearest, area, np.inf).argmin(axis=1)

    def plan(self, width: int, height: int, bucket: int, rng: np.random.Generator) -> Placement:
        """Decide crop and flip of a width x height picture, from its size alone: works without decoding it too."""
        out_width, out_height = self.shapes[bucket]
        scale = max(out_width / width, out_height / height)
        # The picture after cover-resize, in whole pixels: a crop at whole pixels keeps scale 1 free of resampling.
        full_width = max(out_width, math.floor(width * scale + 0.5))
        full_height = max(out_height, math.floor(height * scale + 0.5))
        spare_x, spare_y = full_width - out_width, full_height - out_height
        if self.crop == "random":
            left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
        else:
            left, top = spare_x // 2, spare_y // 2
        flip = self.horizontal_flip > 0 and bool(rng.random() < self.horizontal_flip)
        box = (
            left * width / full_width,
            top * height / full_height,
            min((left + out_width) * width / full_width, float(width)),
            min((top + out_height) * height / full_height, float(height)),
        )
        return Placement((width, height), box, out_width, out_height, flip)

    def __call__(
        self, image: Image.Image, objects: Sequence[ObjectBox], bucket: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ObjectBox]]:
        """RGB picture and its boxes -> uint8 (height, width, 3), boxes in output pixels; BadSample for a wrong box."""
        validate_objects(objects, *image.size)
        placement = self.plan(*image.size, bucket, rng)
        return placement.image(image), placement.objects(objects, self.min_visible)
