"""The training loop: the same for every stage, resumable at any step, bit for bit.

A stage says what is trained, on which batches and with which named per-sample loss terms; only this loop reduces them.
Everything random is a function of (seed, rank, step), so a checkpoint holds weights, optimizer, averages and a step.
"""
from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import paddle

from ppvilg.config import ConfigError, StageConfig
from ppvilg.engine import distributed
from ppvilg.engine.checkpoint import CheckpointError, CheckpointStore, replaced_folder
from ppvilg.engine.ema import ExponentialMovingAverage
from ppvilg.engine.monitor import Monitor
from ppvilg.models import use_matmul_bias_gradients

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    number: int  # separates the random streams of stages
    config: StageConfig
    folder: Path  # of the finished result
    networks: dict[str, paddle.nn.Layer]  # trained, by name
    groups: list[str]  # what losses are logged by, for example experts

    def batches(self, first_step: int) -> Iterator:
        """Batches of this rank from a step on; `batch.indices` says which samples."""

    def losses(self, batch, step: int, part: slice) -> tuple[dict[str, paddle.Tensor], np.ndarray]:
        """Named terms (N,) of a part of the batch, their sum being minimised but for "plain", and groups (N,) int."""

    def undecayed(self) -> set:
        """Names (network.parameter) of parameters without weight decay."""

    def validate(self) -> dict[str, float]:
        """Scalars on validation data, the same on every rank; lower "loss" is better."""

    def draw(self, step: int):
        """A picture (H, W, 3) uint8 that shows progress, or None."""

    def export(self, folder: Path) -> None:
        """Write the finished networks into an empty folder; the averaged weights are in place. Main rank only."""


def learning_rate_at(step: int, config: StageConfig) -> float:
    """Learning rate of the optimizer step number `step`, counted from 0: linear warm-up, then decay to the end."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.decay == "cosine" else 1.0 - progress
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def check_shares(stage: str, config: StageConfig) -> None:
    """A batch must fit ranks and passes. Raises ConfigError."""
    ranks = distributed.world_size()
    if config.batch_size % (ranks * config.accumulation):
        raise ConfigError(f"train.{stage}.batch_size={config.batch_size} cannot be shared evenly by {ranks} ranks in "
                          f"accumulation={config.accumulation} passes each: choose another batch_size")


class Trainer:
    """Runs one stage from its newest checkpoint to its end."""

    def __init__(self, stage: Stage, store: CheckpointStore, log_folder: Path, seed: int):
        self.stage, self.store, self.log_folder, self.seed = stage, store, log_folder, seed
        self.config = stage.config
        check_shares(stage.name, self.config)
        if paddle.get_device() == "cpu":
            for network in stage.networks.values():
                use_matmul_bias_gradients(network)
        self.parameters = {f"{name}.{key}": parameter for name, network in stage.networks.items()
                           for key, parameter in network.named_parameters() if not parameter.stop_gradient}
        self.optimizer = self._build_optimizer()
        self.ema = ExponentialMovingAverage(self.parameters, self.config.ema_decay, self.config.ema_every)
        self.sample_order = ""  # hash over the samples of every step so far

    def run_loop(self) -> None:
        """Train to the last step, then export. Raises CheckpointError, FloatingPointError; never loses a checkpoint."""
        first_step = self.resume()
        if first_step < self.config.steps:
            self._train(first_step)
        elif first_step > self.config.steps:
            logger.warning("the newest checkpoint in %s has %d steps, more than train.%s.steps=%d; it is taken as is",
                           self.store.root, first_step, self.stage.name, self.config.steps)
        self._export()

    def _export(self) -> None:
        """The result of the averaged weights, unless it is there already."""
        folder = self.stage.folder
        if distributed.is_main() and not self.store.export_is_current(folder):
            self.ema.swap()
            with replaced_folder(folder) as partial:
                self.stage.export(partial)
            self.ema.swap()
            self.store.note_export(folder)
        logger.info("stage %s is finished: %s", self.stage.name, folder)
        distributed.barrier()

    def _train(self, first_step: int) -> None:
        config, stage = self.config, self.stage
        logger.info("stage %s: from step %d to %d, checkpoints in %s", stage.name, first_step, config.steps,
                    self.store.root)
        self.monitor = Monitor(self.log_folder, stage.name, config.steps, first_step, config.batch_size,
                               enabled=distributed.is_main())
        try:
            self._run_steps(first_step)
        finally:
            self.monitor.close()

    def _run_steps(self, first_step: int) -> None:
        config = self.config
        if first_step == 0:
            self.validate(0)
        self._reset_window()
        batches = self.stage.batches(first_step)
        for step in range(first_step, config.steps):
            started = time.perf_counter()
            batch = next(batches)
            reader_seconds = time.perf_counter() - started
            self.run_step(batch, step)
            self.monitor.step(reader_seconds)
            self._after_step(step + 1)

    def _after_step(self, done: int) -> None:
        config, last = self.config, done == self.config.steps
        if done % config.log_every == 0 or last:
            self.log_step(done)
        if last or (config.validate_every and done % config.validate_every == 0):
            self.validate(done)
        if last or (config.sample_every and done % config.sample_every == 0):
            self.draw(done)
        if last or done % config.checkpoint_every == 0:
            self.save(done)

    def run_step(self, batch, step: int) -> None:
        """One optimizer step."""
        distributed.seed_step(self.seed, step, self.stage.number)
        self.forward_backward(batch, step)
        distributed.average_gradients(list(self.parameters.values()))
        self.window["gradient_norm"].append(self._clip_gradients(step))
        self.optimizer.set_lr(learning_rate_at(step, self.config))
        self.optimizer.step()
        # None rather than zero: an expert that did not run must not be decayed or moved by its momentum
        self.optimizer.clear_grad(set_to_zero=False)
        self.ema.update(step + 1)
        self.sample_order = hashlib.sha256(f"{self.sample_order} {step} {batch.indices.tolist()}".encode()).hexdigest()

    def forward_backward(self, batch, step: int) -> None:
        """Gradients of the mean loss over this rank's share, in `accumulation` passes."""
        share = self.config.batch_size // distributed.world_size()
        size = share // self.config.accumulation
        for start in range(0, share, size):
            terms, groups = self.stage.losses(batch, step, slice(start, start + size))
            loss = sum(term for name, term in terms.items() if name != "plain")  # (N,)
            (loss.mean() / self.config.accumulation).backward()
            self._note_losses({"loss": loss, **terms}, groups, step)

    def _note_losses(self, terms: dict[str, paddle.Tensor], groups: np.ndarray, step: int) -> None:
        for name, term in terms.items():
            values = term.detach().numpy().astype(np.float64)  # (N,)
            if not np.isfinite(values).all():
                raise self._not_finite(f"loss term {name!r}", step)
            sums = self.window["sums"].setdefault(name, np.zeros((2, len(self.stage.groups))))
            np.add.at(sums[0], groups, values)
            np.add.at(sums[1], groups, 1.0)

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        return FloatingPointError(f"{self.stage.name}: {what} is not finite at step {step}; the last checkpoint is in "
                                  f"{self.store.root}. Lower the learning rate or clip harder")

    @paddle.no_grad()
    def _clip_gradients(self, step: int) -> float:
        """Scale gradients to the global norm limit; gives the norm before."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(paddle.add_n([g.square().sum() for g in gradients]).sqrt())
        if not math.isfinite(norm):  # before it reaches the weights and, with them, a checkpoint
            raise self._not_finite("the gradient", step)
        if self.config.gradient_clip and norm > self.config.gradient_clip:
            for gradient in gradients:
                gradient.scale_(self.config.gradient_clip / norm)
        return norm

    def log_step(self, done: int) -> None:
        """Means over ranks and over the steps since the last log: loss terms, also per group."""
        scalars = {"learning_rate": self.optimizer.get_lr(),
                   "gradient_norm": float(np.mean(self.window["gradient_norm"]))}
        for name, (sums, counts) in sorted(self.window["sums"].items()):
            reduced = distributed.mean_over_ranks(np.concatenate([sums, counts]))
            sums, counts = reduced[: len(sums)], reduced[len(sums):]
            scalars[name] = float(sums.sum() / counts.sum())
            if len(counts) > 1:
                scalars.update({f"{name}/{group}": float(s / c)
                                for group, s, c in zip(self.stage.groups, sums, counts) if c})
        self.monitor.log(done, scalars)
        self._reset_window()

    def _reset_window(self) -> None:
        self.window = {"sums": {}, "gradient_norm": []}

    def validate(self, done: int) -> None:
        """Validation scalars of the averaged weights."""
        self.ema.swap()
        scalars = self.stage.validate()
        self.ema.swap()
        self.monitor.record(done, {f"validation/{name}": value for name, value in scalars.items()})

    def draw(self, done: int) -> None:
        """Pictures of the fixed prompts with the averaged weights, into VisualDL and the log folder."""
        if distributed.is_main():
            self.ema.swap()
            picture = self.stage.draw(done)
            self.ema.swap()
            if picture is not None:
                self.monitor.image(done, "samples", picture)
        distributed.barrier()

    def save(self, done: int) -> None:
        """Checkpoint; every rank holds the same state, the main one writes it."""
        failure = None
        if distributed.is_main():
            try:
                self.store.save(done, self.state(), {"stage": self.stage.name, "seed": self.seed, "next_step": done,
                                                     "sample_order": self.sample_order,
                                                     "numpy": np.__version__, "paddle": paddle.__version__})
            except CheckpointError as error:
                failure = error
        distributed.barrier()  # writing may take longer than a reduction waits
        failed = distributed.mean_over_ranks(np.array([float(failure is not None)]))[0]
        if failed:
            raise failure or CheckpointError("the main rank could not write the checkpoint; see its message")

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Everything that the next step depends on, by object and name."""
        return {"net": {name: p.numpy() for name, p in self.parameters.items()},
                "optimizer": self._optimizer_state(), "ema": self.ema.state_dict()}

    def resume(self) -> int:
        """Load the newest whole checkpoint; gives the step to go on with."""
        distributed.share_initial_weights(self.stage.networks.values())
        self.ema = ExponentialMovingAverage(self.parameters, self.config.ema_decay, self.config.ema_every)
        step = self._load_newest()
        distributed.barrier()
        if distributed.mean_over_ranks(np.array([float(step)]))[0] != step:
            raise CheckpointError(f"rank {distributed.rank()} would go on from step {step} in {self.store.root} and "
                                  f"another rank from elsewhere: the output must be on storage that all ranks share")
        return step

    def _load_newest(self) -> int:
        found = self.store.load_newest()
        if found is None:
            return 0
        manifest, objects = found
        for name, parameter in self.parameters.items():
            parameter.set_value(paddle.to_tensor(objects["net"][name]))
        self.ema.load_state_dict(objects["ema"])
        self._load_optimizer_state(objects["optimizer"])
        self.sample_order = manifest["progress"].get("sample_order", "")
        return manifest["progress"]["next_step"]

    def _build_optimizer(self) -> paddle.optimizer.AdamW:
        config, undecayed = self.config, self.stage.undecayed()
        names = {p.name for key, p in self.parameters.items() if key not in undecayed}
        optimizer = paddle.optimizer.AdamW(
            learning_rate=config.learning_rate, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon,
            weight_decay=config.weight_decay, parameters=list(self.parameters.values()),
            apply_decay_param_fun=names.__contains__)
        # All moments now: Paddle makes them at a parameter's first step, so that after a resume the moments of experts
        # which have not had their turn yet would be missing from the next checkpoint
        optimizer._create_accumulators(paddle.static.default_main_program().global_block(),
                                       list(self.parameters.values()))
        return optimizer

    def _optimizer_state(self) -> dict[str, np.ndarray]:
        """Accumulators under our parameter names: Paddle's own count up with every layer that was ever made."""
        ours = {p.name: key for key, p in self.parameters.items()}
        state = {}
        for accumulator, by_parameter in self.optimizer._accumulators.items():
            for internal, value in by_parameter.items():
                state[f"{accumulator}/{ours[internal]}"] = value.numpy()
        return state

    def _load_optimizer_state(self, state: dict[str, np.ndarray]) -> None:
        for key, value in state.items():
            accumulator, name = key.split("/", 1)
            self.optimizer._accumulators[accumulator][self.parameters[name].name].set_value(paddle.to_tensor(value))
