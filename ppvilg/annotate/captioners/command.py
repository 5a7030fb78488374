"""A captioner of the user's own: a program that answers line by line."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..detectors import Detection
from ..process import LineProcess
from ..stage import Rejection


class CommandCaptioner:
    """A program; its questions have "objects" as well, and it answers {"caption": text}."""

    def __init__(self, spec: str):
        self.process = LineProcess(spec)
        self.identity = {"kind": "command", "command": self.process.command,
                         **{f"its_{name}": value for name, value in self.process.about.items()}}  # fmt: skip

    def caption(self, pictures: Sequence[Image.Image], detections: Sequence[Sequence[Detection]]
                ) -> list[str | Rejection]:  # fmt: skip
        """A caption for each picture; a picture whose answer has none is rejected."""
        fields = [{"objects": [each._asdict() for each in found]} for found in detections]
        return [self._read(answer) for answer in self.process.ask(pictures, fields)]

    def close(self) -> None:
        """End the program."""
        self.process.close()

    def _read(self, answer: dict) -> str | Rejection:
        if isinstance(answer.get("caption"), str):
            return answer["caption"]
        return Rejection(str(answer.get("error", f"the answer of {self.process.name} has no caption: {answer}"))[:200])
