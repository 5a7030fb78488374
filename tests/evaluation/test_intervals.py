"""Intervals against SciPy and statsmodels' published numbers, and how often they hold the truth."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ppvilg.evaluation.metrics.intervals import average, difference_interval, mean_interval, share, share_interval

simulation = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "interval_coverage.py"))


def test_share_of_yes_and_no_is_wilsons():
    """Newcombe (1998), table I, method 3: 81 of 263 is 0.2553 to 0.3662; 0 of 20 is 0 to 0.1611."""
    assert share_interval([1] * 81 + [0] * 182) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert share_interval([False] * 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_all_right_is_no_certainty():
    low, high = share_interval([1.0] * 100)
    assert high == 1.0 and 0.95 < low < 0.98
    low, high = difference_interval([0.0] * 100)
    assert -0.04 < low < -0.01 and high == -low


def test_intervals_at_the_edges():
    low, high = share_interval([1.0] * 30)
    assert high == 1.0 and 0.8 < low < 0.95
    assert share_interval([0.5]) == (0.0, 1.0)
    differing = [0.1, 0.2] * 10 + [0.8, 0.9] * 10  # two classes that differ: their shares are fixed, not drawn
    wide, narrow = share_interval(differing), share_interval(differing, [0] * 20 + [1] * 20)
    assert narrow[1] - narrow[0] < 0.3 * (wide[1] - wide[0])
    assert share_interval(differing, [0] * 39 + [1]) == wide  # a class of one prompt tells no spread
    for wrong in ([], [1.2], [float("nan")]):
        with pytest.raises(ValueError, match="numbers from 0 to 1"):
            share_interval(wrong)
    for wrong in ([0.5], [1.2, 0.0], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
            difference_interval(wrong)


def test_mean_is_students():
    values = np.random.default_rng(3).normal(5.0, 2.0, size=80)
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx(tuple(peer), rel=1e-12)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)  # 2 +- 4.303 / sqrt(3)
    assert mean_interval([1.0]) is None
    for wrong in ([], [1.0, float("nan")], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="list of finite numbers"):
            mean_interval(wrong)


@pytest.mark.parametrize(("count", "truth"), [(100, 0.98), (100, 0.5), (320, 0.93), (24, 0.9)])
def test_shares_are_covered(count, truth):
    """A percentile bootstrap covers 84.5 % at n = 100, p = .98."""
    assert 0.92 <= simulation["share_coverage"](count, truth, images=1, studies=2000) <= 0.985
    assert 0.92 <= simulation["share_coverage"](count, truth, images=4, studies=1000) <= 0.985


@pytest.mark.parametrize(("count", "better", "worse"), [(140, 0.05, 0.02), (140, 0.2, 0.1), (100, 0.01, 0.01)])
def test_differences_are_covered(count, better, worse):
    assert simulation["difference_coverage"](count, better, worse, studies=1500) >= 0.93


def test_entries_are_ready_for_json():
    assert share([]) == average([]) == {"mean": None, "interval": None, "count": 0}
    result = share([True, False, True, True])
    assert result["mean"] == 0.75 and result["count"] == 4 and result["interval"][0] < 0.75 < result["interval"][1]
    assert average([2.0]) == {"mean": 2.0, "interval": None, "count": 1}
