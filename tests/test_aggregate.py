"""The estimators against what `rliable` 1.2.0 printed (`tests/rliable_values.py` says how), and their invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm_gym.aggregate import (
    bootstrap,
    interquartile_mean,
    paired_change,
    performance_profile,
    probability_of_improvement,
)
from rliable_values import PAIRS, THRESHOLDS, scores

# Of each: the value, and the ends of its interval by 50,000, 20,000 and 10,000 resamples.
IQM: dict[str, Any] = {
    "a": (-0.166667, -0.6444, 0.2556),
    "b": (0.28, -0.14, 0.98),
    "c": (0.8, 0.3909, 1.1727),
}
PROFILE: dict[str, Any] = {
    "a": ([0.6, 0.4, 0.2, 0.066667, 0.0], [0.3333, 0.2, 0.0, 0.0, 0.0], [0.8667, 0.6667, 0.4, 0.2, 0.0]),
    "b": (
        [1.0, 0.555556, 0.444444, 0.222222, 0.111111],
        [1.0, 0.2222, 0.1111, 0.0, 0.0],
        [1.0, 0.8889, 0.7778, 0.4444, 0.3333],
    ),
    "c": (
        [0.952381, 0.761905, 0.714286, 0.333333, 0.142857],
        [0.8571, 0.5714, 0.5238, 0.1429, 0.0],
        [1.0, 0.9048, 0.9048, 0.5238, 0.2857],
    ),
}
IMPROVEMENT = {"ab": (0.311111, 0.1111, 0.5556), "ca": (0.780952, 0.6095, 0.9333), "bd": (0.166667, 0.0, 0.3333)}


@pytest.mark.parametrize("name", IQM)
def test_interquartile_mean_and_its_interval_are_rliables(name: str) -> None:
    band = bootstrap(interquartile_mean, scores()[name])
    value, low, high = IQM[name]
    assert band.value == pytest.approx(value, abs=1e-6)
    assert (band.low, band.high) == pytest.approx((low, high), abs=0.03)


@pytest.mark.parametrize("name", PROFILE)
def test_performance_profiles_are_rliables(name: str) -> None:
    band = bootstrap(lambda s: performance_profile(s, THRESHOLDS), scores()[name])
    value, low, high = PROFILE[name]
    step = 1 / scores()[name].size + 1e-3  # a share moves by whole scores
    np.testing.assert_allclose(band.value, value, atol=1e-6)
    np.testing.assert_allclose(band.low, low, atol=step)
    np.testing.assert_allclose(band.high, high, atol=step)


@pytest.mark.parametrize("pair", PAIRS)
def test_probability_of_improvement_is_rliables(pair: tuple[str, str]) -> None:
    known = scores()
    band = bootstrap(probability_of_improvement, known[pair[0]], known[pair[1]])
    value, low, high = IMPROVEMENT["".join(pair)]
    assert band.value == pytest.approx(value, abs=1e-6)
    assert (band.low, band.high) == pytest.approx((low, high), abs=0.03)
    turned = probability_of_improvement(known[pair[1]], known[pair[0]])
    assert turned == pytest.approx(1 - value, abs=1e-6)


def test_leading_axes_are_kept() -> None:
    known = np.stack([scores()["a"], scores()["a"][::-1] + 1])
    for statistic in (
        interquartile_mean,
        lambda s: performance_profile(s, THRESHOLDS),
        lambda s: probability_of_improvement(s, s[..., :2, :]),
    ):
        np.testing.assert_array_equal(statistic(known), np.stack([statistic(one) for one in known]))


def test_runs_are_resampled_within_their_task() -> None:
    """Tasks a thousand apart: whatever is drawn, each has as many scores as there are runs."""
    apart = np.array([[0.0, 1000.0], [1.0, 1001.0], [2.0, 1002.0]])
    band = bootstrap(lambda s: (s > 500).mean((-2, -1)), apart)
    assert band.low == band.high == 0.5


def test_one_run_has_a_value_and_no_interval() -> None:
    estimate = bootstrap(interquartile_mean, scores()["d"]).estimate()
    assert estimate.value == pytest.approx(np.mean(scores()["d"])) and estimate.low is None and estimate.high is None


def test_the_same_seed_draws_the_same() -> None:
    known = np.random.default_rng(0).normal(size=(5, 3))
    first, second, other = (bootstrap(interquartile_mean, known, seed=seed) for seed in (0, 0, 1))
    assert first == second and (first.low, first.high) != (other.low, other.high)


def test_a_paired_change_knows_that_documents_are_the_same() -> None:
    """Documents differ a lot and runs hardly: paired, a small change is seen."""
    generator = np.random.default_rng(0)
    documents = generator.normal(0, 10, 30)
    old = documents + generator.normal(0, 0.1, (3, 30))
    new = documents + 0.5 + generator.normal(0, 0.1, (3, 30))
    change = paired_change(old, new)
    assert change.low > 0.3 and change.high < 0.7  # type: ignore[operator]
    assert change.value == pytest.approx(new.mean() - old.mean())
    unpaired = paired_change(old, generator.permuted(new, axis=1))
    assert unpaired.low < 0 < unpaired.high  # type: ignore[operator]


def test_a_paired_change_knows_that_runs_differ() -> None:
    """No document tells more than another, but one run of two is far off: two runs are no evidence."""
    old = np.zeros((2, 20))
    new = np.zeros((2, 20)) + np.array([[0.0], [3.0]])
    change = paired_change(old, new)
    assert change.low == 0 and change.high == 3 and change.value == 1.5
    assert paired_change(old[:, :1], new[:, :1]).low is None
