"""Automatic mixed precision through paddle.amp: O1, O2 with float32 master weights, loss scaling for float16."""
from __future__ import annotations

import logging
from contextlib import nullcontext

import numpy as np
import paddle

from ppvilg.config import PrecisionConfig

logger = logging.getLogger(__name__)


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

    @staticmethod
    def supported() -> bool:
        """Whether paddle.amp has an effect on the current device."""
        return paddle.get_device() != "cpu"

    def _make_scale_printable(self) -> None:
        """At an overflow Paddle prints float(scale), which numpy 2.4 refuses for arrays with an axis: give it none."""
        if self.scaler.is_enable():
            self.scaler._scale = self.scaler._scale.reshape([])

    def prepare(self, networks: list[paddle.nn.Layer], optimizer) -> None:
        """O2: weights of the trained networks in the low precision, master copies in the optimizer."""
        if self.level == "O2":
            paddle.amp.decorate(networks, optimizer, level="O2", dtype=self.dtype, master_weight=True, master_grad=True)

    def autocast(self):
        """Context of the forward pass."""
        if self.level == "O0":
            return nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        """The loss whose gradients do not vanish in float16."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer) -> None:
        """Gradients of an optimizer's parameters as if the loss had not been scaled."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def update(self, finite: bool) -> None:
        """Lower the scale after gradients that are not finite, raise it after many that were."""
        if self.scaler is not None:
            # as GradScaler.step leaves it: `finite` comes from the norm over all shards, so that ranks agree
            self.scaler._cache_found_inf = not finite
            self.scaler.update()

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
