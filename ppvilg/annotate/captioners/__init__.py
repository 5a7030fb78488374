"""Captioners: pictures and their objects in, one caption each out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..detectors import Detection
from ..process import PREFIX
from ..stage import Rejection

__all__ = ["Captioner", "open_captioner"]


class Captioner(Protocol):
    """`identity`: kind, hash of the model, settings; what decides the captions."""

    identity: dict

    def caption(
        self, pictures: Sequence[Image.Image], detections: Sequence[Sequence[Detection]]
    ) -> list[str | Rejection]:
        """A caption for each upright RGB picture ("" where there is nothing to say), or why there is no answer."""

    def close(self) -> None:
        """Let go of what it holds."""


def open_captioner(
    spec: str, prompt: str | None = None, min_score: float = 0.5, device: str = "cpu", names: Sequence[str] = ("coco",)
) -> Captioner:
    """The captioner that a text names.

    spec: a folder of paddlenlp's BLIP or BLIP-2; `command:PROGRAM ARGUMENTS`; `template`, which says in Chinese what
    was detected with at least `min_score`, by the tables `names`. prompt: how a caption begins, for BLIP and BLIP-2.

    Raises:
        FileNotFoundError, ValueError: what is missing or not known, by name.
    """
    if spec.startswith(PREFIX):
        from .command import CommandCaptioner

        captioner = CommandCaptioner(spec)
    elif spec == "template":
        from .template import TemplateCaptioner

        captioner = TemplateCaptioner(min_score, names)
    elif Path(spec).is_dir():
        from .blip import BlipCaptioner

        return BlipCaptioner(Path(spec), prompt, device)
    else:
        raise FileNotFoundError(f"no such captioner: {spec} is no folder; it may also be command:PROGRAM or template")
    if prompt is not None:
        raise ValueError(f"captioner {spec!r} takes no prompt")
    return captioner
