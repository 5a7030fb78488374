"""How a suite draws: the keys that every recipe of a suite with a model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppvilg.config import Checked, bounded, choice, parse_adapters
from ppvilg.pipelines import SCHEDULERS


@dataclass(frozen=True)
class Sampling(Checked):
    """A model and how it draws; None takes the model's own."""

    model: str = "emoji64"  # zoo name, pipeline folder or export bundle
    backend: str | None = None  # that runs a bundle; None: the fastest proven here
    max_resident_experts: int | None = bounded(None, least=1)  # in memory at once; None: all
    lora: Any = None  # PATH[:SCALE] of an adapter to draw with, or a list of them
    num_inference_steps: int | None = bounded(None, least=1)
    guidance_scale: Any = bounded(None)  # one number, or one per expert
    eta: float | None = bounded(None, least=0, most=1)  # DDIM's share of fresh noise
    scheduler: str | None = choice(None, tuple(SCHEDULERS))
    seed: int = bounded(0, least=0)
    batch_size: int = bounded(16, least=1)
    processes: int = bounded(1, least=1)  # that draw at once; on a CPU two of one thread are faster than one of two

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_adapters(self.lora)
