"""The training loop: the same for every stage, resumable at any step, bit for bit.

A stage says what is trained, on which batches and with which named per-sample loss terms; only this loop reduces them.
Everything random is a function of (seed, share, step), so a checkpoint holds weights, optimizer, averages and a step,
under names that do not depend on the number of ranks or on their axes.
"""
from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import paddle

from ppvilg.config import ConfigError, DistributedConfig, StageConfig
from ppvilg.engine import stopping
from ppvilg.engine.checkpoint import BackgroundWriter, CheckpointError, CheckpointStore, replaced_folder
from ppvilg.engine.monitor import Monitor
from ppvilg.engine.parallel import distributed
from ppvilg.engine.stages.stage import Stage
from ppvilg.engine.training import resuming
from ppvilg.engine.training.losses import LossWindow
from ppvilg.engine.training.precision import Precision
from ppvilg.engine.training.schedule import learning_rate_at, rate_factor
from ppvilg.engine.training.state import TrainingState

logger = logging.getLogger(__name__)


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
        distributed.share_initial_weights(stage.networks.values())
        self.state = TrainingState(stage, self.settings, self.precision)
        self.parameters, self.optimizer = self.state.parameters, self.state.optimizer
        self.window = LossWindow(stage.groups)
        self.checks_every_step = paddle.get_device() == "cpu"  # a GPU would have to be waited for
        self.sample_order = ""  # hash over the samples of every step so far
        self.stop_agreed, self.saved, self.steps_taken = False, None, 0
        self.waited = 0.0  # seconds for data in the current step

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
            with self.state.averaged(wide=True):
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
        logger.info("stage %s is finished: %s", self.stage.name, folder)
        distributed.barrier()

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
        self.window.reset()
        batches = self.stage.batches(first_step)
        for step in range(first_step, config.steps):
            if self.stage.is_active_step(step):
                started, self.waited = time.perf_counter(), 0.0
                samples = self.run_step(batches, step)
                self.steps_taken += 1
                self.monitor.step(self.waited, samples, time.perf_counter() - started)
            else:  # another expert group's step, or that of an expert which is not trained here
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
            self.sample(done)
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
        stopping.take_time()
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
        norm = self._clip_gradients()
        self.window.add_norm(norm)
        self.optimizer.set_lr(learning_rate_at(step, self.config, self.stage.turns))
        if self._may_step(norm, step):
            with distributed.traffic.of("weights"):
                self.optimizer.step()
        # None rather than zero: an expert that did not run must not be decayed or moved by its momentum
        self.optimizer.clear_grad(set_to_zero=False)
        self.state.ema.update(step + 1)
        self.sample_order = hashlib.sha256(f"{self.sample_order} {step} {indices}".encode()).hexdigest()
        return len(indices)

    def _may_step(self, norm: paddle.Tensor, step: int) -> bool:
        """Whether gradients may reach the weights; float16 skips a step that overflowed, and lowers its scale."""
        if self.precision.scaler is not None:
            finite = bool(paddle.isfinite(norm))
            try:
                self.precision.update(finite)
            except FloatingPointError as error:
                raise self._not_finite("the gradient", step) from error
            return finite
        if self.checks_every_step:
            self._check_numbers(step)
        return True

    def _check_numbers(self, step: int) -> None:
        """Raise FloatingPointError where a loss or a gradient since the last log was no number."""
        if self.precision.scaler is None and (wrong := self.window.not_finite()):
            raise self._not_finite(wrong, step)

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
            self.precision.gather(self.parameters.values(), last=number == count - 1)
            self.window.add({"loss": loss, **terms}, groups)
            indices += batch.indices.tolist()
        return indices

    def _next_pass(self, passes: Iterator):
        started = time.perf_counter()
        batch = next(passes)
        self.waited += time.perf_counter() - started
        return batch

    def _not_finite(self, what: str, step: int) -> FloatingPointError:
        return FloatingPointError(f"{self.stage.name}: {what} is not finite at step {step}; the last checkpoint is in "
                                  f"{self.store.root}. Lower the learning rate or clip harder")

    @paddle.no_grad()
    def _clip_gradients(self) -> paddle.Tensor:
        """Scale gradients to the global norm limit; gives the norm before, over the ranks that hold a shard each."""
        self.precision.unscale(self.state.inner_optimizer)
        gradients = self.state.gradients()
        squares = [g.astype("float32").square().sum() for g in gradients] or [paddle.zeros([])]
        norm = distributed.sum_over_shards(paddle.add_n(squares)).sqrt()
        if self.config.gradient_clip:
            scale = (self.config.gradient_clip / norm).clip(max=1.0)
            for gradient in gradients:
                gradient.multiply_(scale.astype(gradient.dtype))
        return norm

    def log_step(self, done: int) -> None:
        """Means over ranks and over the steps since the last log: loss terms, also per group."""
        self._check_numbers(done - 1)
        rate = self.optimizer.get_lr()
        rates = {f"learning_rate/{part}": rate * factor for part in self.stage.networks
                 if (factor := rate_factor(self.config, part)) != 1.0}
        self.monitor.log(done, {"learning_rate": rate, **rates, **self.window.scalars()})
        self.window.reset()

    def validate(self, done: int) -> None:
        """Validation scalars of the averaged weights, computed as in training."""
        with self.state.averaged(), self.precision.autocast():
            scalars = self.stage.validate()
        self.monitor.record(done, {f"validation/{name}": value for name, value in scalars.items()})

    def sample(self, done: int) -> None:
        """Pictures of the fixed prompts with the averaged weights, into VisualDL and the log folder.

        Where that fails the log says why, and training goes on: what is learnt does not depend on it.
        """
        with self.state.averaged(wide=True):
            try:
                picture = self.stage.sample(done)
                if picture is not None:
                    self.monitor.image(done, "samples", picture)
            except Exception as error:
                logger.warning("stage %s: no pictures at step %d (%s: %s); training goes on", self.stage.name, done,
                               type(error).__name__, error, exc_info=True)
            distributed.barrier()

    def save(self, done: int) -> None:
        """Checkpoint: copy the state and write it beside the next steps; the write before must be done by now."""
        self._check_numbers(done - 1)
        self._finish_write()
        place, self.saved = distributed.layout(), done
        if place.writer is None:
            return
        progress = {"stage": self.stage.name, "seed": self.seed, "next_step": done, "sample_order": self.sample_order,
                    "numpy": np.__version__, "paddle": paddle.__version__}
        self.writer.start(partial(self.store.save, done, self.state.state_dict(), progress, place.writer, place.writers,
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

    def resume(self) -> int:
        """Load the newest whole checkpoint; gives the step to go on with."""
        name = ""
        if distributed.is_main():
            self.store.clear_partial()
            name = self.store.newest()
            if name:
                changed = self.store.changes(name)
                resuming.note_changes(self.log_folder / "changes.jsonl", self.stage.name, name, changed)
        step = self._load(distributed.from_main(name))
        distributed.barrier()
        most, least = distributed.agree_in_world(np.array([step, -step]))
        if most != -least:
            raise CheckpointError(f"rank {distributed.rank()} would go on from step {step} in {self.store.root} and "
                                  f"another rank from elsewhere: the output must be on storage that all ranks share")
        return step

    def _load(self, checkpoint: str) -> int:
        """Take over what this rank needs of a checkpoint, whatever ranks and axes it was written on."""
        if not checkpoint:
            return 0
        needed = self.state.needed()
        manifest, objects = self.store.load(checkpoint, lambda kind, key: key in needed.get(kind, (key,)))
        if anew := self.state.begin_anew(objects):
            logger.warning("stage %s: %s begin anew, for %s has none", self.stage.name, " and ".join(anew), checkpoint)
        for kind, tensors in needed.items():
            found = objects.get(kind, {})
            lacking = sorted(tensors.keys() - found.keys())
            if lacking:
                raise CheckpointError(f"{self.store.root / checkpoint}: {kind} lacks {lacking[0]} ({len(lacking)} of "
                                      f"{len(tensors)} are missing); it is the checkpoint of another model")
            for key, tensor in tensors.items():
                if list(found[key].shape) != list(tensor.shape):
                    raise CheckpointError(f"{self.store.root / checkpoint}: {kind} {key} has shape "
                                          f"{list(found[key].shape)}, the recipe's is {list(tensor.shape)}; it is the "
                                          "checkpoint of another model")
        self.state.load_state_dict(objects)
        self.sample_order = manifest["progress"].get("sample_order", "")
        return manifest["progress"]["next_step"]
