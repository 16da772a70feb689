"""What a scorer is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_gym.episode import Episode


@dataclass(frozen=True)
class Score:
    """A judgement of one episode: its value, higher is better, and the named parts it was made of.

    Attributes:
        value: The judgement; NaN where a scorer abstained, since the other parts alone would be of another scale.
        parts: What it was made of, before weights; NaN for what a scorer abstained from.
        placed: The share of `value` that arose at single places, as `(end, value)`: what the text up to character
            `end` was judged to add there. The rest is about the text as a whole.
    """

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    placed: tuple[tuple[int, float], ...] = ()

    @property
    def abstained(self) -> tuple[str, ...]:
        """The names of the scorers that abstained.

        >>> Score(math.nan, {"rating": math.nan, "length": 3.0}).abstained
        ('rating',)
        """
        return tuple(name for name, value in self.parts.items() if math.isnan(value))


class Scorer(ABC):
    """Judges finished episodes, all that ended together in one call.

    A scorer holds no state of an episode, gives a text the same score whatever else is in the batch, and raises
    when it cannot judge, or abstains where it was told to: a failure is never turned into a number.

    Attributes:
        reads_reference: Whether it compares with what a person wrote: for second judges, and for training feedback only
            where a task is `verifiable`.
    """

    reads_reference: bool = False

    @abstractmethod
    def __call__(self, episodes: Sequence[Episode]) -> Sequence[float | None]:
        """Return one value an episode, in order; None for an episode that the scorer abstains from."""

    def scores(self, episodes: Sequence[Episode]) -> list[Score | None]:
        """Return the values with the parts they are made of; scorers that are made of others override it."""
        return as_scores(self(episodes))

    def placed(self, episode: Episode) -> list[tuple[int, float]]:
        """Return where in the text the value arises, for scorers that know; their values sum to the scorer's.

        Algorithms that reward single tokens use it to reward the right ones.
        """
        return []


class PairwiseScorer(Scorer):
    """A scorer that can also be shown two texts at once."""

    @abstractmethod
    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        """Return how much better each first text is than its second, shown in that order; below 0 if it is worse.

        NaN for a pair that the scorer abstains from.
        """


def as_scores(values: Sequence[float | None]) -> list[Score | None]:
    """Return scores without parts, None where a scorer abstained."""
    return [None if value is None else Score(float(value)) for value in values]
