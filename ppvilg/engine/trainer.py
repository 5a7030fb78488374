"""The training loop: the same for every stage, resumable at any step, bit for bit.

A stage says what is trained, on which batches and with which named per-sample loss terms; only this loop reduces them.
Everything random is a function of (seed, share, step), so a checkpoint holds weights, optimizer, averages and a step,
under names that do not depend on the number of ranks or on their axes.
"""
from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import paddle

from ppvilg.config import ConfigError, DistributedConfig, StageConfig
from ppvilg.engine import stopping
from ppvilg.engine.checkpoint import BackgroundWriter, CheckpointError, CheckpointStore, replaced_folder
from ppvilg.engine.ema import ExponentialMovingAverage
from ppvilg.engine.monitor import Monitor
from ppvilg.engine.parallel import distributed
from ppvilg.engine.precision import Precision
from ppvilg.models import use_matmul_bias_gradients

logger = logging.getLogger(__name__)
_TERMS = 8  # named loss terms that a stage may have, "loss" included


class Stage(Protocol):
    """What the loop needs to know of a stage.

    A stage whose ranks are cut into expert groups also has `takes(step)`, whether this rank's group trains at a step,
    and `export_part(folder)`, which adds what the main rank does not have to the folder that it exports.
    """

    name: str
    number: int  # separates the random streams of stages
    config: StageConfig
    folder: Path  # of the finished result
    networks: dict[str, paddle.nn.Layer]  # trained, by name
    groups: list[str]  # what losses are logged by, for example experts

    def batches(self, first_step: int) -> Iterator:
        """This rank's share of every step from one on, in `accumulation` passes, whose `indices` say which samples."""

    def losses(self, batch, step: int) -> tuple[dict[str, paddle.Tensor], np.ndarray]:
        """Named terms (N,) of a pass, their sum being minimised but for "plain", and groups (N,) int."""

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
    ranks = distributed.shares(expert_groups=stage.partition("_")[0] == "experts")
    if config.batch_size % (ranks * config.accumulation):
        raise ConfigError(f"train.{stage}.batch_size={config.batch_size} cannot be shared evenly by {ranks} ranks in "
                          f"accumulation={config.accumulation} passes each: choose another batch_size")


class Trainer:
    """Runs one stage from its newest checkpoint to its end; `accepted` is called before the first new step."""

    def __init__(self, stage: Stage, store: CheckpointStore, log_folder: Path, seed: int,
                 settings: DistributedConfig | None = None, precision: Precision | None = None,
                 accepted: Callable[[], None] = lambda: None):
        self.stage, self.store, self.log_folder, self.seed = stage, store, log_folder, seed
        self.config, self.settings = stage.config, settings or DistributedConfig()
        self.precision, self.writer, self.accepted = precision or Precision(), BackgroundWriter(), accepted
        check_shares(stage.name, self.config)
        if paddle.get_device() == "cpu":
            for network in stage.networks.values():
                use_matmul_bias_gradients(network)
        self.parameters = {f"{name}.{key}": parameter for name, network in stage.networks.items()
                           for key, parameter in network.named_parameters() if not parameter.stop_gradient}
        self._build_optimizer()
        self._start_averages()
        self.sample_order = ""  # hash over the samples of every step so far
        self.stop_agreed, self.saved, self.terms, self.steps_taken = False, None, [], 0
        self.waited = 0.0  # seconds for data in the current step

    def _start_averages(self) -> None:
        """Averages of what this rank keeps the optimizer's state of."""
        self.ema = ExponentialMovingAverage(self.owned, self.config.ema_decay, self.config.ema_every, self._exact)

    def _exact(self, parameter: paddle.Tensor) -> paddle.Tensor:
        """The float32 master copy of a parameter, or itself where it is float32."""
        return self.inner_optimizer._master_weights.get(parameter.name, parameter)

    def run_loop(self) -> None:
        """Train to the last step, then export.

        Raises:
            CheckpointError, FloatingPointError: no checkpoint is lost.
            Stopped: a signal asked for it; the checkpoint is written.
        """
        first_step = self.resume()
        if first_step < self.config.steps:
            self.accepted()
            self._train(first_step)
        elif first_step > self.config.steps:
            logger.warning("the newest checkpoint in %s has %d steps, more than train.%s.steps=%d; it is taken as is",
                           self.store.root, first_step, self.stage.name, self.config.steps)
        self._export()

    def _export(self) -> None:
        """The result of the averaged weights, unless it is there already; each expert group adds its own experts."""
        folder, main = self.stage.folder, distributed.is_main()
        if not distributed.from_main("current" if main and self.store.export_is_current(folder) else ""):
            self._swap_averages()
            if main:
                with replaced_folder(folder) as partial_folder:
                    self.stage.export(partial_folder)
                    distributed.barrier()
                    distributed.barrier()
                self.store.note_export(folder)
            else:
                distributed.barrier()
                if distributed.layout().groups > 1 and distributed.share() == 0:
                    self.stage.export_part(folder.parent / f".{folder.name}.partial")
                distributed.barrier()
            self._swap_averages()
        logger.info("stage %s is finished: %s", self.stage.name, folder)
        distributed.barrier()

    def _swap_averages(self) -> None:
        """Exchange weights and averages on every rank of a group."""
        self.ema.swap()
        with distributed.traffic.of("validation"):
            distributed.share_owned_weights(list(self.parameters.values()), self.optimizer)

    def _train(self, first_step: int) -> None:
        config, stage = self.config, self.stage
        logger.info("stage %s: from step %d to %d, checkpoints in %s", stage.name, first_step, config.steps,
                    self.store.root)
        self.monitor = Monitor(self.log_folder, stage.name, config.steps, first_step, config.batch_size,
                               enabled=distributed.is_main())
        distributed.traffic.reset()
        try:
            with stopping.loop():
                self._run_steps(first_step)
        finally:
            self._note_traffic(first_step)
            self.monitor.close()
            self.writer.close()

    def _note_traffic(self, first_step: int) -> None:
        """What this rank sent in this stage since it was started -> `<logs>/traffic_<stage>_<rank>.json`."""
        if distributed.world_size() > 1:
            note = {"stage": self.stage.name, "first_step": first_step, "steps_taken": self.steps_taken,
                    "layout": vars(distributed.layout()), "traffic": distributed.traffic.as_dict()}
            path = self.log_folder / f"traffic_{self.stage.name}_{distributed.rank():03d}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(note, indent=1), encoding="utf-8")

    def _run_steps(self, first_step: int) -> None:
        config = self.config
        if first_step == 0:
            self.validate(0)
        self._reset_window()
        batches, takes = self.stage.batches(first_step), getattr(self.stage, "takes", lambda step: True)
        for step in range(first_step, config.steps):
            if takes(step):
                started, self.waited = time.perf_counter(), 0.0
                samples = self.run_step(batches, step)
                self.steps_taken += 1
                self.monitor.step(self.waited, samples, time.perf_counter() - started)
            else:  # another expert group's step, or that of an expert which is not trained here
                self.ema.update(step + 1)
                self.monitor.step()
            self._after_step(step + 1)
        self._finish_write()

    def _after_step(self, done: int) -> None:
        config, last = self.config, done == self.config.steps
        self.writer.check()
        if done % config.log_every == 0 or last:
            self.log_step(done)
        if last or done % config.checkpoint_every == 0:  # before anything that may fail and is not needed to go on
            started = time.perf_counter()
            self.save(done)
            self.monitor.record(done, {"checkpoint_pause_seconds": time.perf_counter() - started})
        if last or (config.validate_every and done % config.validate_every == 0):
            self.validate(done)
        if last or (config.sample_every and done % config.sample_every == 0):
            self._finish_write()
            self.draw(done)
        if self._must_stop(done):
            self._stop(done)

    def _must_stop(self, done: int) -> bool:
        """Whether any rank was asked to stop; expert groups ask each other once a round, when each had its turns."""
        place = distributed.layout()
        if place.groups == 1:
            return self.stop_agreed if place.shares > 1 else stopping.requested()
        if done % len(self.stage.groups) and done != self.config.steps:
            return False
        return bool(distributed.agree_in_world(np.array([stopping.requested()]))[0])

    def _stop(self, done: int) -> None:
        if self.saved != done:
            self.save(done)
        self._finish_write()
        raise stopping.Stopped(f"stage {self.stage.name} stopped after step {done}; the checkpoint is in "
                               f"{self.store.root}. Run the same command again to go on")

    def run_step(self, passes: Iterator, step: int) -> int:
        """One optimizer step over the next passes; gives the number of samples on this rank."""
        distributed.seed_step(self.seed, step, self.stage.number)
        indices = self.forward_backward(passes, step)
        self._agree()
        distributed.average_gradients(list(self.parameters.values()), self.optimizer)
        norm = self._clip_gradients(step)
        self.window["gradient_norm"].append(norm)
        self.optimizer.set_lr(learning_rate_at(step, self.config))
        if math.isfinite(norm):  # else float16 has overflowed, and the next steps use a lower scale
            with distributed.traffic.of("weights"):
                self.optimizer.step()
        self.precision.update(math.isfinite(norm))
        # None rather than zero: an expert that did not run must not be decayed or moved by its momentum
        self.optimizer.clear_grad(set_to_zero=False)
        self.ema.update(step + 1)
        self.sample_order = hashlib.sha256(f"{self.sample_order} {step} {indices}".encode()).hexdigest()
        return len(indices)

    @paddle.no_grad()
    def _agree(self) -> None:
        """Ranks of a group agree on stopping, and on which weights have gradients: zeros where others have some."""
        if distributed.shares() == 1:
            return
        parameters = list(self.parameters.values()) if self.settings.find_unused_parameters else []
        used = distributed.agree(np.array([stopping.requested(), *(p.grad is not None for p in parameters)]))
        self.stop_agreed = bool(used[0])
        distributed.fill_gradients([p for p, wanted in zip(parameters, used[1:]) if wanted], self.optimizer)

    def forward_backward(self, passes: Iterator, step: int) -> list[int]:
        """Gradients of the mean loss over this rank's share, pass by pass; gives which samples they were."""
        indices, count = [], self.config.accumulation
        for number in range(count):
            batch = self._next_pass(passes)
            with self.precision.autocast():
                terms, groups = self.stage.losses(batch, step)
                loss = sum(term for name, term in terms.items() if name != "plain")  # (N,)
                mean = loss.mean() / count
            self.precision.scale(mean).backward()
            # ranks talk once all passes are done, with sharding stage 2 during every one
            distributed.finish_pass(self.optimizer, last=number == count - 1)
            self._note_losses({"loss": loss, **terms}, groups, step)
            indices += batch.indices.tolist()
        return indices

    def _next_pass(self, passes: Iterator):
        started = time.perf_counter()
        batch = next(passes)
        self.waited += time.perf_counter() - started
        return batch

    def _note_losses(self, terms: dict[str, paddle.Tensor], groups: np.ndarray, step: int) -> None:
        for name, term in terms.items():
            values = term.detach().astype("float32").numpy().astype(np.float64)  # (N,)
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
        """Scale gradients to the global norm limit; gives the norm before, over the ranks that hold a shard each."""
        self.precision.unscale(self.inner_optimizer)
        gradients = [p.grad for p in self.owned.values() if p.grad is not None]
        squares = [g.astype("float32").square().sum() for g in gradients] or [paddle.zeros([])]
        norm = float(distributed.sum_over_shards(paddle.add_n(squares)).sqrt())
        if not math.isfinite(norm) and self.precision.scaler is None:  # before it reaches weights and checkpoints
            raise self._not_finite("the gradient", step)
        if self.config.gradient_clip and norm > self.config.gradient_clip:
            for gradient in gradients:
                gradient.scale_(self.config.gradient_clip / norm)
        return norm

    def log_step(self, done: int) -> None:
        """Means over ranks and over the steps since the last log: loss terms, also per group."""
        norms, scalars = self.window["gradient_norm"], {"learning_rate": self.optimizer.get_lr()}
        if norms:
            scalars["gradient_norm"] = float(np.mean(norms))
        self.terms = names = sorted(self.window["sums"]) or self.terms
        table = np.zeros((_TERMS, 2, len(self.stage.groups)))  # groups without a step in the window send zeros
        for row, name in enumerate(names):
            table[row] = self.window["sums"].get(name, 0.0)
        table = distributed.mean_over_ranks(table.reshape(-1)).reshape(table.shape)
        for name, (sums, counts) in zip(names, table):
            if counts.any():
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
        self._swap_averages()
        scalars = self.stage.validate()
        self._swap_averages()
        self.monitor.record(done, {f"validation/{name}": value for name, value in scalars.items()})

    def draw(self, done: int) -> None:
        """Pictures of the fixed prompts with the averaged weights, into VisualDL and the log folder.

        Where that fails the log says why, and training goes on: what is learnt does not depend on it.
        """
        self._swap_averages()
        try:
            picture = self.stage.draw(done) if distributed.is_main() else None
            if picture is not None:
                self.monitor.image(done, "samples", picture)
        except Exception as error:
            logger.warning("stage %s: no pictures at step %d (%s: %s); training goes on", self.stage.name, done,
                           type(error).__name__, error, exc_info=True)
        self._swap_averages()
        distributed.barrier()

    def save(self, done: int) -> None:
        """Checkpoint: copy the state and write it beside the next steps; the write before must be done by now."""
        self._finish_write()
        place, self.saved = distributed.layout(), done
        if place.writer is None:
            return
        progress = {"stage": self.stage.name, "seed": self.seed, "next_step": done, "sample_order": self.sample_order,
                    "numpy": np.__version__, "paddle": paddle.__version__}
        self.writer.start(partial(self.store.save, done, self.state(), progress, place.writer, place.writers,
                                  self.writer.cancelled))

    def _finish_write(self) -> None:
        """Wait until the checkpoint under way is whole. Raises CheckpointError on every rank if any part failed."""
        writers = distributed.layout().writers
        if writers > 1:  # part 0 waits for the other parts, so these come first
            self._wait_together(distributed.layout().writer != 0)
        self._wait_together(distributed.is_main())

    def _wait_together(self, mine: bool) -> None:
        failure = None
        try:
            if mine:
                self.writer.wait()
        except CheckpointError as error:
            failure = error
        distributed.barrier()  # writing may take longer than a reduction waits
        failed = distributed.mean_over_ranks(np.array([float(failure is not None)]))[0]
        if failed:
            self.writer.cancelled.set()
            raise failure or CheckpointError("another rank could not write its part of the checkpoint; see its message")

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Copy of everything that the next step depends on, by object and name; of a shard, what this rank owns."""
        state = {"net": {name: self._exact(p).numpy() for name, p in self.owned.items()},
                 "optimizer": self._optimizer_state(), "ema": self.ema.state_dict()}
        if distributed.is_main() and self.precision.scaler is not None:
            state["grad_scaler"] = self.precision.state_dict()
        return state

    def resume(self) -> int:
        """Load the newest whole checkpoint; gives the step to go on with."""
        distributed.share_initial_weights(self.stage.networks.values())
        self._start_averages()
        name = ""
        if distributed.is_main():
            self.store.clear_partial()
            name = self.store.newest()
        step = self._load(distributed.from_main(name))
        distributed.barrier()
        if distributed.mean_over_ranks(np.array([float(step)]))[0] != np.float32(step):
            raise CheckpointError(f"rank {distributed.rank()} would go on from step {step} in {self.store.root} and "
                                  f"another rank from elsewhere: the output must be on storage that all ranks share")
        return step

    def _load(self, checkpoint: str) -> int:
        """Take over what this rank needs of a checkpoint, whatever ranks and axes it was written on."""
        if not checkpoint:
            return 0
        needed = {"net": self.parameters, "ema": self.owned, "optimizer": self._accumulators()}
        manifest, objects = self.store.load(checkpoint, lambda kind, key: key in needed.get(kind, (key,)))
        for kind, names in needed.items():
            lacking = sorted(names.keys() - objects.get(kind, {}).keys())
            if lacking:
                raise CheckpointError(f"{self.store.root / checkpoint}: {kind} lacks {lacking[0]} ({len(lacking)} of "
                                      f"{len(names)} are missing); it is the checkpoint of another model")
        for name, parameter in self.parameters.items():
            weights = paddle.to_tensor(objects["net"][name])
            parameter.set_value(weights.astype(parameter.dtype))
            if self._exact(parameter) is not parameter:
                self._exact(parameter).set_value(weights)
        self.ema.load_state_dict(objects["ema"])
        for key, accumulator in self._accumulators().items():
            accumulator.set_value(paddle.to_tensor(objects["optimizer"][key]))
        self.precision.load_state_dict(objects.get("grad_scaler", {}))
        self.sample_order = manifest["progress"].get("sample_order", "")
        return manifest["progress"]["next_step"]

    def _build_optimizer(self) -> None:
        """AdamW, inside Fleet's sharding where there is that axis; `owned` are the parameters whose state is here."""
        config, undecayed = self.config, self.stage.undecayed()
        names = {p.name for key, p in self.parameters.items() if key not in undecayed}
        optimizer = paddle.optimizer.AdamW(
            learning_rate=config.learning_rate, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon,
            weight_decay=config.weight_decay, parameters=list(self.parameters.values()),
            apply_decay_param_fun=names.__contains__)
        self.precision.prepare(list(self.stage.networks.values()), optimizer)
        self.inner_optimizer = optimizer
        self.optimizer = distributed.sharded_optimizer(optimizer, self.settings)
        mine = {p.name for p in optimizer._parameter_list}
        self.owned = {name: p for name, p in self.parameters.items() if p.name in mine}
        # All moments now: Paddle makes them at a parameter's first step, so that after a resume the moments of experts
        # which have not had their turn yet would be missing from the next checkpoint
        optimizer._create_accumulators(paddle.static.default_main_program().global_block(),
                                       list(self.owned.values()))

    def _accumulators(self) -> dict[str, paddle.Tensor]:
        """The optimizer's state under our parameter names: Paddle's own count up with every layer ever made."""
        ours = {p.name: key for key, p in self.owned.items()}
        return {f"{accumulator}/{ours[internal]}": value
                for accumulator, by_parameter in self.inner_optimizer._accumulators.items()
                for internal, value in by_parameter.items()}

    def _optimizer_state(self) -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in self._accumulators().items()}
