"""What the training loop needs to know of a stage."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import StageConfig


class Stage(ABC):
    """One thing that is trained: its networks, its batches and its named per-sample loss terms.

    Networks that take turns (`turns` of them, the experts) count their own steps: warm-up, decay and averages of one
    are those of the steps in which it was trained.
    """

    name: str
    number: int  # separates the random streams of stages
    config: StageConfig
    folder: Path  # of the finished result
    networks: dict[str, paddle.nn.Layer]  # trained, by name
    groups: list[str]  # what losses are logged by, for example experts
    turns: int = 1

    def is_active_step(self, step: int) -> bool:
        """Whether this rank's group trains at a step."""
        return True

    def turn_of(self, parameter: str) -> int | None:
        """Which turn a parameter (network.parameter) is trained in; None: in every step."""
        return None

    @abstractmethod
    def batches(self, first_step: int) -> Iterator:
        """This rank's share of every step from one on, in `accumulation` passes, whose `indices` say which samples."""

    @abstractmethod
    def losses(self, batch, step: int) -> tuple[dict[str, paddle.Tensor], np.ndarray]:
        """Named terms (N,) of a pass, their sum being minimised but for "plain", and groups (N,) int."""

    @abstractmethod
    def undecayed(self) -> set[str]:
        """Names (network.parameter) of parameters without weight decay."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Scalars on validation data, the same on every rank; lower "loss" is better."""

    @abstractmethod
    def sample(self, step: int) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 that shows progress, or None. Every rank calls it; the main rank's is shown."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the finished networks into an empty folder; the averaged weights are in place. Main rank only."""

    def export_part(self, folder: Path) -> None:
        """Add to a folder what the main rank does not have; first ranks of other groups only."""
        raise NotImplementedError(f"stage {self.name} has no parts")
