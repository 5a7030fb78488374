"""Votes: what is refused, rates and intervals against a simulation with known preference, agreement against a peer."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from ppvilg.evaluation.human.preference import krippendorff_alpha, rates, summarize
from ppvilg.evaluation.human.votes import Vote, read_votes
from ppvilg.evaluation.metrics.intervals import share_interval
from ppvilg.evaluation.suite import open_suite

HERE = Path(__file__).resolve()
CONFIG = HERE.parents[2] / "configs" / "evaluation" / "side_by_side.yml"
world = runpy.run_path(str(HERE.with_name("side_by_side_world.py")))
simulation = runpy.run_path(str(HERE.parents[1] / "benchmarks" / "preference_coverage.py"))


def make_key(count: int) -> dict:
    sides = [("first", "second"), ("second", "first")]
    pairs = [
        {"id": f"p{i:04d}", "prompt": f"第{i}句", "class": world["CLASSES"][i % 2], **dict(zip("AB", sides[i % 2]))}
        for i in range(count)
    ]
    return {"study": "abc", "pairs": pairs}


# ---- intervals ----


def test_intervals_cover_a_known_preference():
    """1,000 studies of ViLG-300's classes, three voters whose answers to one prompt hang together; also one class."""
    coverage = simulation["coverage"]
    preferences = np.random.default_rng(5).dirichlet([5, 2, 3], 16)
    shares = coverage(preferences, simulation["VILG300_CLASSES"], voters=3, sameness=0.3, studies=1000, seed=1)
    assert ((shares >= 0.93) & (shares <= 0.97)).all(), shares
    shares = coverage(np.array([[0.6, 0.2, 0.2]]), (36,), voters=5, sameness=0.3, studies=1000, seed=2)
    assert ((shares >= 0.93) & (shares <= 0.97)).all(), shares


def test_treating_votes_as_independent_would_not_cover():
    """What clustering is for: the same studies with every vote counted as a unit cover far too seldom."""
    rng, preferences, hits = np.random.default_rng(3), np.array([[0.6, 0.2, 0.2]]), 0
    for _ in range(300):
        values = simulation["simulate_study"](rng, preferences, (36,), 5, 0.6)[:, 0]
        low, high = share_interval(np.repeat(values.round(), 5))
        hits += low <= 0.6 <= high
    assert hits / 300 < 0.9


def test_more_voters_of_the_same_mind_make_nothing_surer():
    units = [{"a": "first"}, {"a": "second"}, {"a": "first"}, {"a": "tie"}, {"a": "first"}, {"a": "second"}]
    crowd = [dict.fromkeys("abcde", unit["a"]) for unit in units]
    assert rates(units)["score"] == rates(crowd)["score"]
    assert rates(crowd)["votes"] == 30


# ---- agreement ----


def test_agreement_equals_the_library_of_the_name():
    peer = pytest.importorskip("krippendorff", reason="the krippendorff library is not installed")
    rng = np.random.default_rng(0)
    for agreement in (0.0, 0.5, 0.9):
        truth = rng.integers(3, size=40)
        table = np.where(rng.random((4, 40)) < agreement, truth, rng.integers(3, size=(4, 40))).astype(float)
        table[rng.random((4, 40)) < 0.2] = np.nan  # (voters, pairs)
        ratings = [{f"v{i}": str(a) for i, a in enumerate(column) if not np.isnan(a)} for column in table.T]
        expected = peer.alpha(reliability_data=table, level_of_measurement="nominal")
        assert krippendorff_alpha(ratings) == pytest.approx(expected, abs=1e-12)


def test_agreement_where_there_is_none_to_measure():
    assert krippendorff_alpha([{"a": "first"}, {"b": "second"}]) is None
    assert krippendorff_alpha([{"a": "tie", "b": "tie"}] * 3) is None
    assert krippendorff_alpha([{"a": "first", "b": "first"}, {"a": "second", "b": "second"}]) == 1.0


# ---- rates ----


def test_rates_by_hand():
    key = make_key(4)

    def votes(voter, outcomes):
        sides = {"first": "left", "second": "left", "tie": "tie"}
        return [Vote(voter, f"p{i:04d}", "alignment", o, sides[o], 2.0) for i, o in enumerate(outcomes)]

    result = summarize(votes("甲", ["first", "tie", "second", "first"]) + votes("乙", ["first", "first"]), key)
    entry = result["criteria"]["alignment"]
    assert entry["all"]["pairs"] == 4 and entry["all"]["votes"] == 6
    assert [entry["all"][name]["mean"] for name in ("first", "tie", "second", "score")] == [0.625, 0.125, 0.25, 0.6875]
    assert entry["classes"]["颜色"]["score"]["mean"] == 0.5 and entry["classes"]["计数"]["pairs"] == 2
    assert entry["agreement"]["pairs_with_several_votes"] == 2 and entry["agreement"]["same_answer"] == 0.5
    assert result["criteria"]["fidelity"]["all"]["score"] == {"mean": None, "interval": None}
    voter = result["voters"]["甲"]
    assert voter["score"] == {"alignment": 0.625} and voter["left_share"] == 1.0 and voter["tie_share"] == 0.25


# ---- the report ----


@pytest.fixture
def study(tmp_path):
    """(run, key, folder for votes): run() makes the page first, then reports."""
    for name, shade in zip(world["SECRETS"], (40, 220)):
        world["write_pictures"](tmp_path / name, 12, shade)
    options = world["overrides"](tmp_path, tmp_path / "out", first_name="我们的模型", second_name="theirs")

    def run():
        return open_suite(CONFIG, options).run()

    run()
    return run, json.loads((tmp_path / "out" / "key.json").read_text(encoding="utf-8")), tmp_path / "out" / "votes"


def test_report_of_simulated_voters_finds_the_preference(study, tmp_path):
    run, key, votes = study
    rng = np.random.default_rng(0)
    draw = {"alignment": (0.8, 0.1, 0.1), "fidelity": (0.1, 0.1, 0.8)}
    for voter in range(5):
        world["write_votes"](
            votes, key, f"v{voter}", lambda _, criterion: rng.choice(("first", "tie", "second"), p=draw[criterion])
        )
    results = run()["results"]["criteria"]
    for criterion, preferred in (("alignment", "first"), ("fidelity", "second")):
        low, high = results[criterion]["all"][preferred]["interval"]
        assert low <= 0.8 <= high and 0.55 < low and high - low < 0.4
        assert set(results[criterion]["classes"]) == {"颜色", "计数"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "我们的模型" in page and "颜色" in page
    figure = (tmp_path / "out" / "preference.svg").read_text(encoding="utf-8")
    for criterion in results:
        for outcome in ("first", "tie", "second"):
            assert f">{100 * results[criterion]['all'][outcome]['mean']:.1f}<" in figure
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert stored["results"]["criteria"] == results and stored["study"] == key["study"]
    assert "| all | 12 | 60 |" in (tmp_path / "out" / "preference.md").read_text(encoding="utf-8")


def test_report_of_half_a_vote(study):
    run, key, votes = study
    first = key["pairs"][0]["id"]
    world["write_votes"](
        votes, key, "v", lambda entry, name: "tie" if entry["id"] == first and name == "alignment" else None, False
    )
    results = run()["results"]["criteria"]
    assert results["alignment"]["all"]["tie"] == {"mean": 1.0, "interval": [0.0, 1.0]}
    assert results["fidelity"]["all"]["pairs"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no file of votes: its format is 'x'"),
        ({"study": "other"}, "holds votes of study 'other', not of 'abc'"),
        ({"voter": ""}, "does not say who voted"),
        ({"votes": None}, "votes is no list"),
        ({"votes": ["x"]}, "a vote is an object, found 'x'"),
        ({"votes": [{"pair": "p9999"}]}, "a vote has pair 'p9999', which this study does not know"),
        ({"choice": "C"}, "a vote has choice 'C', which this study does not know"),
        ({"seconds": "long"}, "took 'long' seconds"),
        ({"seconds": float("inf")}, "took inf seconds"),
    ],
)
def test_files_that_are_refused(tmp_path, change, message):
    key = make_key(2)
    path = world["write_votes"](tmp_path, key, "甲", lambda entry, criterion: "first")
    content = json.loads(path.read_text(encoding="utf-8"))
    if set(change) & {"choice", "seconds"}:
        content["votes"][0] |= change
    else:
        content |= change
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_votes(tmp_path, key)
    assert str(path) in str(caught.value)


def test_a_voter_and_an_answer_count_once(tmp_path):
    key = make_key(2)
    path = world["write_votes"](tmp_path, key, "甲", lambda entry, criterion: "first")
    content = json.loads(path.read_text(encoding="utf-8"))
    (tmp_path / "votes_copy.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ValueError, match="both hold votes of '甲': keep the newer one"):
        read_votes(tmp_path, key)
    (tmp_path / "votes_copy.json").unlink()
    content["votes"].append(content["votes"][0])
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ValueError, match="answers alignment of pair p0000 twice"):
        read_votes(tmp_path, key)
    for torn in ("{", "[" * 100_000):
        path.write_text(torn, encoding="utf-8")
        with pytest.raises(ValueError, match="is not readable as JSON"):
            read_votes(tmp_path, key)
    path.unlink()
    (tmp_path / "._votes_甲.json").write_bytes(b"what a Mac leaves beside a file")
    assert read_votes(tmp_path, key) == []
