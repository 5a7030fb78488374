"""Fleet's sharding with few large messages: stage 1 after the backward pass, stage 2 during it.

Every parameter has one owner in a sharding group (Fleet deals them out by size). The owner alone holds the optimizer's
state of it, and with stage 2 its gradient: Rajbhandari et al. 2020, "ZeRO", section 5 (P_os and P_os+g).
"""
from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.distributed.fleet.meta_optimizers.dygraph_optimizer import DygraphShardingOptimizer
from paddle.distributed.parallel import _split_tensors, build_groups

from ppvilg.engine.parallel.traffic import Traffic

MESSAGE_BYTES = 128 * 2**20
_LOW_PRECISION = (paddle.float16, paddle.bfloat16)


class FusedShardingOptimizer(DygraphShardingOptimizer):
    """Stage 1 with few large messages per step, not two per parameter (Fleet's own fusion needs a GPU)."""

    def reduce_gradients(self, parameter_list, hcg) -> None:
        """The mean gradient of each parameter goes to its owner."""
        group = hcg.get_sharding_parallel_group()
        for owner, owned in self._by_owner(parameter_list):
            for flat, gradients, shapes in build_groups([p.grad for p in owned], MESSAGE_BYTES):
                flat.scale_(1.0 / group.nranks)
                dist.reduce(flat, dst=group.ranks[owner], group=group)
                if group.rank == owner:
                    _split_tensors([(flat, gradients, shapes)])

    def finish_pass(self, last: bool) -> None:
        """To be called after every backward pass, `last` after the last one of a step: nothing to do in stage 1."""

    def holders_of(self, parameters: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Those of `parameters`, which have gradients on some rank, that must have one on this rank: all of them."""
        return parameters

    def _sharding_sync_parameters(self) -> None:
        self.share([p for p in self._parameter_list if p.grad is not None])

    def share(self, parameters: list[paddle.Tensor]) -> None:
        """Every rank takes over each parameter from its owner."""
        group = self._hcg.get_sharding_parallel_group()
        for owner, owned in self._by_owner(parameters):
            for flat, weights, shapes in build_groups(owned, MESSAGE_BYTES):
                dist.broadcast(flat, src=group.ranks[owner], group=group)
                _split_tensors([(flat, weights, shapes)])

    def _by_owner(self, parameters: list[paddle.Tensor]):
        for owner in range(self._sharding_world_size):
            owned = [p for p in parameters if self._param2rank[p.name] == owner]
            if owned:
                yield owner, owned


class GradientShardingOptimizer(FusedShardingOptimizer):
    """Stage 2: gradients go to their owners during the backward pass, so that no rank ever holds all of them.

    When gradients of `bucket_bytes` wait on a rank, it enters a round: the ranks of the group add up what waits where
    (an int32 per parameter), send to the owners what waits on all of them, and free it. The round after the last
    gradient (`finish_pass`) sends the rest, with zeros where a rank has none. A rank that is done goes on with rounds
    until all are, so ranks whose graphs differ hold more and ask more often, but never wait for a message that does not
    come. Without `compare` nobody asks: a rank sends what waits, which must be the same on all of them, in one order.
    Low-precision gradients are summed in float32. `meet` waits until all ranks of the group are there.
    """

    def __init__(self, optimizer, hcg, traffic: Traffic, meet: Callable[[], None], bucket_bytes: int,
                 compare: bool = True):
        super().__init__(optimizer, hcg)
        self._traffic, self._meet, self._compare = traffic, meet, compare
        self._bucket_bytes = self._enough = bucket_bytes
        self._waiting: dict[int, int] = {}  # bytes of gradients that are not sent yet, by number of the parameter
        self._sums: dict[int, paddle.Tensor] = {}  # of what this rank owns, over the passes of a step
        self._used: set[int] = set()  # parameters that had a gradient on some rank in this step
        self._met, self._failure = False, None
        for number, parameter in enumerate(self._origin_parameter_list):
            parameter._register_backward_hook(_hook(weakref.ref(self), number))

    def arrived(self, number: int) -> None:
        """The gradient of a parameter is there (also once more in a pass, where recompute takes it in parts)."""
        gradient = self._origin_parameter_list[number].grad
        if self._failure is not None or gradient is None:
            return
        self._waiting[number] = _bytes(gradient)
        if sum(self._waiting.values()) >= self._enough:
            try:
                self._round(finished=False)
            except Exception as error:  # kept for finish_pass: Paddle would show a SystemError without its reason
                self._failure = error

    def finish_pass(self, last: bool) -> None:
        """Send what still waits; after the `last` pass of a step the owners' parameters get their gradients.

        Raises:
            Exception: what a collective raised during the backward pass.
        """
        if self._failure is not None:
            raise self._failure
        while not self._round(finished=True):
            pass
        self._met = False
        if last:
            for number, gradient in self._sums.items():
                self._origin_parameter_list[number].grad = gradient
            self._sums.clear()

    @paddle.no_grad()
    def _round(self, finished: bool) -> bool:
        """Send what waits on all ranks, or on any once all have `finished`; gives whether they have."""
        if self._compare:
            numbers, finished = self._common(finished)
        else:
            numbers = sorted(self._waiting)
            if numbers and not self._met:
                self._meet()
                self._met = True
        with self._traffic.of("gradients"):
            for owner in range(self._sharding_world_size):
                self._send(owner, [n for n in numbers
                                   if self._param2rank[self._origin_parameter_list[n].name] == owner])
        self._used.update(numbers)
        self._enough = sum(self._waiting.values()) + self._bucket_bytes
        return finished

    def _common(self, finished: bool) -> tuple[list[int], bool]:
        """(parameters to send now, whether all ranks have finished), the same on every rank."""
        flags = np.zeros(len(self._origin_parameter_list) + 1, np.int32)
        flags[list(self._waiting)] = 1
        flags[-1] = finished
        counts = paddle.to_tensor(flags)
        self._meet()
        with self._traffic.of("agreement"):
            dist.all_reduce(counts, group=self._hcg.get_sharding_parallel_group())
        counts, ranks = counts.numpy(), self._sharding_world_size
        all_finished = bool(counts[-1] == ranks)
        return np.flatnonzero(counts[:-1] >= (1 if all_finished else ranks)).tolist(), all_finished

    def _send(self, owner: int, numbers: list[int]) -> None:
        """Mean gradients of parameters -> their owner; gone from `grad` on every rank."""
        if not numbers:
            return
        group = self._hcg.get_sharding_parallel_group()
        flat = paddle.concat([self._flat_gradient(n) for n in numbers])
        for number in numbers:
            self._origin_parameter_list[number].clear_gradient(False)
            self._waiting.pop(number, None)
        flat.scale_(1.0 / group.nranks)
        dist.reduce(flat, dst=group.ranks[owner], group=group)
        if group.rank == owner:
            parts = paddle.split(flat, [self._origin_parameter_list[n].size for n in numbers])
            for number, part in zip(numbers, parts):
                part = part.reshape(self._origin_parameter_list[number].shape)
                self._sums[number] = self._sums[number] + part if number in self._sums else part

    def _flat_gradient(self, number: int) -> paddle.Tensor:
        """A gradient (n,), zeros where there is none; float32 where the parameter has less."""
        parameter = self._origin_parameter_list[number]
        if parameter.grad is None:
            return paddle.zeros([parameter.size], gradient_dtype(parameter))
        return parameter.grad.reshape([-1]).astype(gradient_dtype(parameter))

    def reduce_gradients(self, parameter_list, hcg) -> None:
        """Nothing is left to do: the owners have their means."""

    def holders_of(self, parameters: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Those of `parameters`, which have gradients on some rank, that this rank owns; all of them get updated."""
        names = {p.name for p in parameters}
        self._used.update(n for n, p in enumerate(self._origin_parameter_list) if p.name in names)
        return self.filter_parameters(parameters, self._hcg)

    def _sharding_sync_parameters(self) -> None:
        self.share([self._origin_parameter_list[n] for n in sorted(self._used)])

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Forget the gradients of this step."""
        super().clear_grad(set_to_zero)
        self._used.clear()


def _hook(optimizer: weakref.ref, number: int) -> Callable[..., None]:
    """Tells the optimizer of a gradient, as long as there is that optimizer: hooks cannot be taken off again."""

    def arrived(*_) -> None:
        if optimizer() is not None:
            optimizer().arrived(number)

    return arrived


def _bytes(tensor: paddle.Tensor) -> int:
    return tensor.size * tensor.element_size()


def gradient_dtype(parameter: paddle.Tensor) -> paddle.dtype:
    """What gradients are added up in: float32 where the parameter has less (as Paddle's master gradients)."""
    return paddle.float32 if parameter.dtype in _LOW_PRECISION else parameter.dtype
