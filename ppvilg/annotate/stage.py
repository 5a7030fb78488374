"""What the stages of one run have in common: a batch of samples in, fields of the sidecar's lines or rejections out.

The runner gives every stage the samples that those before it let pass, in the order of the shard, and merges what
comes out into the line of each sample. A stage keeps nothing from one shard to the next, so that a shard's sidecar is
the same whoever makes it, and whatever was made before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

READ = "read"  # the "stage" of a rejection that comes from reading the sample itself


@dataclass(frozen=True)
class Rejection:
    """Why a sample is left out of training; the line says `"rejected": {"stage": ..., "reason": ...}`."""

    reason: str


@dataclass(frozen=True)
class Sample:
    """One sample on its way through the stages.

    `picture` is upright RGB. `captions` has the shard's own of "zh", "en", "generated", and may be empty. `fields` are
    what earlier stages put into the line: "objects" [{"label", "score", "box"}], "captions" {"generated"}, and others.
    """

    key: str
    source: str
    picture: Image.Image
    captions: dict[str, str] = field(default_factory=dict)
    fields: dict = field(default_factory=dict)


class Stage(Protocol):
    """A detector, a captioner, one kind of clean-up.

    `name` stands in rejections and in the header. `identity` is everything that decides what comes out, as JSON can
    hold it: another identity for the same output folder is refused.
    """

    name: str
    identity: dict

    def start(self) -> None:
        """A new shard begins: what was kept of the one before is forgotten."""

    def process(self, batch: Sequence[Sample]) -> list[dict | Rejection]:
        """For each sample the fields to add to its line (of "captions" each kind for itself), or why it is rejected."""

    def close(self) -> None:
        """Let go of what it holds, at the end of the run."""
