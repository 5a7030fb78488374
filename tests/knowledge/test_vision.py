from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ppvilg.knowledge import (
    COMPLETION,
    REPLACEMENT,
    NameTable,
    VisualKnowledge,
    box_weight_map,
    complete_caption,
    missing_objects,
)


@dataclass(frozen=True)
class Thing:
    """What the data package's ObjectBox looks like from here."""

    label: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 8.0, 8.0)
    score: float = 1.0


def cells(weights, object_weight=0.1):
    """Covered cells as rows of # and . characters."""
    assert weights.dtype == np.float32 and weights.shape[0] == 1
    assert set(np.unique(weights)) <= {np.float32(1), np.float32(1 + object_weight)}
    return ["".join("#" if value > 1 else "." for value in row) for row in weights[0]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((8, 0, 24, 16), [".##.", ".##.", "....", "...."]),
        ((8, 8, 19, 19), ["....", ".#..", "....", "...."]),  # centres at 20 are not reached
        ((8, 8, 21, 21), ["....", ".##.", ".##.", "...."]),
        ((-5, -5, 9, 9), ["#...", "....", "....", "...."]),  # clipped
        ((0, 9, 32, 11), ["....", "####", "....", "...."]),  # thin: no centre in its height
        ((15, 15, 17, 17), ["....", ".##.", ".##.", "...."]),  # small, across a corner
        ((8, 8, 8, 20), ["....", "....", "....", "...."]),  # no area
        ((40, 40, 50, 50), ["....", "....", "....", "...."]),  # outside
        ((0, 0, 32, 32), ["####"] * 4),
    ],
)
def test_cells_a_box_takes(box, expected):
    assert cells(box_weight_map([box], (32, 32), (4, 4))) == expected


def test_image_shape_is_width_height_and_latent_shape_height_width():
    weights = box_weight_map([(64, 0, 96, 32)], (96, 64), (8, 12), 0.5)
    assert cells(weights, 0.5) == ["........####"] * 4 + ["............"] * 4


def test_overlapping_boxes_count_once():
    twice = box_weight_map([(0, 0, 16, 16), (8, 8, 24, 24)], (32, 32), (4, 4), 0.3)
    assert cells(twice, 0.3) == ["##..", "###.", ".##.", "...."]


def test_map_agrees_with_a_plain_loop():
    draw = np.random.default_rng(0)
    for _ in range(50):
        height, width = (int(value) for value in draw.integers(1, 9, 2))
        corners = draw.uniform(-10, 80, (3, 4))
        boxes = np.stack([*np.sort(corners[:, [0, 2]]).T, *np.sort(corners[:, [1, 3]]).T], axis=1)[:, [0, 2, 1, 3]]
        weights = box_weight_map(boxes, (70, 50), (height, width))
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) * 70 / width, (row + 0.5) * 50 / height
                if any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes):
                    assert weights[0, row, column] > 1
        for x0, y0, x1, y1 in boxes:  # every visible box weighs something
            if min(x1, 70) > max(x0, 0) and min(y1, 50) > max(y0, 0):
                assert box_weight_map([(x0, y0, x1, y1)], (70, 50), (height, width)).max() > 1


def test_no_boxes_and_no_weight_give_ones():
    np.testing.assert_array_equal(box_weight_map([], (64, 64), (8, 8)), np.ones((1, 8, 8), np.float32))
    np.testing.assert_array_equal(
        box_weight_map([(0, 0, 64, 64)], (64, 64), (8, 8), 0.0), np.ones((1, 8, 8), np.float32)
    )


@pytest.mark.parametrize("boxes", [[(0, 0, float("nan"), 8)], [(0, 0, float("inf"), 8)], [(0, 0, 8)], [0, 0, 8, 8]])
def test_boxes_that_are_no_boxes_are_refused(boxes):
    with pytest.raises(ValueError, match=r"finite \(n, 4\)"):
        box_weight_map(boxes, (64, 64), (8, 8))


def test_missing_objects_are_named_once_and_in_order():
    things = [Thing("碗"), Thing("猫"), Thing("碗"), Thing("勺子")]
    assert missing_objects("一只[n]猫", things) == ["碗", "勺子"]
    assert missing_objects("一只小猫和一个饭碗", things, NameTable(synonyms={"勺子": ["汤匙"]})) == ["勺子"]
    assert missing_objects("一只猫，碗里有汤匙", things, NameTable(synonyms={"勺子": ["汤匙"]})) == []
    assert missing_objects("一只猫", []) == []


def test_a_name_inside_another_objects_name_is_not_a_mention():
    labels = ["猫", "熊猫", "熊", "猫头鹰"]
    assert NameTable().mentioned("一只熊猫", labels) == ["熊猫"]
    assert NameTable().mentioned("一只熊猫和一只猫", labels) == ["猫", "熊猫"]
    assert NameTable().mentioned("猫头鹰", labels) == ["猫头鹰"]


def test_english_names_are_whole_words():
    assert NameTable().mentioned("Cats and cattle", ["cat", "cow"]) == ["cat"]
    assert NameTable().mentioned("a concatenation", ["cat"]) == []
    assert NameTable().mentioned("two buses", ["bus"]) == ["bus"]


def test_complete_caption():
    assert complete_caption("一只猫", ["碗", "勺子"]) == "一只猫，[n]碗，[n]勺子"
    assert complete_caption("一只猫。", ["碗"], marks=False) == "一只猫，碗"
    assert complete_caption("a cat.", ["bowl"]) == "a cat, [n]bowl"
    assert complete_caption("一只猫。", []) == "一只猫。"
    assert complete_caption("", ["碗"]) == "[n]碗"


CAPTIONS = {"zh": "一只猫", "en": "a cat", "generated": "画面里有猫"}
THINGS = [Thing("猫", (0, 0, 32, 32)), Thing("碗", (32, 32, 64, 64)), Thing("树", (32, 0, 64, 32), score=0.2)]


def test_completion_names_trusted_objects():
    draw = np.random.default_rng(0)
    assert VisualKnowledge().choose_caption(CAPTIONS, THINGS, draw) == ("一只猫，[n]碗", [COMPLETION])
    assert VisualKnowledge().choose_caption(CAPTIONS, THINGS, draw, marks=False) == ("一只猫，碗", [COMPLETION])
    everything = VisualKnowledge(min_score=0.0).choose_caption(CAPTIONS, THINGS, draw)
    assert everything == ("一只猫，[n]碗，[n]树", [COMPLETION])
    assert VisualKnowledge().choose_caption(CAPTIONS, THINGS[:1], draw) == ("一只猫", [])


def test_replacement_comes_before_completion():
    always = VisualKnowledge(replacement_probability=1.0)
    draw = np.random.default_rng(0)
    assert always.choose_caption(CAPTIONS, THINGS, draw) == ("画面里有猫，[n]碗", [REPLACEMENT, COMPLETION])
    assert always.choose_caption({"zh": "一只猫"}, THINGS[:1], draw) == ("一只猫", [])
    assert always.choose_caption({"zh": "一只猫", "generated": ""}, THINGS[:1], draw) == ("一只猫", [])


def test_probabilities_are_shares_of_samples():
    knowledge = VisualKnowledge(replacement_probability=0.25, completion_probability=0.5, english_probability=0.1)
    draw = np.random.default_rng(0)
    chosen = [knowledge.choose_caption(CAPTIONS, THINGS, draw) for _ in range(2000)]
    assert np.mean([REPLACEMENT in used for _, used in chosen]) == pytest.approx(0.25, abs=0.04)
    # English captions stay as they are: the objects here have no English names
    assert np.mean([COMPLETION in used for _, used in chosen]) == pytest.approx(0.5 * (1 - 0.1 * 0.75), abs=0.04)
    assert np.mean([caption == "a cat" for caption, _ in chosen]) == pytest.approx(0.1 * 0.75, abs=0.03)


def test_english_captions_are_completed_in_english():
    knowledge = VisualKnowledge(synonyms={"猫": ["cat"], "碗": ["bowl"]})
    draw = np.random.default_rng(0)
    assert knowledge.choose_caption({"en": "a cat"}, THINGS, draw) == ("a cat, [n]bowl", [COMPLETION])
    assert VisualKnowledge().choose_caption({"en": "a cat"}, THINGS, draw) == ("a cat", [])


def test_weight_map_covers_the_objects_the_caption_mentions():
    knowledge = VisualKnowledge(object_weight=0.1)
    sizes = {"image_size": (64, 64), "latent_size": (4, 4)}
    assert cells(knowledge.weight_map(THINGS, "一只猫", **sizes)) == ["##..", "##..", "....", "...."]
    assert cells(knowledge.weight_map(THINGS, "一只猫，[n]碗和树", **sizes)) == ["##..", "##..", "..##", "..##"]
    assert cells(knowledge.weight_map(THINGS, "蓝天", **sizes)) == ["...."] * 4


def test_all_off_changes_nothing_and_draws_nothing():
    off = VisualKnowledge(object_weight=0.0, completion=False, replacement_probability=0.0)
    draw = np.random.default_rng(0)
    before = draw.bit_generator.state
    assert off.choose_caption(CAPTIONS, THINGS, draw) == ("一只猫", [])
    np.testing.assert_array_equal(
        off.weight_map(THINGS, "一只猫", (64, 64), (4, 4)), np.ones((1, 4, 4), np.float32)
    )
    assert draw.bit_generator.state == before


def test_no_caption_is_refused():
    with pytest.raises(ValueError, match="no caption"):
        VisualKnowledge().choose_caption({"zh": " "}, THINGS, np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"object_weight": -1.0},
        {"object_weight": float("nan")},
        {"replacement_probability": 1.5},
        {"completion_probability": -0.1},
        {"english_probability": float("nan")},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VisualKnowledge(**wrong)
