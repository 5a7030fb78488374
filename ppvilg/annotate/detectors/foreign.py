"""Detectors of the user's own: a program that answers line by line, and a function of Python."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence

from PIL import Image

from ppvilg.files import file_sha256

from ..process import LineProcess
from ..stage import Rejection
from .detection import Detection, fit


class CommandDetector:
    """A program; it answers {"objects": [{"label", "score", "box": [left, top, right, bottom]}, ...]}."""

    def __init__(self, spec: str, min_score: float):
        self.process, self.min_score = LineProcess(spec), min_score
        self.identity = {"kind": "command", "command": self.process.command, "threshold": min_score,
                         **{f"its_{name}": value for name, value in self.process.about.items()}}  # fmt: skip

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection] | Rejection]:
        """Objects of each picture; a picture whose answer cannot be used is rejected."""
        answers = self.process.ask(pictures, [{}] * len(pictures))
        return [self._read(answer, picture.size) for answer, picture in zip(answers, pictures)]

    def close(self) -> None:
        """End the program."""
        self.process.close()

    def _read(self, answer: dict, size: tuple[int, int]) -> list[Detection] | Rejection:
        if "error" in answer:
            return Rejection(str(answer["error"]))
        try:
            found = [Detection(each["label"], float(each["score"]), tuple(map(float, each["box"])))
                     for each in answer["objects"]]  # fmt: skip
            if any(len(each.box) != 4 for each in found):
                raise ValueError("a box has not four numbers")
            return fit(found, size, self.min_score)
        except (KeyError, TypeError, ValueError) as error:
            return Rejection(f"the answer of {self.process.name} cannot be used ({type(error).__name__}: {error})")


class FunctionDetector:
    """`module:function`; the function takes RGB pictures, gives for each a list of (label, score, box).

    An `identity` of its own (a dict) goes into the header beside the hash of its module's file.

    Raises:
        ValueError: there is no such module or function; while detecting: it does not answer for each picture.
    """

    def __init__(self, spec: str, min_score: float):
        self.spec, self.min_score = spec, min_score
        module, name = spec.split(":")
        sys.path.insert(0, "")  # the folder where the command runs, as for python -m
        try:
            self.function = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise ValueError(f"detector {spec!r}: {error}") from None
        except AttributeError:
            raise ValueError(f"detector {spec!r}: module {module} has no {name}") from None
        finally:
            sys.path.remove("")
        file = inspect.getsourcefile(sys.modules[module])
        self.identity = {"kind": "function", "function": spec, "threshold": min_score,
                         "module": file_sha256(file) if file else None,
                         **getattr(self.function, "identity", {})}  # fmt: skip

    def detect(self, pictures: Sequence[Image.Image]) -> list[list[Detection] | Rejection]:
        """Objects of each picture."""
        found = list(self.function(pictures))
        if len(found) != len(pictures):
            raise ValueError(f"detector {self.spec!r} gave {len(found)} answers for {len(pictures)} pictures")
        return [self._fit(each, picture.size) for each, picture in zip(found, pictures)]

    def close(self) -> None:
        """Nothing is held."""

    def _fit(self, rows: Sequence, size: tuple[int, int]) -> list[Detection] | Rejection:
        try:
            return fit([Detection(label, float(score), tuple(map(float, box))) for label, score, box in rows], size,
                       self.min_score)  # fmt: skip
        except (TypeError, ValueError) as error:
            return Rejection(str(error))
