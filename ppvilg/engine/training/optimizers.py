"""Optimizers by the recipe's name: Paddle's AdamW, and Lion and Adafactor, which no library for Paddle has.

Both of ours keep their state where Paddle's keep theirs, so that it is sharded, saved and resumed in the same way, and
read nothing from the device. No package on PyPI has one with 8 bits for Paddle: not Paddle 3.3, PaddleNLP, ppdiffusers.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import paddle

from ppvilg.config import StageConfig

# (beta1, beta2, epsilon) where the recipe gives none; None: the optimizer has no such number
USUAL = {"adamw": (0.9, 0.999, 1e-8), "lion": (0.9, 0.99, None), "adafactor": (None, None, 2.0**-23)}
_LOW_PRECISION = (paddle.float16, paddle.bfloat16)


def build_optimizer(config: StageConfig, parameters: Sequence[paddle.Tensor], decayed: Callable[[str], bool]
                    ) -> paddle.optimizer.Optimizer:
    """The optimizer of a stage; `decayed` says of a Paddle name whether that parameter decays."""
    given = (config.beta1, config.beta2, config.epsilon)
    beta1, beta2, epsilon = (usual if value is None else value for value, usual in zip(given, USUAL[config.optimizer]))
    if config.optimizer == "lion":
        return Lion(config.learning_rate, beta1, beta2, parameters, config.weight_decay, decayed)
    if config.optimizer == "adafactor":
        return Adafactor(config.learning_rate, epsilon, parameters, config.weight_decay, decayed)
    return paddle.optimizer.AdamW(config.learning_rate, beta1, beta2, epsilon, parameters, config.weight_decay,
                                  apply_decay_param_fun=decayed)


def state_elements(optimizer: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """Numbers that an optimizer keeps of parameters of these shapes, but for what each has one of."""
    def of(shape: tuple[int, ...]) -> int:
        size = math.prod(shape)
        if optimizer == "adafactor":
            return size // shape[-1] + size // shape[-2] if len(shape) > 1 else size
        return size if optimizer == "lion" else 2 * size

    return sum(map(of, shapes))


class _DecayingOptimizer(paddle.optimizer.Optimizer):
    """Decay of the weights by rate x `weight_decay` apart from their gradients, and float32 masters of low weights."""

    def __init__(self, learning_rate: float, parameters: Sequence[paddle.Tensor], weight_decay: float,
                 decayed: Callable[[str], bool]):
        super().__init__(learning_rate=learning_rate, parameters=parameters)
        self._decay, self._decayed = weight_decay, decayed
        self._multi_precision, self._master_weights = False, {}

    def _create_accumulators(self, block, parameters) -> None:
        for p in parameters:
            if p.name not in self._already_create_accumulator:
                low = self._multi_precision and p.dtype in _LOW_PRECISION
                self._add_state(self._create_master_weight(p) if low else p)
                self._already_create_accumulator.add(p.name)

    def _append_optimize_op(self, block, param_and_grad) -> None:
        parameter, gradient = param_and_grad
        weights = self._master_weights.get(parameter.name, parameter)
        rate = self._create_param_lr(param_and_grad)
        change = self._change(weights, gradient.astype(weights.dtype), rate)
        if self._decay and self._decayed(parameter.name):
            weights.multiply_(1.0 - rate * self._decay)
        weights.subtract_(change)
        if weights is not parameter:
            parameter.set_value(weights.astype(parameter.dtype))

    def _add_state(self, weights: paddle.Tensor) -> None:
        raise NotImplementedError

    def _change(self, weights: paddle.Tensor, gradient: paddle.Tensor, rate: paddle.Tensor) -> paddle.Tensor:
        """What is taken from the weights, their decay aside; the state goes on by a step."""
        raise NotImplementedError


class Lion(_DecayingOptimizer):
    """Steps of one size along the sign of an averaged gradient: one moment (Chen et al. 2023, algorithm 2)."""

    def __init__(self, learning_rate: float, beta1: float, beta2: float, parameters: Sequence[paddle.Tensor],
                 weight_decay: float = 0.0, decayed: Callable[[str], bool] = lambda name: True):
        super().__init__(learning_rate, parameters, weight_decay, decayed)
        self._beta1, self._beta2 = beta1, beta2

    def _add_state(self, weights: paddle.Tensor) -> None:
        self._add_accumulator("moment", weights, dtype=weights.dtype)

    def _change(self, weights: paddle.Tensor, gradient: paddle.Tensor, rate: paddle.Tensor) -> paddle.Tensor:
        moment = self._get_accumulator("moment", weights)
        direction = (moment * self._beta1 + gradient * (1.0 - self._beta1)).sign()
        moment.scale_(self._beta2).add_(gradient * (1.0 - self._beta2))
        return direction * rate


class Adafactor(_DecayingOptimizer):
    """Second moments of matrices as a column times a row (Shazeer and Stern 2018, algorithms 4 and 5).

    As torch.optim.Adafactor: a step is min(rate, 1 / sqrt(t)) times the weights' size, which is taken as at least 1e-3;
    the average forgets by 1 - t^-0.8; an update whose root mean square is above 1 is scaled down to it. t counts the
    steps of each parameter. Of more than two axes, the last two are the matrix.
    """

    _SMALLEST_SIZE, _DECAY = 1e-3, -0.8

    def __init__(self, learning_rate: float, epsilon: float, parameters: Sequence[paddle.Tensor],
                 weight_decay: float = 0.0, decayed: Callable[[str], bool] = lambda name: True):
        super().__init__(learning_rate, parameters, weight_decay, decayed)
        self._epsilon = epsilon

    def _add_state(self, weights: paddle.Tensor) -> None:
        shape = list(weights.shape)
        self._add_accumulator("steps", weights, dtype=weights.dtype, shape=[1])
        if len(shape) > 1:
            self._add_accumulator("row", weights, dtype=weights.dtype, shape=[*shape[:-1], 1])
            self._add_accumulator("column", weights, dtype=weights.dtype, shape=[*shape[:-2], 1, shape[-1]])
        else:
            self._add_accumulator("square", weights, dtype=weights.dtype)

    def _change(self, weights: paddle.Tensor, gradient: paddle.Tensor, rate: paddle.Tensor) -> paddle.Tensor:
        steps = self._get_accumulator("steps", weights).add_(paddle.ones([1]))
        fresh = steps.pow(self._DECAY)  # share of this step in the averages
        size = weights.square().mean().sqrt().clip(min=self._SMALLEST_SIZE)
        update = gradient * self._variance(weights, gradient, fresh).clip(min=self._epsilon**2).rsqrt()
        excess = update.square().mean().sqrt().clip(min=1.0)
        return update * (size * paddle.minimum(rate, steps.rsqrt()) / excess)

    def _variance(self, weights: paddle.Tensor, gradient: paddle.Tensor, fresh: paddle.Tensor) -> paddle.Tensor:
        """The averaged squares of gradients, as the state after this step has them."""
        squares = gradient.square()
        if weights.ndim < 2:
            return self._average("square", weights, squares, fresh)
        row = self._average("row", weights, squares.mean(-1, keepdim=True), fresh)
        column = self._average("column", weights, squares.mean(-2, keepdim=True), fresh)
        return row @ column / row.mean(-2, keepdim=True).clip(min=self._epsilon)

    def _average(self, name: str, weights: paddle.Tensor, value: paddle.Tensor, fresh: paddle.Tensor) -> paddle.Tensor:
        state = self._get_accumulator(name, weights)
        return state.add_((value - state) * fresh)
