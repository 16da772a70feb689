"""What a benchmark's scores say: aggregates over runs and tasks, with stratified bootstrap intervals.

The estimators of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", equal to
those of their package `rliable` (`tests/rliable_values.py`). Scores are `(..., runs, tasks)`; a run is a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llm_gym.statistics import Estimate

RESAMPLES = 5_000
LEVEL = 0.95


class Band(NamedTuple):
    """A statistic that may be an array, and the ends of its 95 % interval; these are NaN where no run was repeated."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def estimate(self) -> Estimate:
        """Return a single number with its interval."""
        value, low, high = (float(part) if np.isfinite(part) else None for part in self)
        return Estimate(value, low, high)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of what is left when the lowest and the highest quarter of all scores are cut off, `(...)`.

    >>> float(interquartile_mean(np.array([[0.0, 1.0], [3.0, 100.0]])))
    2.0
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), -1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of scores above each of the thresholds `(t,)`, `(..., t)`.

    >>> performance_profile(np.array([[0.0, 1.0]]), np.array([-1.0, 0.0, 1.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return (scores[..., None] > thresholds).mean((-3, -2))


def probability_of_improvement(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the probability that a run of mine beats one of theirs on the same task, ties half, mean over tasks.

    Args:
        mine: Scores `(..., runs, tasks)`.
        theirs: Likewise; the number of runs may differ.

    >>> float(probability_of_improvement(np.array([[1.0], [3.0]]), np.array([[1.0]])))
    0.75
    """
    left, right = mine[..., :, None, :], theirs[..., None, :, :]
    return ((left > right) + 0.5 * (left == right)).mean((-3, -2, -1))


def bootstrap(statistic: Callable[..., np.ndarray], *scores: np.ndarray, seed: int = 0) -> Band:
    """Return a statistic and its percentile interval, resampling the runs of each task by themselves.

    Args:
        statistic: Takes arrays `(..., runs, tasks)`, as many as there are `scores`, and keeps the leading axes.
        scores: `(runs, tasks)` each; they are resampled independently.
        seed: Of the resampling.
    """
    generator = np.random.default_rng(seed)
    value = np.asarray(statistic(*scores))
    if all(len(s) < 2 for s in scores):
        return Band(value, np.full(value.shape, np.nan), np.full(value.shape, np.nan))
    low, high = np.quantile(statistic(*(_resampled(s, generator) for s in scores)), _ends(), axis=0)
    return Band(value, low, high)


def paired_change(old: np.ndarray, new: np.ndarray, seed: int = 0) -> Estimate:
    """Return how much the mean has changed, with an interval over documents and over runs.

    The documents are the same in both and are resampled together; runs have nothing to do with each other and are
    resampled apart. Where there is but one run, the interval is over documents alone.

    Args:
        old: Values `(runs, documents)`.
        new: Values of other runs on the same documents.
        seed: Of the resampling.

    >>> paired_change(np.array([[1.0, 2.0]]), np.array([[2.0, 3.0]]))
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    generator, documents = np.random.default_rng(seed), old.shape[1]
    value = float(new.mean() - old.mean())
    if documents < 2:
        return Estimate(value, None, None)
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), RESAMPLES) / documents
    means = [_drawn_means(runs, drawn, generator) for runs in (old, new)]
    low, high = np.quantile(means[1] - means[0], _ends())
    return Estimate(value, float(low), float(high))


def _drawn_means(values: np.ndarray, documents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the mean of each resample, `(RESAMPLES,)`, of the documents' shares that were drawn and of drawn runs."""
    runs = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES) / len(values)
    return np.einsum("br,rd,bd->b", runs, values, documents, optimize=True)


def _resampled(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    runs, tasks = scores.shape
    return scores[generator.integers(runs, size=(RESAMPLES, runs, tasks)), np.arange(tasks)]


def _ends() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2
