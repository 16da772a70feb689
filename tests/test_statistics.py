"""Rank correlation, isotonic regression and bootstrap intervals, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.statistics import (
    Statistic,
    by_document,
    correlation,
    difference,
    interval,
    isotonic,
    mean,
    pearson,
    ranks,
    ratio,
    spearman,
    trend,
    win_rate,
    wins,
)

numbers = st.lists(st.integers(0, 6), min_size=2, max_size=24).map(lambda v: np.array(v, float))


# --- correlation --------------------------------------------------------------------------------------------


@given(numbers)
def test_a_rank_is_one_more_than_the_smaller_values_and_half_of_the_other_equal_ones(values):
    expected = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
    assert ranks(values).tolist() == expected


def test_what_is_not_known_has_no_rank_and_no_correlation():
    values = np.array([2.0, np.nan, 1.0, 3.0])
    assert ranks(values)[[0, 2, 3]].tolist() == [2.0, 1.0, 3.0] and np.isnan(ranks(values)[1])
    assert np.isnan(spearman(values, np.arange(4.0)))
    assert correlation(values, np.arange(4.0), np.arange(4)).estimate().value is None


def test_spearman_worked_by_hand():
    # Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)): here d = 1, 1, 1, 1, 0.
    assert spearman(np.array([10, 20, 30, 40, 50]), np.array([2, 1, 4, 3, 5])) == pytest.approx(1 - 6 * 4 / 120)
    # With ties: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(np.array([1, 2, 3]), np.array([9, 5, 1])) == pytest.approx(-1.0)


@given(numbers, st.data())
def test_spearman_depends_on_order_alone(x, data):
    y = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(x), max_size=len(x))), float)
    found = spearman(x, y)
    assert np.isnan(found) == (np.ptp(x) == 0 or np.ptp(y) == 0)
    assert spearman(np.exp(x), y) == pytest.approx(found, nan_ok=True)
    assert spearman(-x, y) == pytest.approx(-found, nan_ok=True)


# --- isotonic regression ------------------------------------------------------------------------------------


def test_isotonic_regression_worked_by_hand():
    fitted = isotonic(np.array([1, 2, 3, 4.0]), np.array([1, 3, 2, 4.0]))
    assert fitted(np.array([0, 1, 2, 3, 4, 9, 1.5])).tolist() == [1, 1, 2.5, 2.5, 4, 4, 1.75]


@given(numbers, st.data())
def test_isotonic_regression_rises_keeps_the_mean_and_keeps_what_rises_already(x, data):
    y = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(x), max_size=len(x))), float)
    fitted = isotonic(x, y)(x)
    assert (np.diff(fitted[np.argsort(x)]) >= -1e-9).all() and fitted.mean() == pytest.approx(y.mean())
    assert isotonic(x, 2 * x)(x) == pytest.approx(2 * x)
    for other in (np.full(len(x), y.mean()), x, ranks(x)):  # no rising function is nearer
        assert ((fitted - y) ** 2).sum() <= ((other - y) ** 2).sum() + 1e-9


# --- intervals ----------------------------------------------------------------------------------------------


def test_interval_of_two_values_is_known_in_closed_form():
    # The mean of a resample is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4; widened by sqrt(2) around 1/2.
    assert interval(np.array([0.0, 1.0])) == pytest.approx((0.5 - 2**0.5 / 2, 0.5 + 2**0.5 / 2))


def test_interval_of_many_values_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    ends = [interval(random.normal(0.0, 1.0, 48), seed) for seed in range(120)]
    covered = np.mean([low <= 0.0 <= high for low, high in ends])
    assert 0.89 <= covered <= 1.0


def test_interval_is_the_same_for_the_same_seed_and_undefined_for_one_value():
    values = np.random.default_rng(2).normal(size=20)
    assert interval(values, 3) == interval(values, 3) != interval(values, 4)
    assert all(np.isnan(end) for end in interval(np.array([1.0])))


def test_interval_of_what_is_not_finite_or_not_there_is_undefined():
    for values in ([1.0, np.nan, 2.0], [np.nan, np.nan], [1.0, np.inf], []):
        assert all(np.isnan(end) for end in interval(np.array(values)))


def test_interval_of_equal_values_has_no_width():
    assert interval(np.full(9, 0.25)) == (0.25, 0.25)


def naive_interval(documents: list[np.ndarray], value, seed: int = 0) -> tuple[float, float]:
    """Resample whole documents one by one."""
    random, n = np.random.default_rng(seed), len(documents)
    draws = random.integers(n, size=(2000, n))
    values = [value(np.concatenate([documents[i] for i in draw])) for draw in draws]
    low, high = np.nanquantile(values, [0.025, 0.975])
    whole = value(np.concatenate(documents))
    return tuple(whole + (np.array([low, high]) - whole) * np.sqrt(n / (n - 1)))


def some_documents() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    documents = np.repeat(np.arange(12), random.integers(1, 6, 12))
    x = random.normal(size=len(documents)) + documents
    return x, 0.3 * x + random.normal(size=len(x)), documents


def test_a_correlation_over_documents_is_the_plain_one_and_its_interval_that_of_resampled_documents():
    x, y, documents = some_documents()
    found = correlation(x, y, documents).estimate()
    assert found.value == pytest.approx(pearson(x, y))
    pairs = [np.stack([x, y], -1)[documents == d] for d in range(12)]
    low, high = naive_interval(pairs, lambda rows: np.corrcoef(rows.T)[0, 1])
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_a_constant_score_tells_nothing_and_a_constant_judgement_is_undefined(shift):
    x, y, documents = some_documents()
    assert correlation(np.full(len(y), 0.1) + shift, y, documents).estimate().value == 0.0
    assert correlation(x + shift, np.full(len(y), 0.1), documents).estimate().value is None
    assert correlation(x + shift, y, documents).estimate().value == pytest.approx(pearson(x, y), abs=1e-6)


def test_a_difference_is_paired():
    random = np.random.default_rng(5)
    hard, ones = random.random(40), np.ones(40)
    one, other = ratio(hard + 0.1, ones), ratio(hard, ones)
    gap = difference(one, other).estimate()
    assert (gap.value, gap.low, gap.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    apart = one.estimate()
    assert apart.high - apart.low > 0.1
    both = mean([one, other]).estimate()
    assert both.value == pytest.approx(hard.mean() + 0.05)


def test_an_interval_ends_where_the_statistic_does():
    share = ratio(np.array([1.0, 1.0, 0.0]), np.ones(3), (0.0, 1.0)).estimate()
    assert (share.low, share.high) == (0.0, 1.0)


def test_what_is_undefined_is_none_and_resamples_in_which_it_is_are_left_out():
    nothing = ratio(np.zeros(4), np.zeros(4)).estimate()
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)
    rare = ratio(np.array([0.5, 0, 0, 0]), np.array([1.0, 0, 0, 0])).estimate()
    assert (rare.value, rare.low, rare.high) == (0.5, 0.5, 0.5)
    one = Statistic(np.array([[3.0, 2.0]]), lambda s: s[..., 0] / s[..., 1]).estimate()
    assert (one.value, one.low, one.high) == (1.5, None, None)


def test_sums_by_document_are_those_of_its_texts():
    columns = np.arange(8.0).reshape(4, 2)
    assert by_document(columns, np.array([1, 0, 1, 1])).tolist() == [[2, 3], [10, 13]]
    assert by_document(columns, np.array([1, 0, 1, 1]), 3).tolist()[2] == [0, 0]


# -------------------------------------------------------------------- win rates


def test_wins_count_ties_as_halves() -> None:
    won = wins(np.array([[1.0, 3.0], [0.0, 0.0]]), np.array([[2.0], [0.0]]))
    assert won.tolist() == [[0.0, 1.0], [0.5, 0.5]]
    estimate = win_rate(won)
    assert estimate.value == 0.5 and estimate.low == estimate.high == 0.5


def test_a_win_rate_is_turned_round_when_sides_are_swapped() -> None:
    rng = np.random.default_rng(0)
    mine, theirs, longer = rng.normal(0.4, 1, (40, 2)), rng.normal(0, 1, (40, 2)), rng.normal(0, 9, (40, 4))
    one = win_rate(wins(mine, theirs), longer)
    other = win_rate(wins(theirs, mine).reshape(40, 2, 2).transpose(0, 2, 1).reshape(40, 4), -longer)
    assert one.value == pytest.approx(1 - other.value, abs=1e-6)
    assert one.low < one.value < one.high


def test_a_judge_that_only_likes_length_prefers_nobody_at_equal_length() -> None:
    """One side writes longer, and the longer text mostly wins: plain it is ahead, at equal length it is not."""
    rng = np.random.default_rng(1)
    longer = rng.normal(10, 15, (400, 1))
    won = np.where(rng.random((400, 1)) < 0.9, longer > 0, longer < 0).astype(float)
    assert win_rate(won).low > 0.6
    equal = win_rate(won, longer)
    assert equal.low < 0.5 < equal.high or abs(equal.value - 0.5) < 0.08


def test_a_trend_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    noise = [trend(rng.normal(size=12)) for _ in range(400)]
    assert np.mean(np.abs(noise) > 2.9) < 0.04
    assert trend(np.arange(12) * 0.5 + rng.normal(size=12)) > 2.9
    assert trend(np.ones(5)) == 0.0
