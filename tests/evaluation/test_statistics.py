"""Intervals against SciPy and against what is known of a binomial."""

from __future__ import annotations

import numpy as np
import pytest

from ppvilg.evaluation.metrics.intervals import bootstrap_interval, share


def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    values = np.random.default_rng(3).normal(5.0, 2.0, size=80)
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", random_state=1
    ).confidence_interval
    assert bootstrap_interval(values, resamples=9999) == pytest.approx(tuple(peer), abs=0.03)


def test_interval_of_a_share_is_that_of_the_binomial():
    values = [True] * 80 + [False] * 20
    low, high = bootstrap_interval(values, resamples=20000)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 100)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.011)  # means come in steps of 0.01


def test_interval_is_repeatable_and_follows_the_confidence():
    values = np.arange(30.0)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    wide, narrow = bootstrap_interval(values, 0.99), bootstrap_interval(values, 0.5)
    assert wide[0] < narrow[0] < 14.5 < narrow[1] < wide[1]


def test_equal_values_give_a_point():
    assert bootstrap_interval([1, 1, 1]) == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_values_that_have_no_interval(values):
    with pytest.raises(ValueError, match="list of finite numbers"):
        bootstrap_interval(values)


@pytest.mark.parametrize("arguments", [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}])
def test_settings_out_of_range(arguments):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        bootstrap_interval([1.0, 2.0], **arguments)


def test_share_is_ready_for_json():
    assert share([]) == {"mean": None, "interval": None, "count": 0}
    result = share([True, False, True, True])
    assert result["mean"] == 0.75 and result["count"] == 4 and result["interval"][0] < 0.75 < result["interval"][1]
