"""Automatic mixed precision: the one owner of what is computed in which precision, and of float32 master weights.

The forward passes of training and validation run under `autocast`. With O2 the trained weights are low, their masters
are the float32 weights that they were cast from, gradients of several passes are summed in float32, and what is drawn
or exported is made `wide` first: the masters, or their averages. Frozen networks keep their float32 weights.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import paddle

from ppvilg.config import PrecisionConfig

logger = logging.getLogger(__name__)
LOW_PRECISION = (paddle.float16, paddle.bfloat16)
_SMALLEST_SCALE = 2.0**-10  # of a float16 loss: what overflows even so is not the scale's fault


class Precision:
    """What a recipe's `precision` asks for, as far as the device can do it: a CPU computes in float32 and says so."""

    def __init__(self, config: PrecisionConfig | None = None):
        config = config or PrecisionConfig()
        self.level, self.dtype, self.scaler = config.level, config.dtype, None
        if self.level != "O0" and not self.supported():
            logger.warning("precision.level=%s (%s) does nothing on a CPU: Paddle has no such kernels there, and every "
                           "step is computed in float32", self.level, self.dtype)
            self.level = "O0"
        if self.level != "O0" and self.dtype == "float16":
            self.scaler = paddle.amp.GradScaler(init_loss_scaling=2.0**15)
            self._make_scale_printable()
        self._networks: list[paddle.nn.Layer] = []
        self._sums: dict[str, paddle.Tensor] = {}  # gradients of low weights, by name, over the passes of a step

    @staticmethod
    def supported() -> bool:
        """Whether paddle.amp has an effect on the current device."""
        return paddle.get_device() != "cpu"

    def _make_scale_printable(self) -> None:
        """At an overflow Paddle prints float(scale), which numpy 2.4 refuses for arrays with an axis: give it none."""
        if self.scaler.is_enable():
            self.scaler._scale = self.scaler._scale.reshape([])

    # ---- weights

    @paddle.no_grad()
    def lower(self, networks: Iterable[paddle.nn.Layer]) -> dict[str, paddle.Tensor]:
        """O2: the weights of the trained networks in low precision; gives the float32 ones by their Paddle name."""
        self._networks = list(networks)
        if self.level != "O2":
            return {}
        before = {p.name: p.detach().clone() for network in self._networks for p in network.parameters()
                  if not p.stop_gradient}
        self._narrow()
        return {p.name: before[p.name] for network in self._networks for p in network.parameters()
                if p.name in before and p.dtype in LOW_PRECISION}

    def _narrow(self) -> None:
        """As Paddle does it: but for norms. Without its master gradients, which keep networks alive for good."""
        paddle.amp.decorate(self._networks, level="O2", dtype=self.dtype)

    @contextmanager
    def wide(self, master_weights: dict[str, paddle.Tensor]) -> Iterator[None]:
        """Inside, the trained networks are float32 and hold `master_weights` (by Paddle name) where these are here."""
        low = [p for network in self._networks for p in network.parameters() if p.dtype in LOW_PRECISION]
        if not low:
            yield
            return
        for network in self._networks:
            network.to(dtype="float32")
        for p in low:
            if p.name in master_weights:
                p.set_value(master_weights[p.name])
        try:
            yield
        finally:
            self._narrow()

    # ---- a step

    def autocast(self):
        """Context of a forward pass."""
        if self.level == "O0":
            return nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        """The loss whose gradients do not vanish in float16."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    @paddle.no_grad()
    def gather(self, parameters: Iterable[paddle.Tensor], last: bool) -> None:
        """After a backward pass: gradients of low weights are added up in float32, to be theirs after the `last`."""
        for p in parameters:
            if p.dtype in LOW_PRECISION and p.grad is not None and p.grad.dtype in LOW_PRECISION:
                gradient = p.grad.astype("float32")
                p.clear_gradient(False)
                self._sums[p.name] = self._sums[p.name] + gradient if p.name in self._sums else gradient
            if last and p.name in self._sums:
                p.grad = self._sums.pop(p.name)

    def unscale(self, optimizer) -> None:
        """Gradients of an optimizer's parameters as if the loss had not been scaled."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def update(self, finite: bool) -> None:
        """Lower the scale after gradients that are not finite, raise it after many that were.

        Raises:
            FloatingPointError: they are not at a scale that is no help any more.
        """
        if self.scaler is not None:
            # as GradScaler.step leaves it: `finite` comes from the norm over all shards, so that ranks agree
            self.scaler._cache_found_inf = not finite
            self.scaler.update()
            if not finite and float(self.scaler._scale) < _SMALLEST_SCALE:
                raise FloatingPointError("gradients are not finite at any scale of the loss")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Loss scale and its counters; empty without loss scaling."""
        if self.scaler is None:
            return {}
        return {name: np.asarray(value).reshape(-1) for name, value in self.scaler.state_dict().items()
                if name in ("scale", "incr_count", "decr_count")}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go on with a saved scale; a state of another precision is left alone."""
        if self.scaler is not None and state:
            counts = {name: int(state[name][0]) for name in ("incr_count", "decr_count")}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **counts, "scale": state["scale"]})
            self._make_scale_printable()
