"""Pictures that are too small or too long."""

from __future__ import annotations

from collections.abc import Sequence

from ..stage import Rejection, Sample


class SizeStage:
    """Leaves out pictures with a side under `min_side` pixels, or with one over `max_aspect` times the other.

    ValueError when a limit cannot be one.
    """

    name = "size"

    def __init__(self, min_side: int | None = None, max_aspect: float | None = None):
        if min_side is not None and min_side < 1:
            raise ValueError(f"min_side must be at least 1 pixel, got {min_side}")
        if max_aspect is not None and not max_aspect >= 1:
            raise ValueError(f"max_aspect is the longer by the shorter side, 1 or more, got {max_aspect}")
        self.min_side, self.max_aspect = min_side, max_aspect
        self.identity = {"min_side": min_side, "max_aspect": max_aspect}

    def start(self) -> None:
        """Pictures are looked at one by one."""

    def close(self) -> None:
        """It holds nothing."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """No fields, or why a picture is left out."""
        return [self._look_at(*sample.picture.size) for sample in batch]

    def _look_at(self, width: int, height: int) -> dict | Rejection:
        shorter, longer = sorted((width, height))
        if self.min_side is not None and shorter < self.min_side:
            return Rejection(f"{width}x{height}: a side is shorter than {self.min_side} pixels")
        if self.max_aspect is not None and longer > self.max_aspect * shorter:
            return Rejection(f"{width}x{height}: one side is more than {self.max_aspect:g} times the other")
        return {}
