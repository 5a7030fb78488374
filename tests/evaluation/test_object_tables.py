"""Tables of verdicts."""

from __future__ import annotations

import pytest

from ppvilg.emoji.judging import Verdict
from ppvilg.evaluation.suites.object_tables import rows, rows_by_object, tables


def prompt(kind: str, *labels: str) -> dict:
    return {"kind": kind, "objects": [{"label": label} for label in labels]}


def verdict(kind: str, asked: str, found: str, /, **criteria: bool) -> Verdict:
    criteria = {"background": True, **criteria, "all": all(criteria.values())}
    return Verdict(kind, criteria, tuple(asked), tuple(found), "蓝色")


def test_tables_count_prompts_and_average_their_pictures():
    prompts = [prompt("single", "猫"), prompt("single", "狗"), prompt("count", "狗", "狗")]
    verdicts = [
        [verdict("single", "猫", "猫", object=True), verdict("single", "猫", "狗", object=False)],
        [verdict("single", "狗", "狗", object=True)] * 2,
        [verdict("count", "狗狗", found, kind=True, number=found == "狗狗") for found in ("狗狗", "狗")],
    ]
    result = tables(prompts, verdicts)
    assert set(result["kinds"]) == {"single", "count"}
    single = result["kinds"]["single"]["object"]
    assert (single["mean"], single["count"]) == (0.75, 2) and single["interval"][0] < 0.75 < single["interval"][1]
    background = result["kinds"]["single"]["background"]  # Wilson's interval of 2 of 2
    assert background["mean"] == 1 and background["interval"] == pytest.approx([0.3424, 1.0], abs=1e-4)
    assert result["kinds"]["count"]["kind"]["mean"] == 1.0 and result["kinds"]["count"]["number"]["mean"] == 0.5
    assert result["objects"]["猫"] == {"single": {"count": 2, "found": 0.5, "right": 0.5}}
    assert result["objects"]["狗"]["count"] == {"count": 2, "found": 1.0, "right": 0.5}
    wrong = {(tuple(entry["missing"]), tuple(entry["instead"])): entry["count"] for entry in result["mistakes"]}
    assert wrong == {(("猫",), ("狗",)): 1, (("狗",), ()): 1}
    assert ["model", "single", 2, "background", "100.0", "34.2 to 100.0"] in rows({"model": result})
    assert ["狗", "2, 100, 100", "", "2, 100, 50"] in rows_by_object(result)
