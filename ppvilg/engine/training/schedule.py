"""The learning rate of every step."""
from __future__ import annotations

import math

from ppvilg.config import StageConfig


def learning_rate_at(step: int, config: StageConfig, turns: int = 1) -> float:
    """Learning rate of the optimizer step number `step`, counted from 0: linear warm-up, then decay to the end.

    Where networks take turns, all of it is in a network's own steps, of which there are steps / turns.
    """
    step, steps = step // turns, -(-config.steps // turns)
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.decay == "cosine" else 1.0 - progress
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def rate_factor(config: StageConfig, part: str) -> float:
    """The learning rate of a network of the stage over that of the stage."""
    rates = getattr(config, "learning_rates", {})
    return rates[part] / config.learning_rate if part in rates else 1.0
