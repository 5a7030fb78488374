"""Learning rate and averages: what they are at every step."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from ppvilg.config import StageConfig
from ppvilg.engine import learning_rate_at
from ppvilg.engine.training.ema import ExponentialMovingAverage, power_decay


def rates(**settings) -> list[float]:
    config = StageConfig(**{"steps": 20, "learning_rate": 1.0, "final_learning_rate": 0.1, **settings})
    return [learning_rate_at(step, config) for step in range(config.steps + 5)]


def test_warm_up_is_linear_and_reaches_the_full_rate():
    values = rates(warmup_steps=5)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] == 1.0 and values[6] < 1.0


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_falls_steadily_to_the_final_rate(decay):
    values = rates(warmup_steps=4, decay=decay)
    assert all(later < earlier for earlier, later in zip(values[4:20], values[5:21]))
    assert values[12] == pytest.approx(0.55)  # half way from 1.0 to 0.1
    assert values[20:] == pytest.approx([0.1] * 5)


def test_cosine_is_flatter_than_linear_at_both_ends():
    cosine, linear = rates(decay="cosine"), rates(decay="linear")
    assert cosine[2] > linear[2] and cosine[18] < linear[18]
    assert cosine[5] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 5 / 20)))


def test_constant_stays_after_the_warm_up():
    assert rates(decay="constant", warmup_steps=2)[1:] == [1.0] * 24


def test_networks_that_take_turns_count_their_own_steps():
    """Twenty steps of two experts are ten of each, with the rates of a stage of ten."""
    alone = rates(steps=10, warmup_steps=4)[:10]
    config = StageConfig(steps=20, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=4)
    for turn in range(2):
        assert [learning_rate_at(step, config, turns=2) for step in range(turn, 20, 2)] == alone


def test_averages_of_an_expert_are_those_of_one_trained_alone():
    """Three take turns; what a step of another one does to the average is nothing."""
    rng, turns = np.random.default_rng(2), 3
    weights = {f"expert {k}": paddle.zeros([4]) for k in range(turns)} | {"shared": paddle.zeros([4])}
    together = ExponentialMovingAverage(weights, 0.9, 2, turns=turns,
                                        turn_of=lambda name: None if name == "shared" else int(name[-1]))
    alone = {k: ExponentialMovingAverage({"w": weights[f"expert {k}"]}, 0.9, 2) for k in range(turns)}
    everything = ExponentialMovingAverage({"w": weights["shared"]}, 0.9, 2)
    for step in range(1, 32):
        k, own = (step - 1) % turns, (step - 1) // turns + 1
        for value in (weights[f"expert {k}"], weights["shared"]):
            value.set_value(value + paddle.to_tensor(rng.standard_normal(4).astype(np.float32)))
        together.update(step)
        alone[k].update(own)
        everything.update(step)
    found = together.state_dict()
    for k in range(turns):
        assert found[f"expert {k}"].tobytes() == alone[k].state_dict()["w"].tobytes()
    assert found["shared"].tobytes() == everything.state_dict()["w"].tobytes()


def test_without_warm_up_it_starts_at_the_full_rate():
    assert rates()[0] == 1.0


@pytest.mark.parametrize("every", [1, 4])
def test_averages_equal_a_plain_loop(every):
    decay, rng = 0.99, np.random.default_rng(0)
    weights = {"a": paddle.to_tensor(rng.standard_normal((3, 4)).astype(np.float32)), "b": paddle.zeros([5])}
    averages = ExponentialMovingAverage(weights, decay, every)
    expected = {name: value.numpy().astype(np.float64) for name, value in weights.items()}
    for step in range(1, 41):
        for value in weights.values():
            value.set_value(value + paddle.to_tensor(rng.standard_normal(value.shape).astype(np.float32)))
        averages.update(step)
        if step % every == 0:
            kept = min(decay, (1 + step) / (10 + step)) ** every
            for name, value in weights.items():
                expected[name] = kept * expected[name] + (1 - kept) * value.numpy()
    for name, value in averages.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected["a"], weights["a"].numpy(), atol=0.1)


def test_a_power_average_has_the_width_that_was_asked_for():
    """Its weights over 2,000 steps have that standard deviation, and asking less often changes little."""
    steps = np.arange(1, 2001)
    for width in (0.05, 0.2):
        decay = power_decay(width)
        left = np.cumprod([1.0, *(decay(int(step), 1) for step in steps[:0:-1])])[::-1]
        weights = left * np.array([1.0 - decay(int(step), 1) for step in steps])
        assert weights.sum() == pytest.approx(1.0)
        mean = (weights * steps).sum()
        assert np.sqrt((weights * (steps - mean) ** 2).sum()) / 2000 == pytest.approx(width, rel=0.01)
        assert np.prod([decay(step, 1) for step in range(11, 21)]) == pytest.approx(decay(20, 10))


def test_averages_change_only_every_few_steps():
    weight = paddle.ones([2])
    averages = ExponentialMovingAverage({"w": weight}, 0.5, every=3)
    weight.set_value(paddle.full([2], 7.0))
    averages.update(1)
    averages.update(2)
    assert (averages.state_dict()["w"] == 1.0).all()
    averages.update(3)
    assert (averages.state_dict()["w"] > 1.0).all()


def test_swapping_twice_changes_no_bit():
    rng = np.random.default_rng(1)
    weight = paddle.to_tensor(rng.standard_normal(100).astype(np.float32))
    averages = ExponentialMovingAverage({"w": weight}, 0.9)
    weight.set_value(weight * 3.0)
    averages.update(1)
    before, average = weight.numpy(), averages.state_dict()["w"]
    averages.swap()
    assert weight.numpy().tobytes() == average.tobytes() != before.tobytes()
    averages.swap()
    assert weight.numpy().tobytes() == before.tobytes()
    assert averages.state_dict()["w"].tobytes() == average.tobytes()


def test_saved_averages_come_back_and_a_missing_one_is_named():
    weights = {"a": paddle.ones([2]), "b": paddle.ones([3])}
    averages = ExponentialMovingAverage(weights, 0.9)
    averages.load_state_dict({"a": np.full(2, 5.0, np.float32), "b": np.full(3, 6.0, np.float32)})
    assert averages.state_dict()["a"].tolist() == [5.0, 5.0] and weights["a"].tolist() == [1.0, 1.0]
    with pytest.raises(KeyError, match="b"):
        averages.load_state_dict({"a": np.ones(2, np.float32)})
