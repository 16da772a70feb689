"""Scorers made of scorers. Each takes a spec, so that all stays JSON, and shows the parts of what it is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number, positive
from llm_gym.feedback.base import Score, Scorer
from llm_gym.feedback.compose import build
from llm_gym.feedback.reference import references
from llm_gym.feedback.rules import copied_share, words

Spec = str | dict[str, Any]


class Operator(Scorer):
    """Makes one value of another feedback's.

    Its parts show as `NAME/PART`, such as `clipped/likelihood`, before their weights.

    Args:
        of: The feedback that it is made of, a spec as `build` takes it.
    """

    def __init__(self, of: Spec) -> None:
        self.inner = build(of)
        self.reads_reference = self.inner.reads_reference

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return the values."""
        return [None if score is None else score.value for score in self.scores(episodes)]

    def scores(self, episodes: Sequence[Episode]) -> list[Score | None]:
        """Return the values with the parts of the inner feedback; it abstains where one of these does."""
        inner = zip(episodes, self.inner(episodes), strict=True)
        return [None if s.abstained else Score(self.value(e, s), s.parts) for e, s in inner]

    @abstractmethod
    def value(self, episode: Episode, score: Score) -> float:
        """Return the value made of the inner feedback's score."""

    def members(self, score: Score) -> list[float]:
        """Return the weighted values of the scorers that the inner feedback names."""
        return [weight * score.parts[name] for name, weight in self.inner.weights.items()]


class Gate(Operator):
    """The value of a feedback where a condition reaches a threshold, else a floor.

    The condition's parts show as `gate/condition/PART`. Both are computed for every text, so that all parts are there.

    Args:
        of: The feedback.
        condition: The feedback that decides.
        threshold: What the condition must reach.
        floor: The value where it does not.
    """

    def __init__(self, of: Spec, condition: Spec, threshold: float = 0.5, floor: float = 0.0) -> None:
        super().__init__(of)
        self.condition = build(condition)
        self.reads_reference = self.reads_reference or self.condition.reads_reference
        self.threshold, self.floor = number("threshold", threshold), number("floor", floor)

    def scores(self, episodes: Sequence[Episode]) -> list[Score | None]:
        """Return the values with the parts of both feedbacks; it abstains where a part of either does."""
        return [
            None
            if inner.abstained or condition.abstained
            else Score(
                inner.value if condition.value >= self.threshold else self.floor,
                {**inner.parts, **{f"condition/{name}": value for name, value in condition.parts.items()}},
            )
            for inner, condition in zip(self.inner(episodes), self.condition(episodes), strict=True)
        ]

    def value(self, episode: Episode, score: Score) -> float:
        """Return the inner value: `scores` decides."""
        return score.value


class Minimum(Operator):
    """The least of several scorers' weighted values: no part makes up for another."""

    def value(self, episode: Episode, score: Score) -> float:
        """Return the minimum."""
        return min(self.members(score))


class Ensemble(Operator):
    """Mean of several scorers' weighted values less their variance: where judges disagree, neither is trusted.

    Against over-optimisation (Coste et al. 2023). The scorers should be on one scale, see `standardised`.

    Args:
        of: The scorers; the same one twice by labels, `{"likelihood#small": ..., "likelihood#large": ...}`.
        penalty: The variance's factor.
    """

    def __init__(self, of: Spec, penalty: float = 1.0) -> None:
        super().__init__(of)
        self.penalty = number("penalty", penalty)

    def value(self, episode: Episode, score: Score) -> float:
        """Return mean - penalty * variance."""
        members = self.members(score)
        return float(np.mean(members) - self.penalty * np.var(members))


class _Linear(Operator):
    """Keeps where in the text the inner value arises, times a factor."""

    factor = 1.0

    def placed(self, episode: Episode) -> list[tuple[int, float]]:
        """Return the inner feedback's places."""
        return [(end, self.factor * value) for end, value in self.inner.placed(episode)]


class LengthControlled(_Linear):
    """A feedback's value less what length alone is worth: value - slope * (words - target).

    Args:
        of: The feedback.
        slope: What one more word adds to the value, as measured.
        target: The number of words at which nothing is taken off.
    """

    def __init__(self, of: Spec, slope: float, target: float) -> None:
        super().__init__(of)
        self.slope, self.target = number("slope", slope), number("target", target)

    def value(self, episode: Episode, score: Score) -> float:
        """Return the residual."""
        return score.value - self.slope * (len(words(episode.text)) - self.target)


class OwnWords(Operator):
    """A feedback's value times the share of the text's words that are not copied from the source; for second judges.

    A recited beginning holds key facts and the reference's words, so judges that compare with a reference like it. The
    share is one of the reference's, at most 1: what people quote too costs nothing.

    Args:
        of: The feedback. Where it is below 0 it stays as it is: a product would rise with what is copied.
        run: How many words in a row are a copy, see `copied_words`.
    """

    def __init__(self, of: Spec, run: int = 4) -> None:
        super().__init__(of)
        self.run = positive("run", run)
        self.reads_reference = True

    def value(self, episode: Episode, score: Score) -> float:
        """Return the product.

        Raises:
            LLMGymError: There is no reference.
        """
        texts = (episode.text, *references([episode]))
        mine, theirs = (copied_share(text, episode.source, self.run) for text in texts)
        return score.value if mine <= theirs or score.value <= 0 else score.value * (1 - mine) / (1 - theirs)


class Standardised(_Linear):
    """A feedback's value in standard deviations from a mean, both as measured on a policy that is to be the reference.

    Args:
        of: The feedback.
        mean: Its mean.
        sd: Its standard deviation.
    """

    def __init__(self, of: Spec, mean: float, sd: float) -> None:
        super().__init__(of)
        self.mean, self.sd = number("mean", mean), number("sd", sd)
        if self.sd <= 0:
            raise LLMGymError(f"sd={sd!r} must be above 0: the standard deviation that was measured")
        self.factor = 1 / self.sd

    def value(self, episode: Episode, score: Score) -> float:
        """Return (value - mean) / sd."""
        return (score.value - self.mean) / self.sd


class Clipped(Operator):
    """A feedback's value, from `low` to `high`."""

    def __init__(self, of: Spec, low: float, high: float) -> None:
        super().__init__(of)
        self.low, self.high = number("low", low), number("high", high)
        if self.low >= self.high:
            raise LLMGymError(f"low={low!r} must be below high={high!r}")

    def value(self, episode: Episode, score: Score) -> float:
        """Return the clipped value."""
        return min(max(score.value, self.low), self.high)


class Threshold(Operator):
    """1 where a feedback's value reaches `epsilon`, else 0."""

    def __init__(self, of: Spec, epsilon: float) -> None:
        super().__init__(of)
        self.epsilon = number("epsilon", epsilon)

    def value(self, episode: Episode, score: Score) -> float:
        """Return 0 or 1."""
        return float(score.value >= self.epsilon)
