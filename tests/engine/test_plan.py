"""The plan: real shapes without memory, operations counted as they are, traffic by its formulas."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from ppvilg.engine import builder
from ppvilg.engine.parallel.layout import Axes
from ppvilg.engine.planning.cluster import Cluster, Planner
from ppvilg.engine.planning.plan import count, layer_shapes, step_traffic, trace


@pytest.fixture(scope="module")
def recipe(make_recipe, tmp_path_factory):
    batches = [f"train.{stage}.batch_size=64" for stage in ("base", "experts")]
    return make_recipe(tmp_path_factory.mktemp("plan") / "out", *batches)


def test_shapes_are_those_of_the_real_layers(recipe):
    shapes = layer_shapes(recipe)
    unet = builder.build_base_unet(recipe).experts[0]
    vae = builder.build_vae(recipe)
    for part, layer in (("unet", unet), ("vae", vae)):
        assert shapes[part] == {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert count(shapes["unet"]) == sum(int(p.size) for p in unet.parameters())
    assert {name for name in shapes["text_encoder"] if name.endswith("word_embeddings.weight")}


def test_operations_of_the_denoiser_equal_a_count_by_hooks(recipe):
    """Every convolution and linear layer counted while a real forward pass runs; attention's products by its sizes."""
    unet, operations = builder.build_base_unet(recipe).experts[0], []

    def note(layer, inputs, output):
        weight = layer.weight
        if isinstance(layer, paddle.nn.Conv2D):
            operations.append(2.0 * np.prod(output.shape) * np.prod(weight.shape[1:]))
        else:
            operations.append(2.0 * np.prod(output.shape) * weight.shape[0])

    for layer in unet.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(note)
    width, height = 16, 32
    traced = trace(recipe, width, height)["unet"]
    length = recipe.model.tokenizer.max_length
    unet.eval()
    with paddle.no_grad():
        unet(paddle.zeros([1, 4, 4, 2]), paddle.to_tensor([3]), paddle.zeros([1, length, 16]))
    assert 0 < sum(operations) <= traced.flops <= 1.2 * sum(operations)  # the rest is attention
    assert 0 < traced.kept_with_recompute < traced.kept
    assert paddle.in_dynamic_mode()


def test_operations_grow_with_the_picture(recipe):
    small, large = trace(recipe, 16, 16)["vae"], trace(recipe, 32, 32)["vae"]
    assert 3.5 < large.flops / small.flops < 4.6 and large.kept > small.kept


@pytest.mark.parametrize(
    "axes, groups, expected",
    [
        (Axes(), False, {}),
        (Axes(data=4), False, {("gradients", "data"): (400.0, 600.0)}),
        (Axes(sharding=4), False, {("gradients", "sharding"): (400.0, 375.0), ("weights", "sharding"): (400.0, 300.0)}),
        (Axes(data=2, sharding=2), False, {("gradients", "data"): (200.0, 200.0),
                                           ("gradients", "sharding"): (400.0, 300.0),
                                           ("weights", "sharding"): (400.0, 200.0)}),
        (Axes(data=2, expert=2), True, {("gradients", "data"): (400.0, 400.0)}),
        (Axes(data=2, expert=2), False, {("gradients", "data"): (400.0, 600.0)}),
        (Axes(expert=4), True, {}),
    ],
)  # fmt: skip
def test_traffic_of_a_step(axes, groups, expected):
    sent = step_traffic(100, 10, axes, groups, find_unused=False)
    found = {(s.kind, s.group): (s.handed, s.wire) for s in sent if s.kind != "agreement"}
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(value) for key, value in expected.items())


def test_estimates_follow_axes(recipe):
    planner = Planner.of(recipe)
    one = planner.estimate("base", Cluster(8), Axes(data=8))
    sharded = planner.estimate("base", Cluster(8), Axes(data=1, sharding=8))
    assert sharded.memory["optimizer"] == pytest.approx(one.memory["optimizer"] / 8)
    assert sharded.checkpoint == one.checkpoint == 16.0 * planner.trained("base")[0]
    groups = planner.estimate("experts", Cluster(24), Axes(data=8, expert=3))
    assert groups.memory["optimizer"] == pytest.approx(8.0 * count(planner.shapes["unet"]))
    assert groups.samples_per_rank == 8 and groups.checkpoint == pytest.approx(16.0 * 3 * count(planner.shapes["unet"]))
    assert groups.seconds["between machines"] == 0.0 < groups.seconds["inside machines"]
    assert one.step_seconds == pytest.approx(sum(one.seconds.values()))
