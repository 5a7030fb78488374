"""What the detector is trained on: no background of the data, right boxes, spoiled objects told apart."""

from __future__ import annotations

import numpy as np
import pytest

from ppvilg.emoji.detector import DetectorNetwork
from ppvilg.emoji.detector_training import DetectorRecipe, batches, detection_loss, learning_rate, targets
from ppvilg.emoji.examples import draw_example, training_background, warp
from ppvilg.emoji.objects import BACKGROUNDS, load_objects
from ppvilg.emoji.render import draw_glyph
from ppvilg.emoji.spoiling import SPOILERS, can_spoil, colour_statistics

LABELS = [item.name for item in load_objects()]


def test_no_training_background_is_one_of_the_data():
    rng = np.random.default_rng(0)
    colours = np.array([training_background(rng) for _ in range(2000)], dtype=float)
    palette = np.array([background.rgb for background in BACKGROUNDS], dtype=float)
    distances = np.linalg.norm(colours[:, None] - palette, axis=-1)
    assert distances.min() >= 10
    assert (distances.min(axis=1) < 40).mean() > 0.4  # and yet most of what the data shows is near to some


def test_examples_repeat_and_hold_both_kinds():
    first, second = (draw_example(np.random.default_rng(5), 64, 96, 0.1, 0.5) for _ in range(2))
    assert first.pixels.shape == (96, 64, 3) and first.pixels.dtype == np.uint8
    assert (first.pixels == second.pixels).all() and first.objects == second.objects
    examples = [draw_example(np.random.default_rng(i), 64, 64, 0.0, 0.5) for i in range(60)]
    assert sum(bool(example.objects) for example in examples) > 20
    assert sum(bool(example.spoiled) for example in examples) > 10
    for example in examples:
        for item in (*example.objects, *example.spoiled):
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
    assert not any(draw_example(np.random.default_rng(i), 64, 64, 0.0, 0.0).spoiled for i in range(20))


def test_warp_moves_pixels_by_the_field():
    pixels = np.random.default_rng(0).uniform(0, 255, size=(32, 48, 3))
    assert np.allclose(warp(pixels, np.zeros((2, 3, 3)))[:-1, :-1], pixels[:-1, :-1])
    shifts = np.zeros((2, 3, 3))
    shifts[1] = 2.0  # every pixel is taken from two columns to the right
    assert np.allclose(warp(pixels, shifts)[:-1, :-3], pixels[:-1, 2:-1])


@pytest.mark.parametrize("kind", list(SPOILERS))
def test_spoiled_objects_keep_the_colours_and_lose_the_picture(kind):
    glyph = draw_glyph("企鹅", 48)
    spoiled = SPOILERS[kind](glyph, np.random.default_rng(0))
    means = [colour_statistics(image)[0] for image in (glyph, spoiled)]
    assert np.abs(means[0] - means[1]).max() < 45
    left, top = (spoiled.width - glyph.width) // 2, (spoiled.height - glyph.height) // 2
    same_place = np.asarray(spoiled.crop((left, top, left + glyph.width, top + glyph.height)), dtype=float)
    assert np.abs(same_place - np.asarray(glyph, dtype=float)).mean() > 10


def test_outlines_of_flat_objects_are_not_called_spoiled():
    assert not can_spoil("outline_plain", draw_glyph("月亮", 48)) and can_spoil("ellipse_plain", draw_glyph("月亮", 48))
    assert can_spoil("outline_plain", draw_glyph("熊猫", 48))


def test_targets_point_at_centres():
    examples = [draw_example(np.random.default_rng(i), 64, 64, 0.0, 0.5) for i in range(20)]
    classes, weights, edges = targets(examples, LABELS)
    assert classes.shape == weights.shape == (20, 8, 8) and edges.shape == (20, 4, 8, 8)
    for n, example in enumerate(examples):
        assert sorted(classes[n][classes[n] > 0] - 1) == sorted(LABELS.index(item.label) for item in example.objects)
        for item in example.objects:
            x0, y0, x1, y1 = item.box
            i, j = round((y0 + y1) / 16), round((x0 + x1) / 16)
            left, top, right, bottom = 8 * edges[n, :, i, j]
            assert (8 * j - left, 8 * i - top, 8 * j + right, 8 * i + bottom) == pytest.approx(item.box)
            assert weights[n, i, j] == 1 and weights[n, i - 1, j] in (0, 1)
        for item in example.spoiled:
            i, j = (min(round((item.box[k] + item.box[k + 2]) / 16), 7) for k in (1, 0))
            assert classes[n, i, j] == 0


def test_training_lowers_the_loss():
    import paddle

    paddle.seed(0)
    network = DetectorNetwork(len(LABELS), width=16, blocks=1)
    examples = next(batches(DetectorRecipe(steps=1, batch_size=8)))
    optimizer = paddle.optimizer.AdamW(learning_rate=5e-3, parameters=network.parameters())
    losses = []
    for _ in range(15):
        loss = sum(detection_loss(network, examples, LABELS).values())
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_batches_and_learning_rate_are_functions_of_the_recipe():
    recipe = DetectorRecipe(steps=3, batch_size=6, warmup_steps=1)
    first, second = list(batches(recipe)), list(batches(recipe))
    assert len(first) == 3
    for one, other in zip(first, second):
        assert len({example.pixels.shape for example in one}) == 1
        assert all((a.pixels == b.pixels).all() for a, b in zip(one, other))
    schedule, rates = learning_rate(recipe), []
    for _ in range(4):
        rates.append(schedule())
        schedule.step()
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 0.0])
    for name, value in (("spoiled_share", 2), ("learning_rate", float("nan")), ("threshold", 1.0), ("steps", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: must be"):
            DetectorRecipe(**{name: value})
