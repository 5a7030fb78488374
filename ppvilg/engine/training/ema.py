"""Exponential moving average of the trained weights."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle

Decay = Callable[[int, int], float]  # (steps so far, steps since the last update) -> what is kept of the average


def warmed_decay(decay: float) -> Decay:
    """`decay` per step, or (1 + step) / (10 + step) where that is less, so that early averages forget the start."""
    return lambda step, every: min(decay, (1 + step) / (10 + step)) ** every


def power_decay(width: float) -> Decay:
    """Of an average that is always `width` of the steps so far wide (Karras et al. 2024, section 3.1)."""
    gamma = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2]).real.max()
    return lambda step, every: (1.0 - every / step) ** (gamma + 1.0)


class ExponentialMovingAverage:
    """Shadow of named parameters, updated every so many steps; `decay`: a number alone is that of `warmed_decay`.

    `master_weight` gives the tensor that is averaged for a parameter: its float32 master copy where there is one.
    Of `turns` networks that take turns, `turn_of` tells a parameter's; its steps are those of its turn (None: all).
    """

    def __init__(self, parameters: dict[str, paddle.Tensor], decay: float | Decay, every: int = 1,
                 master_weight: Callable[[paddle.Tensor], paddle.Tensor] = lambda parameter: parameter,
                 turns: int = 1, turn_of: Callable[[str], int | None] = lambda name: None):
        self.decay = decay if callable(decay) else warmed_decay(decay)
        self.parameters, self.every, self.master_weight = parameters, every, master_weight
        self.turns, self.turn = turns, {name: turn_of(name) for name in parameters}
        self.shadow = {name: master_weight(p).detach().clone() for name, p in parameters.items()}

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Fold the weights after `step` steps (from 1) into the averages of what was trained in the last of them."""
        for name, parameter in self.parameters.items():
            own, turn = step, self.turn[name]
            if turn is not None:
                if (step - 1) % self.turns != turn:
                    continue
                own = (step - 1) // self.turns + 1
            if own % self.every == 0:
                decay, shadow = self.decay(own, self.every), self.shadow[name]
                shadow.set_value(shadow * decay + self.master_weight(parameter).detach() * (1.0 - decay))

    @paddle.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages in place: call once before and once after using the averaged model."""
        for name, parameter in self.parameters.items():
            weights = self.master_weight(parameter)
            held = weights.detach().clone()
            weights.set_value(self.shadow[name])
            if weights is not parameter:
                parameter.set_value(self.shadow[name].cast(parameter.dtype))
            self.shadow[name] = held

    def state_dict(self) -> dict[str, np.ndarray]:
        """Averages by parameter name."""
        return {name: value.numpy() for name, value in self.shadow.items()}

    @paddle.no_grad()
    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over saved averages. Raises KeyError naming a parameter the state lacks."""
        for name, value in self.shadow.items():
            value.set_value(paddle.to_tensor(state[name]))
