"""Lion and Adafactor against PyTorch implementations, and every optimizer through the loop."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppvilg.config import StageConfig
from ppvilg.engine.training.optimizers import USUAL, Adafactor, Lion, build_optimizer, state_elements

SHAPES = [(7,), (5, 6), (4, 3, 3, 3)]  # a bias, a matrix, a convolution
RATES = [1e-2, 3e-2, 1e-2, 1e-3, 0.5, 1e-2]
DECAY = 0.1


def step_by_step(optimizer_of):
    """Weights after every step, of an optimizer that `optimizer_of(parameters)` gives; gradients differ in size."""
    rng = np.random.default_rng(3)
    parameters = [paddle.create_parameter(shape, "float32") for shape in SHAPES]
    for p in parameters:
        p.set_value(rng.standard_normal(p.shape).astype(np.float32))
    optimizer, found = optimizer_of(parameters), []
    for number, rate in enumerate(RATES):
        for p in parameters:
            p.grad = paddle.to_tensor((10.0 ** (number % 3 - 1) * rng.standard_normal(p.shape)).astype(np.float32))
        optimizer.set_lr(rate)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        found.append([p.numpy() for p in parameters])
    return found


def in_torch(optimizer_of):
    """The same in PyTorch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    parameters = [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(s).astype(np.float32))) for s in SHAPES]
    optimizer, found = optimizer_of(torch, parameters), []
    for number, rate in enumerate(RATES):
        for p in parameters:
            gradient = 10.0 ** (number % 3 - 1) * rng.standard_normal(p.shape)
            p.grad = torch.from_numpy(gradient.astype(np.float32))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        found.append([p.detach().numpy().copy() for p in parameters])
    return found


def assert_same(ours, theirs):
    for step, (one, other) in enumerate(zip(ours, theirs)):
        for shape, a, b in zip(SHAPES, one, other):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=f"step {step}, {shape}")


def test_adafactor_is_torch_s():
    theirs = in_torch(lambda torch, parameters: torch.optim.Adafactor(parameters, weight_decay=DECAY))
    epsilon = USUAL["adafactor"][2]
    assert_same(step_by_step(lambda parameters: Adafactor(1e-2, epsilon, parameters, DECAY)), theirs)


def test_lion_is_lion_pytorch_s():
    lion_pytorch = pytest.importorskip("lion_pytorch")
    theirs = in_torch(lambda torch, parameters: lion_pytorch.Lion(parameters, weight_decay=DECAY))
    assert_same(step_by_step(lambda parameters: Lion(1e-2, 0.9, 0.99, parameters, DECAY)), theirs)


def test_lion_is_the_paper_s_algorithm():
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in SHAPES]
    moments, expected = [np.zeros_like(w) for w in weights], []
    for number, rate in enumerate(RATES):
        for i, shape in enumerate(SHAPES):
            gradient = 10.0 ** (number % 3 - 1) * rng.standard_normal(shape)
            weights[i] = weights[i] - rate * (np.sign(0.9 * moments[i] + 0.1 * gradient) + DECAY * weights[i])
            moments[i] = 0.99 * moments[i] + 0.01 * gradient
        expected.append([w.copy() for w in weights])
    assert_same(step_by_step(lambda parameters: Lion(1e-2, 0.9, 0.99, parameters, DECAY)), expected)


@pytest.mark.parametrize("name", USUAL)
def test_the_plan_counts_what_an_optimizer_keeps(name):
    parameters = [paddle.create_parameter(shape, "float32") for shape in SHAPES]
    optimizer = build_optimizer(StageConfig(optimizer=name), parameters, lambda _: True)
    for p in parameters:
        p.grad = paddle.ones(p.shape)
    optimizer.step()
    kept = {f"{kind}/{name}": value for kind, values in optimizer._accumulators.items()
            for name, value in values.items() if value.size > 1}
    assert sum(value.size for value in kept.values()) == state_elements(name, SHAPES)


@pytest.mark.parametrize("name", USUAL)
def test_rates_of_parts_and_masters_of_low_weights(name):
    """A low weight moves as its float32 master, and a part by its share of the rate."""
    values = np.linspace(0.5, 1.5, 12, dtype=np.float32).reshape(3, 4)
    found = {}
    for form in ("plain", "third", "low"):
        p = paddle.create_parameter([3, 4], "float32")
        p.set_value(values)
        if form == "third":
            p.optimize_attr["learning_rate"] = 1 / 3
        if form == "low":
            p = paddle.base.framework.EagerParamBase.from_tensor(p.astype("bfloat16"))
        optimizer = build_optimizer(StageConfig(optimizer=name, learning_rate=3e-2), [p], lambda _: True)
        if form == "low":
            optimizer._multi_precision = True
            optimizer._create_accumulators(paddle.static.default_main_program().global_block(), [p])
            optimizer._master_weights[p.name].set_value(values)
        p.grad = paddle.to_tensor(values - 1.0)
        optimizer.set_lr(3e-2)
        if form == "low" and name == "adamw":
            continue  # Paddle has no such kernel on a CPU
        optimizer.step()
        found[form] = optimizer._master_weights.get(p.name, p).numpy()
        if form == "low":
            np.testing.assert_array_equal(p.astype("float32").numpy(),
                                          paddle.to_tensor(found[form]).astype("bfloat16").astype("float32").numpy())
    moved = {form: value - values for form, value in found.items()}
    np.testing.assert_allclose(moved["third"], moved["plain"] / 3, rtol=1e-4)
    if "low" in moved:
        np.testing.assert_array_equal(moved["low"], moved["plain"])
