"""Coherence: does a sentence follow from the one before it?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.likelihood import language_model
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.rules import sentences, words

NOTHING_SAID = "One day something happened."
"""A sentence that says nothing: what could follow it as well follows from nothing in particular."""


class Coherence(Scorer):
    """How much each sentence helps to predict the next, against a sentence that says nothing; −1 to 1.

    For neighbours a and b: log p(b | a) − log p(b | `NOTHING_SAID`), in nats per token, within ± `limit`, as a share of
    it; the mean over neighbours, of which `steps` are expected at least. What could stand anywhere gains nothing, what
    does not belong here loses. A sentence with more than half of its content words from earlier ones would be the
    easiest to predict, so it counts 0. A text of one sentence has 0.

    Args:
        model: Name of a causal language model.
        limit: Nats per token that count in full.
        steps: Neighbours that a text should have; missing ones count 0.
    """

    def __init__(self, model: str = "smollm2-135m", limit: float = 0.5, steps: int = 4) -> None:
        if not limit > 0:
            raise LLMGymError(f"limit={limit!r} must be positive, in nats per token")
        self.lm, self.limit, self.steps = language_model(model), limit, positive("steps", steps)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        rows = [new_neighbours(e.text) for e in episodes]
        pairs = [(before, f" {after}") for row, _ in rows for before, after in row]
        gains = iter(np.subtract(self.lm(pairs), self.lm([(NOTHING_SAID, after) for _, after in pairs])).tolist())
        return [self._mean([next(gains) for _ in row], count) for row, count in rows]

    def _mean(self, gains: list[float], count: int) -> float:
        shares = np.clip(np.array(gains) / self.limit, -1, 1)
        return float(shares.sum()) / max(self.steps, count)


def new_neighbours(text: str) -> tuple[list[tuple[str, str]], int]:
    """Return the pairs of neighbouring sentences of which the second says something new, and how many pairs there are.

    >>> new_neighbours("Rain fell on the town. The town had rain. Ducks came.")
    ([('The town had rain.', 'Ducks came.')], 2)
    """
    found = sentences(text)
    known: set[str] = set()
    pairs = []
    for before, after in zip(["", *found], found, strict=False):
        content = {word for word in words(after) if word not in FUNCTION_WORDS}
        if before and len(content & known) <= len(content) / 2:
            pairs.append((before, after))
        known |= content
    return pairs, max(0, len(found) - 1)
