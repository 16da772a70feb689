"""Evenly spaced items, rank correlation, isotonic regression, and bootstrap intervals over documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")
RESAMPLES = 10_000
CHUNK = 1_000  # resamples held as floats at a time


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` of `items`, evenly spaced, the first and the last among them: nobody picked them.

    >>> evenly_spaced(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


# -------------------------------------------------------------------- correlation


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, float `(n,)`; equal values share the mean of theirs, and NaN has none.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.where(np.isnan(values), np.nan, (np.cumsum(counts) - (counts - 1) / 2)[place])


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation, NaN where either is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation, NaN where either is constant.

    >>> spearman(np.array([1, 2, 3, 4]), np.array([1, 3, 2, 9])).__round__(6)
    0.8
    """
    return pearson(ranks(x), ranks(y))


def trend(values: np.ndarray) -> float:
    """Return the t value of the slope of a line through values that follow each other, 0 without any slope.

    >>> round(trend(np.array([0.0, 1.0, 1.0, 2.0])), 3)
    4.243
    """
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(x @ values / (x @ x))
    left = values - values.mean() - slope * x
    spread = np.sqrt(left @ left / (len(values) - 2) / (x @ x))
    return float(slope / max(spread, 1e-12)) if slope else 0.0


def isotonic(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the rising function nearest to `y` at `x` by least squares, linear between points and flat outside.

    Pool adjacent violators (Ayer et al. 1955); equal `x` are pooled first.
    """
    points, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / counts
    pools: list[tuple[float, int, int]] = []  # mean, weight, how many points
    for mean, weight in zip(means.tolist(), counts.tolist(), strict=True):
        size = 1
        while pools and pools[-1][0] >= mean:
            last, heavy, many = pools.pop()
            mean = (last * heavy + mean * weight) / (heavy + weight)
            weight, size = weight + heavy, size + many
        pools.append((mean, weight, size))
    fitted = np.repeat([pool[0] for pool in pools], [pool[2] for pool in pools])
    return lambda new: np.interp(new, points, fitted)


# -------------------------------------------------------------------- bootstrap


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: The statistic, or None where it is undefined.
        low: Lower end of the 95 % interval, or None with fewer than two documents.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Statistic:
    """A number that depends on documents through sums over them alone, so that resampling is a matrix product.

    Attributes:
        sums: float `(documents, k)`, what each document adds.
        value: The statistic of sums `(..., k)`, NaN where undefined.
        bounds: What it lies between; a widened interval ends there.
    """

    sums: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def estimate(self, seed: int = 0, level: float = 0.95) -> Estimate:
        """Return the statistic and its bootstrap interval, resampling documents.

        The percentile interval of 10,000 resamples, widened around the statistic by sqrt(n / (n - 1)): resampling
        alone understates the spread of a few values by that factor. The same seed draws the same documents, so that
        the difference of two statistics is a paired one.
        """
        n = len(self.sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(self.value(self.sums.sum(0)))
            drawn = [self.value(counts @ self.sums) for counts in _resamples(n, seed)] if n > 1 else []
        known = np.concatenate(drawn) if drawn else np.zeros(0)
        known = known[np.isfinite(known)]  # a resample may miss all documents in which it is defined
        if not np.isfinite(value):
            return Estimate(None, None, None)
        if not len(known):
            return Estimate(value, None, None)
        ends = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        low, high = np.clip(value + (ends - value) * np.sqrt(n / (n - 1)), *self.bounds)
        return Estimate(value, float(low), float(high))


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of `n` documents is drawn, float `(CHUNK, n)`."""
    for counts in _counts(n, seed):
        yield counts.astype(np.float64)


@lru_cache(2)
def _counts(n: int, seed: int) -> list[np.ndarray]:
    random, rows = np.random.default_rng(seed), n * np.arange(CHUNK)[:, None]
    draws = (random.integers(n, size=(CHUNK, n)) for _ in range(RESAMPLES // CHUNK))
    return [np.bincount((d + rows).ravel(), minlength=CHUNK * n).reshape(CHUNK, n).astype(np.uint16) for d in draws]


def interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the mean of `values`, resampling documents; see `Statistic.estimate`.

    Args:
        values: float `(n,)`, one a document; for a paired change, the differences.
        seed: Of the resampling.
        level: Coverage.

    Returns:
        Both ends; NaN if there are fewer than two values, or one of them is not finite.
    """
    values = np.asarray(values, np.float64)
    estimate = ratio(values, np.ones(len(values))).estimate(seed, level)
    if estimate.low is None or estimate.high is None:
        return float("nan"), float("nan")
    return estimate.low, estimate.high


# -------------------------------------------------------------------- statistics


def ratio(numerator: np.ndarray, denominator: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Statistic:
    """Return the sum of `numerator` over that of `denominator`, both `(documents,)`: a mean if the latter counts."""
    sums = np.stack([numerator, denominator], -1).astype(np.float64)
    return Statistic(sums, lambda s: s[..., 0] / s[..., 1], bounds)


def correlation(x: np.ndarray, y: np.ndarray, documents: np.ndarray) -> Statistic:
    """Return Pearson's correlation over all of `x` and `y`, `(n,)`, that belong to `documents`, `(n,)`.

    A constant `x` has the correlation 0: it tells nothing.
    """
    x, y = _unit(x), _unit(y)
    columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], -1)
    return Statistic(by_document(columns, documents), _correlation, (-1.0, 1.0))


def _unit(values: np.ndarray) -> np.ndarray:
    """Return values about 0 with deviation 1, which keeps sums of squares exact."""
    centred = values - values.mean()
    return centred / (centred.std() if np.ptp(values) else 1.0)


def _correlation(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    spread_x, spread_y = (np.where(s <= 1e-9 * n * n, 0.0, s) for s in (spread_x, spread_y))
    found = (n * xy - x * y) / np.sqrt(spread_x * spread_y)
    return np.where((spread_x == 0) & (spread_y > 0), 0.0, found)


def by_document(columns: np.ndarray, documents: np.ndarray, count: int | None = None) -> np.ndarray:
    """Return the sums `(documents, k)` of `columns`, `(n, k)`, over the texts of each document, numbered from 0."""
    count = int(documents.max()) + 1 if count is None else count
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, documents, columns)
    return sums


def mean(statistics: Sequence[Statistic]) -> Statistic:
    """Return the mean of statistics over the same documents, with the same bounds."""
    return _joined(statistics, lambda values: sum(values[1:], values[0]) / len(values), statistics[0].bounds)


def difference(one: Statistic, other: Statistic) -> Statistic:
    """Return `one` minus `other`, over the same documents and with the same bounds: paired."""
    width = one.bounds[1] - one.bounds[0]
    return _joined([one, other], lambda values: values[0] - values[1], (-width, width))


def _joined(
    statistics: Sequence[Statistic], join: Callable[[list[np.ndarray]], np.ndarray], bounds: tuple[float, float]
) -> Statistic:
    ends = np.cumsum([s.sums.shape[1] for s in statistics])[:-1]

    def value(sums: np.ndarray) -> np.ndarray:
        return join([s.value(part) for s, part in zip(statistics, np.split(sums, ends, -1), strict=True)])

    return Statistic(np.concatenate([s.sums for s in statistics], -1), value, bounds)


# -------------------------------------------------------------------- win rates


def wins(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return how often each of mine beats each of theirs about the same document, float `(documents, m * t)`.

    Args:
        mine: Judgements, float `(documents, m)`.
        theirs: Likewise, `(documents, t)`.

    Returns:
        1 for a win, 0 for a loss, one half for a tie.

    >>> wins(np.array([[3.0]]), np.array([[1.0, 3.0]])).tolist()
    [[1.0, 0.5]]
    """
    left, right = mine[:, :, None], theirs[:, None, :]
    return ((left > right) + 0.5 * (left == right)).reshape(len(mine), -1)


def win_rate(won: np.ndarray, longer: np.ndarray | None = None, seed: int = 0, resamples: int = 1_000) -> Estimate:
    """Return the share of wins with its bootstrap interval over documents; with `longer`, at equal lengths.

    The length-controlled rate is that of a logistic regression of winning on the difference in length, where there is
    none (Dubois et al. 2024, "Length-controlled AlpacaEval").

    Args:
        won: From `wins`, `(documents, pairs)`.
        longer: How many words longer the first text of each pair is, `(documents, pairs)`.
        seed: Of the resampling.
        resamples: How many.
    """
    documents = np.random.default_rng(seed).integers(len(won), size=(resamples, len(won)))
    if longer is None:
        drawn = won.mean(1)[documents].mean(1)
        value = float(won.mean())
    else:
        spread = longer.std() or 1.0
        push = np.tanh(longer / spread)
        value = _at_equal_length(won, push)
        drawn = np.array([_at_equal_length(won[rows], push[rows]) for rows in documents])
    if len(won) < 2:
        return Estimate(value, None, None)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _at_equal_length(won: np.ndarray, push: np.ndarray) -> float:
    """Return the probability of a win at no difference in length, by Newton's method with a faint prior."""
    x = np.stack([np.ones(push.size), push.ravel()])
    weights = np.zeros(2)
    for _ in range(12):
        chance = 1 / (1 + np.exp(-weights @ x))
        slope = x @ (won.ravel() - chance) - 0.1 * weights
        curve = (x * (chance * (1 - chance))) @ x.T + 0.1 * np.eye(2)
        weights = weights + np.linalg.solve(curve, slope)
    return float(1 / (1 + np.exp(-weights[0])))
