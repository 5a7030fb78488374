"""Exponential moving average of the trained weights."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle


class ExponentialMovingAverage:
    """Shadow of named parameters; `decay` is per step and is raised to the number of steps between updates.

    The effective decay is min(decay, (1 + step) / (10 + step)), so that early averages forget the initial weights.
    `master_weight` gives the tensor that is averaged for a parameter: its float32 master copy where there is one.
    Of `turns` networks that take turns, `turn_of` tells a parameter's; its steps are those of its turn (None: all).
    """

    def __init__(self, parameters: dict[str, paddle.Tensor], decay: float, every: int = 1,
                 master_weight: Callable[[paddle.Tensor], paddle.Tensor] = lambda parameter: parameter,
                 turns: int = 1, turn_of: Callable[[str], int | None] = lambda name: None):
        self.parameters, self.decay, self.every, self.master_weight = parameters, decay, every, master_weight
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
                decay, shadow = min(self.decay, (1 + own) / (10 + own)) ** self.every, self.shadow[name]
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
