"""What training changes: weights, the optimizer's moments and averages, under names that no layout of ranks changes."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import paddle

from ppvilg.config import DistributedConfig
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.stage import Stage
from ppvilg.engine.training.ema import ExponentialMovingAverage, power_decay, warmed_decay
from ppvilg.engine.training.optimizers import build_optimizer
from ppvilg.engine.training.precision import Precision
from ppvilg.engine.training.schedule import rate_factor
from ppvilg.models import use_matmul_bias_gradients


class TrainingState:
    """The trained parameters of a stage, with an optimizer inside Fleet's sharding where there is that axis.

    parameters: by name (network.parameter); owned: those whose optimizer's state and averages are on this rank.
    """

    def __init__(self, stage: Stage, settings: DistributedConfig, precision: Precision):
        self.stage, self.config, self.precision = stage, stage.config, precision
        if paddle.get_device() == "cpu":
            for network in stage.networks.values():
                use_matmul_bias_gradients(network)
        self.parameters = {f"{name}.{key}": parameter for name, network in stage.networks.items()
                           for key, parameter in network.named_parameters() if not parameter.stop_gradient}
        self._build_optimizer(settings)
        self.start_averages()

    def _build_optimizer(self, settings: DistributedConfig) -> None:
        undecayed = self.stage.undecayed()
        names = {p.name for key, p in self.parameters.items() if key not in undecayed}
        for key, p in self.parameters.items():  # Paddle's factor of the optimizer's rate
            p.optimize_attr["learning_rate"] = rate_factor(self.config, key.partition(".")[0])
        optimizer = build_optimizer(self.config, list(self.parameters.values()), names.__contains__)
        masters = self.precision.lower(self.stage.networks.values())
        optimizer._multi_precision = bool(masters)
        self.inner_optimizer = optimizer
        self.optimizer = distributed.sharded_optimizer(optimizer, settings)
        mine = {p.name for p in optimizer._parameter_list}
        self.owned = {name: p for name, p in self.parameters.items() if p.name in mine}
        # All moments now: Paddle makes them at a parameter's first step, so that after a resume the moments of experts
        # which have not had their turn yet would be missing from the next checkpoint
        optimizer._create_accumulators(paddle.static.default_main_program().global_block(),
                                       list(self.owned.values()))
        for name, weights in optimizer._master_weights.items():  # made of the low weights, which are rounded
            weights.set_value(masters[name])

    def start_averages(self) -> None:
        """Averages of what this rank keeps the optimizer's state of, from the weights as they are."""
        config, averaged = self.config, self.owned if self.config.ema != "none" else {}
        decay = power_decay(config.ema_width) if config.ema == "power" else warmed_decay(config.ema_decay)
        self.ema = ExponentialMovingAverage(averaged, decay, config.ema_every, self.master_weight, self.stage.turns,
                                            self.stage.turn_of)

    def master_weight(self, parameter: paddle.Tensor) -> paddle.Tensor:
        """The float32 master copy of a parameter, or itself where it is float32."""
        return self.inner_optimizer._master_weights.get(parameter.name, parameter)

    def gradients(self) -> list[paddle.Tensor]:
        """Those of the owned parameters that have one."""
        return [p.grad for p in self.owned.values() if p.grad is not None]

    @contextmanager
    def averaged(self, wide: bool = False) -> Iterator[None]:
        """Inside, every rank of a group has the averages as its weights; `wide`: in float32, however it trains."""
        self._swap()
        masters = {p.name: self.master_weight(p) for p in self.owned.values()}
        try:
            with self.precision.wide(masters) if wide else _nothing():
                if wide:
                    self._share()
                yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange weights and averages on every rank of a group."""
        self.ema.swap()
        self._share()

    def _share(self) -> None:
        with distributed.traffic.of("validation"):
            distributed.share_owned_weights(list(self.parameters.values()), self.optimizer)

    def state_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """Copy of everything that the next step depends on, by object and name; of a shard, what this rank owns."""
        state = {"net": {name: self.master_weight(p).numpy() for name, p in self.owned.items()},
                 "optimizer": {key: value.numpy() for key, value in self._accumulators().items()},
                 "ema": self.ema.state_dict()}
        if distributed.is_main() and self.precision.scaler is not None:
            state["grad_scaler"] = self.precision.state_dict()
        return state

    def needed(self) -> dict[str, dict[str, paddle.Tensor]]:
        """What this rank reads of a checkpoint: tensors by object and name."""
        return {"net": self.parameters, "ema": self.ema.parameters, "optimizer": self._accumulators()}

    def begin_anew(self, objects: dict[str, dict[str, np.ndarray]]) -> list[str]:
        """Add to what was read what a stage without averages, or with another optimizer, does not keep; gives what."""
        added, needed = [], self.needed()
        if needed["ema"] and not objects.get("ema"):
            objects["ema"] = objects["net"]
            added.append("averages")
        kept, found = ({key.partition("/")[0] for key in keys}
                       for keys in (needed["optimizer"], objects.get("optimizer", ())))
        if kept - found:
            objects["optimizer"] = {key: value.numpy() for key, value in needed["optimizer"].items()}
            added.append("the optimizer's state")
        return added

    @paddle.no_grad()
    def load_state_dict(self, objects: dict[str, dict[str, np.ndarray]]) -> None:
        """Take over what `needed` names."""
        for name, parameter in self.parameters.items():
            weights = paddle.to_tensor(objects["net"][name])
            parameter.set_value(weights.astype(parameter.dtype))
            if self.master_weight(parameter) is not parameter:
                self.master_weight(parameter).set_value(weights)
        self.ema.load_state_dict(objects["ema"])
        for key, accumulator in self._accumulators().items():
            accumulator.set_value(paddle.to_tensor(objects["optimizer"][key]))
        self.precision.load_state_dict(objects.get("grad_scaler", {}))

    def _accumulators(self) -> dict[str, paddle.Tensor]:
        """The optimizer's state under our parameter names: Paddle's own count up with every layer ever made."""
        ours = {self.master_weight(p).name: key for key, p in self.owned.items()}
        return {f"{accumulator}/{ours[internal]}": value
                for accumulator, by_parameter in self.inner_optimizer._accumulators.items()
                for internal, value in by_parameter.items()}


@contextmanager
def _nothing() -> Iterator[None]:
    yield
