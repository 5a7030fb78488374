"""The loop on a stage of one small network: accumulation, clipping, resuming, and what must stop it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from ppvilg.config import ConfigError, PrecisionConfig, StageConfig
from ppvilg.engine import CheckpointError, CheckpointStore, Trainer, distributed, stopping
from ppvilg.engine.checkpoint import hash_folder
from ppvilg.engine.stages.stage import Stage
from ppvilg.engine.training.precision import Precision

SETTINGS = dict(steps=6, batch_size=4, learning_rate=1e-2, ema_decay=0.8, ema_every=1, checkpoint_every=2, log_every=3,
                validate_every=0)


@dataclass
class ToyBatch:
    indices: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


class ToyStage(Stage):
    """Regression with dropout; samples alternate between two groups."""

    name, number, groups = "toy", 9, ["even", "odd"]

    def __init__(self, folder, dropout=0.0, fault=None, **settings):
        self.config = StageConfig(**{**SETTINGS, **settings})
        paddle.seed(5)
        net = paddle.nn.Sequential(paddle.nn.Linear(3, 8), paddle.nn.Dropout(dropout), paddle.nn.Linear(8, 1))
        self.networks, self.folder, self.fault = {"net": net}, folder, fault
        self.steps_seen, self.exports, self.drawn = [], 0, []

    def batches(self, first_step):
        step = first_step
        while True:
            rng = np.random.default_rng(step)
            inputs = rng.standard_normal((self.config.batch_size, 3)).astype(np.float32)
            order, targets = rng.permutation(self.config.batch_size), inputs.sum(1, keepdims=True)
            for part in np.split(np.arange(self.config.batch_size), self.config.accumulation):
                yield ToyBatch(order[part], inputs[part], targets[part])
            step += 1

    def losses(self, batch, step):
        self.steps_seen.append(step)
        error = self.networks["net"](paddle.to_tensor(batch.inputs)) - paddle.to_tensor(batch.targets)
        squared = error.square().mean(axis=1)
        if self.fault is not None:
            squared = self.fault(squared, step)
        return {"squared": squared, "plain": 1000 * squared}, batch.indices % 2

    def undecayed(self):
        return {"net.0.bias", "net.2.bias"}

    def validate(self):
        return {"loss": 1.0}

    def sample(self, step):
        self.drawn.append(step)
        return np.zeros((4, 4, 3), np.uint8)

    def export(self, folder):
        self.exports += 1
        np.save(folder / "weight.npy", self.networks["net"][0].weight.numpy())


@pytest.fixture
def train(tmp_path):
    """train(name, ...) -> Trainer of a new stage with its checkpoints in tmp_path/name."""

    def build(name, precision=None, **settings):
        stage = ToyStage(tmp_path / name / "toy", **settings)
        store = CheckpointStore(tmp_path / name / "checkpoints", {"toy": 1}, stage.config.keep_checkpoints)
        return Trainer(stage, store, tmp_path / name / "logs", seed=1, precision=precision)

    return build


def final(trainer) -> dict:
    """Every array of the newest checkpoint, and the order of samples."""
    manifest, found = trainer.store.load_newest()
    arrays = {f"{name}/{key}": value for name, group in found.items() for key, value in group.items()}
    return {"order": manifest["progress"]["sample_order"], **arrays}


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.asarray(value).tobytes() == np.asarray(other[name]).tobytes(), name


def test_two_passes_equal_one(train):
    whole, halves = train("whole"), train("halves", accumulation=2)
    whole.run_loop()
    halves.run_loop()
    assert halves.stage.steps_seen == [step for step in range(6) for _ in range(2)]
    one, other = final(whole), final(halves)
    for name in one.keys() - {"order"}:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert one["order"] == other["order"]


def test_the_plain_term_is_not_minimised(train):
    trainer = train("plain", gradient_clip=0.0)
    trainer.resume()
    trainer.forward_backward(trainer.stage.batches(0), 0)
    by_loop = trainer.parameters["net.0.weight"].grad.numpy()
    other = ToyStage(trainer.stage.folder)
    other.losses(next(other.batches(0)), 0)[0]["squared"].mean().backward()
    np.testing.assert_allclose(by_loop, other.networks["net"][0].weight.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.0])
def test_gradients_are_clipped_to_the_global_norm(train, limit):
    trainer = train("clip", gradient_clip=limit)
    trainer.stage.losses(next(trainer.stage.batches(0)), 0)[0]["squared"].mean().backward()
    gradients = {name: p.grad.numpy() for name, p in trainer.parameters.items()}
    before = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    assert before > 0.05
    assert float(trainer._clip_gradients()) == pytest.approx(before, rel=1e-5)
    for name, p in trainer.parameters.items():
        scale = limit / before if limit else 1.0
        np.testing.assert_allclose(p.grad.numpy(), gradients[name] * scale, rtol=1e-5, err_msg=name)


def test_weight_decay_leaves_out_what_the_stage_says(train):
    def zero(squared, step):
        return squared * 0.0

    trainer = train("decay", weight_decay=0.5, fault=zero, decay="constant", steps=1)
    before = {name: p.numpy() for name, p in trainer.parameters.items()}
    trainer.run_loop()
    for name in before:
        factor = 1.0 if name.endswith("bias") else 1.0 - 1e-2 * 0.5
        np.testing.assert_allclose(trainer.parameters[name].numpy(), before[name] * factor, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("stop", range(6))
def test_stopped_at_any_step_the_end_is_the_same_bit_for_bit(train, stop, monkeypatch):
    undisturbed = train("undisturbed", dropout=0.5)
    undisturbed.run_loop()
    stopped = train("stopped", dropout=0.5)
    real = Trainer.run_step

    def interrupted(self, passes, step):
        if step == stop:
            raise KeyboardInterrupt
        return real(self, passes, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "run_step", interrupted)
        stopped.run_loop()
    again = train("stopped", dropout=0.5)
    again.run_loop()
    assert again.stage.steps_seen[0] == stop // 2 * 2
    assert_same_bits(final(again), final(undisturbed))
    assert hash_folder(again.stage.folder) == hash_folder(undisturbed.stage.folder)


@pytest.mark.parametrize("settings", [{"optimizer": "lion", "ema": "power"}, {"optimizer": "adafactor", "ema": "none"}])
def test_other_optimizers_and_averages_resume_bit_for_bit(train, settings):
    undisturbed, first = train("undisturbed", **settings), train("halves", **settings)
    undisturbed.run_loop()
    first._must_stop = lambda done: done == 3
    with pytest.raises(stopping.Stopped):
        first.run_loop()
    again = train("halves", **settings)
    again.run_loop()
    assert again.stage.steps_seen == [3, 4, 5]
    assert_same_bits(final(again), final(undisturbed))


def test_without_averages_the_result_is_of_the_last_weights(train):
    trainer = train("last", ema="none")
    trainer.run_loop()
    exported, state = np.load(trainer.stage.folder / "weight.npy"), trainer.store.load_newest()[1]
    assert exported.tobytes() == state["net"]["net.0.weight"].tobytes() and not state.get("ema")


def test_another_optimizer_and_averages_begin_anew_on_the_weights_that_are_there(train, caplog):
    train("changed", ema="none", steps=4).run_loop()
    before = final(train("changed"))
    other = train("changed", optimizer="adafactor")
    assert other.resume() == 4 and "averages and the optimizer's state begin anew, for step_00000004" in caplog.text
    for name, p in other.parameters.items():
        assert p.numpy().tobytes() == before[f"net/{name}"].tobytes()
    assert other.state.ema.state_dict().keys() == other.parameters.keys()
    other.run_loop()
    assert final(other).keys() > {"optimizer/row/net.0.weight", "ema/net.0.weight"}


def test_the_order_of_samples_is_noted(train):
    one, other = train("one"), train("other")
    real = other.stage.batches
    other.stage.batches = lambda first: real(first + 1)
    one.run_loop()
    other.run_loop()
    assert len(final(one)["order"]) == 64
    assert final(one)["order"] != final(other)["order"]


def test_a_finished_stage_is_neither_trained_nor_exported_again(train):
    first = train("again", sample_every=3)
    first.run_loop()
    assert first.stage.exports == 1 and first.stage.drawn == [3, 6]
    second = train("again", sample_every=3)
    second.run_loop()
    assert second.stage.exports == 0 and second.stage.steps_seen == [] and second.stage.drawn == []


def test_the_result_is_of_the_averaged_weights(train):
    trainer = train("averaged")
    trainer.run_loop()
    exported = np.load(trainer.stage.folder / "weight.npy")
    state = trainer.store.load_newest()[1]
    assert exported.tobytes() == state["ema"]["net.0.weight"].tobytes()
    assert exported.tobytes() != state["net"]["net.0.weight"].tobytes()


def test_more_steps_go_on_and_replace_the_result(train):
    train("longer").run_loop()
    longer = train("longer", steps=8)
    longer.run_loop()
    assert longer.stage.steps_seen == [6, 7] and longer.stage.exports == 1


def test_fewer_steps_than_were_trained_are_pointed_out(train, caplog):
    train("fewer").run_loop()
    train("fewer", steps=3).run_loop()
    assert "has 6 steps, more than train.toy.steps=3" in caplog.text


def test_a_lost_result_is_made_again_from_the_checkpoint(train):
    first = train("lost")
    first.run_loop()
    (first.stage.folder / "weight.npy").unlink()
    second = train("lost")
    second.run_loop()
    assert second.stage.exports == 1 and second.stage.steps_seen == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(train, value):
    trainer = train("loss", fault=lambda squared, step: squared * value if step == 3 else squared)
    with pytest.raises(FloatingPointError, match="toy: loss term 'loss' is not finite at step 3.*checkpoints"):
        trainer.run_loop()
    manifest, found = trainer.store.load_newest()
    assert manifest["progress"]["next_step"] == 2
    assert all(np.isfinite(array).all() for array in found["net"].values())


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(train):
    def infinite_slope(squared, step):  # the square root's slope at 0 is infinite, its value is not
        return squared if step < 3 else squared + (squared * 0.0).sqrt()

    trainer = train("gradient", fault=infinite_slope)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 3"):
        trainer.run_loop()
    assert all(np.isfinite(p.numpy()).all() for p in trainer.parameters.values())


def test_a_batch_must_fit_ranks_and_passes(train, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="train.toy.batch_size=4 .* 3 ranks"):
        train("ranks")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="train.toy.batch_size=4 .* 2 ranks in accumulation=4"):
        train("ranks", accumulation=4)


def test_ranks_must_go_on_from_the_same_step(train, monkeypatch):
    train("shared", steps=2).run_loop()
    other = train("shared")
    # the other rank is one step behind, at a step that float32 cannot tell from the next
    monkeypatch.setattr(distributed, "agree_in_world", lambda flags: np.maximum(flags, [flags[0] - 1, 1 - flags[0]]))
    with pytest.raises(CheckpointError, match="from step 2 .* storage that all ranks share"):
        other.run_loop()


# ---- ranks, signals, mixed precision


def test_ranks_agree_on_which_weights_have_gradients(train, monkeypatch):
    """Zeros where another rank has a gradient and this one has none; nothing where nobody has one."""
    trainer = train("unused")
    first, *others = trainer.parameters.values()
    first.grad = paddle.ones_like(first)
    monkeypatch.setattr(distributed, "shares", lambda: 2)
    monkeypatch.setattr(distributed, "agree", lambda flags: np.array([0, 1, 1, 0, 0]) if list(flags) == [
        0, 1, 0, 0, 0] else pytest.fail(str(flags)))
    trainer._agree()
    assert first.grad.numpy().min() == 1.0 and not trainer.stop_agreed
    assert others[0].grad.shape == others[0].shape and not others[0].grad.numpy().any()
    assert others[1].grad is None and others[2].grad is None


def test_a_request_to_stop_is_honoured_after_the_step(train, monkeypatch):
    undisturbed, stopped = train("undisturbed", dropout=0.5), train("stopped", dropout=0.5)
    undisturbed.run_loop()
    real = stopped.stage.losses

    def ask(batch, step):
        monkeypatch.setattr(stopping, "_requested", 15 if step == 2 else None)
        return real(batch, step)

    stopped.stage.losses = ask
    with pytest.raises(stopping.Stopped, match="stage toy stopped after step 3.*Run the same command again"):
        stopped.run_loop()
    assert stopped.store.load_newest()[0]["progress"]["next_step"] == 3
    monkeypatch.setattr(stopping, "_requested", None)
    again = train("stopped", dropout=0.5)
    again.run_loop()
    assert again.stage.steps_seen == [3, 4, 5]
    assert_same_bits(final(again), final(undisturbed))


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_mixed_precision_does_nothing_on_a_cpu_and_says_so(train, level, caplog):
    plain, mixed = train("plain"), train("mixed", Precision(PrecisionConfig(level, "float16")))
    assert f"precision.level={level} (float16) does nothing on a CPU" in caplog.text
    plain.run_loop()
    mixed.run_loop()
    assert_same_bits(final(mixed), final(plain))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """paddle.amp believes that this is a GPU: loss scaling is real then, the low precision is not."""
    import paddle.amp.grad_scaler as module

    place = SimpleNamespace(is_gpu_place=lambda: True)
    monkeypatch.setattr(module, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place))
    monkeypatch.setattr(module, "amp_global_state", lambda: SimpleNamespace(amp_dtype="float16"))
    monkeypatch.setattr(Precision, "supported", staticmethod(lambda: True))
    casts = []
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: casts.append(options) or nullcontext())
    return casts


def test_a_scaled_loss_gives_the_same_steps(train, as_on_a_gpu):
    """GradScaler's powers of two are exact in float32: whatever is scaled must be unscaled before the norm."""
    plain, scaled = train("plain", gradient_clip=0.05), train(
        "scaled", Precision(PrecisionConfig("O1", "float16")), gradient_clip=0.05)
    plain.run_loop()
    scaled.run_loop()
    assert as_on_a_gpu == [{"level": "O1", "dtype": "float16"}] * 8  # six steps, validated before and after
    found = {name: value for name, value in final(scaled).items() if not name.startswith("grad_scaler/")}
    assert_same_bits(found, final(plain))
    assert final(scaled)["grad_scaler/incr_count"].tolist() == [6]


def test_an_overflow_skips_the_step_and_lowers_the_scale(train, as_on_a_gpu):
    def infinite_slope(squared, step):  # the square root's slope at 0 is infinite, its value is not
        return squared if step not in (2, 3) else squared + (squared * 0.0).sqrt()

    trainer = train("overflow", Precision(PrecisionConfig("O1", "float16")), fault=infinite_slope, keep_checkpoints=9,
                    checkpoint_every=1)
    trainer.run_loop()
    states = [trainer.store.load(folder.name)[1] for folder in trainer.store.folders()]
    scales = [float(state["grad_scaler"]["scale"][0]) for state in states]
    assert scales == [2.0**15] * 2 + [2.0**14] + [2.0**13] * 3
    assert states[1]["net"]["net.0.weight"].tobytes() == states[3]["net"]["net.0.weight"].tobytes()
    assert states[4]["net"]["net.0.weight"].tobytes() != states[3]["net"]["net.0.weight"].tobytes()
    resumed = train("overflow", Precision(PrecisionConfig("O1", "float16")), steps=7)
    resumed.resume()
    assert float(resumed.precision.state_dict()["scale"][0]) == 2.0**13


def test_a_loss_that_float16_cannot_hold_skips_the_step(train, as_on_a_gpu):
    """A loss that is not finite at this scale lowers it, as a gradient that is not; logs leave it out."""
    trainer = train("loss", Precision(PrecisionConfig("O1", "float16")), log_every=1,
                    fault=lambda squared, step: squared * float("inf") if step == 2 else squared)
    trainer.run_loop()
    assert float(trainer.precision.state_dict()["scale"][0]) == 2.0**14
    lines = [json.loads(line) for line in (trainer.log_folder / "toy.jsonl").read_text().splitlines()]
    logged = {line["step"]: line.get("loss") for line in lines if "learning_rate" in line}
    assert logged[3] is None and all(np.isfinite(logged[step]) for step in (1, 2, 4, 5, 6))


def test_a_loss_that_no_scale_helps_stops_the_run(train, as_on_a_gpu):
    trainer = train("hopeless", Precision(PrecisionConfig("O1", "float16")), steps=60, warmup_steps=0,
                    fault=lambda squared, step: squared * float("nan") if step >= 2 else squared)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step"):
        trainer.run_loop()


def test_a_checkpoint_that_cannot_be_written_stops_the_run(train, monkeypatch):
    trainer = train("full")

    def full(*arguments):
        raise CheckpointError("no room")

    monkeypatch.setattr(trainer.store, "save", full)
    with pytest.raises(CheckpointError, match="no room"):
        trainer.run_loop()
    assert trainer.stage.steps_seen in ([0, 1], [0, 1, 2], [0, 1, 2, 3]), "at the latest at the next checkpoint"
