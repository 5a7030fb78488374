"""Verdicts on made-up findings."""

from __future__ import annotations

import pytest

from ppvilg.data import ObjectBox
from ppvilg.emoji.detector import Finding
from ppvilg.emoji.judging import judge, stands


def at(label: str, x: float, y: float, size: float = 32, score: float = 0.9) -> ObjectBox:
    return ObjectBox(label, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), score)


def prompt(kind: str, labels: list[str], relation: str | None = None) -> dict:
    objects = [{"label": label, "label_en": label} for label in labels]
    return {"kind": kind, "objects": objects, "background": "蓝色", "relation": relation}


def finding(*objects: ObjectBox, background: str | None = "蓝色") -> Finding:
    return Finding(tuple(objects), background)


@pytest.mark.parametrize(
    ("found", "object_right", "background_right"),
    [
        (finding(at("猫", 32, 32)), True, True),
        (finding(at("猫", 32, 32), background="红色"), True, False),
        (finding(at("猫", 32, 32), background=None), True, False),
        (finding(at("狗", 32, 32)), False, True),
        (finding(), False, True),
        (finding(at("猫", 16, 32), at("狗", 48, 32)), False, True),  # one too many
        (finding(at("猫", 16, 32), at("猫", 48, 32)), False, True),
    ],
)
def test_single(found, object_right, background_right):
    verdict = judge(prompt("single", ["猫"]), found)
    right = object_right and background_right
    assert verdict.criteria == {"object": object_right, "background": background_right, "all": right}
    assert verdict.right is right


@pytest.mark.parametrize(
    ("found", "objects", "places"),
    [
        (finding(at("猫", 16, 32), at("狗", 48, 32)), True, True),
        (finding(at("狗", 48, 40), at("猫", 16, 32)), True, True),
        (finding(at("狗", 16, 32), at("猫", 48, 32)), True, False),
        (finding(at("猫", 32, 16), at("狗", 32, 48)), True, False),
        (finding(at("猫", 16, 32)), False, False),
        (finding(at("猫", 16, 32), at("兔子", 48, 32)), False, False),
        (finding(at("猫", 16, 16), at("狗", 48, 16), at("狗", 48, 48)), False, False),
    ],
)
def test_pair(found, objects, places):
    verdict = judge(prompt("pair", ["猫", "狗"], "left"), found)
    assert verdict.criteria == {"objects": objects, "places": places, "background": True, "all": places}


@pytest.mark.parametrize(
    ("labels", "kind", "number"),
    [
        (["猫", "猫"], True, True),
        (["猫"], True, False),
        (["猫"] * 3, True, False),
        (["猫", "狗"], False, False),
        ([], False, False),
    ],
)
def test_count(labels, kind, number):
    found = finding(*(at(label, 16 + 32 * i, 32) for i, label in enumerate(labels)))
    verdict = judge(prompt("count", ["猫", "猫"]), found)
    assert verdict.criteria == {"kind": kind, "number": number, "background": True, "all": number}


@pytest.mark.parametrize(
    ("offset", "relations"),
    [
        ((32, 0), {"left"}),
        ((-32, 8), {"right"}),
        ((0, 32), {"above"}),
        ((8, -32), {"below"}),
        ((32, 32), {"left", "above"}),  # a diagonal is both
        ((32, 60), {"above"}),  # more than 60 degrees from the horizontal
        ((6, 0), set()),  # on top of each other
    ],
)
def test_relations(offset, relations):
    first, second = at("猫", 40, 64), at("狗", 40 + offset[0], 64 + offset[1])
    assert {name for name in ("left", "right", "above", "below") if stands(name, first, second)} == relations


def test_unknown_kind():
    with pytest.raises(ValueError, match="'many' is not one of single, pair, count"):
        judge(prompt("many", ["猫"]), finding())
