"""Rules on the text itself: copying, repetition, brevity, completeness. No model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from llm_gym.episode import Episode
from llm_gym.errors import positive
from llm_gym.feedback.base import Scorer


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without punctuation.

    >>> words("Don't stop: 3 boats!")
    ["don't", 'stop', '3', 'boats']
    """
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def copied_share(text: str, source: str, run: int = 4) -> float:
    """Return the share of the words of `text` that lie in runs of at least `run` words copied from `source`.

    The extractive fragments of Grusky et al. 2018 (Newsroom), long ones only: shared names and terms are no copying.

    >>> copied_share("Rain fell on the old town, briefly.", "All night rain fell on the hills.")
    0.5714285714285714
    """
    found = words(text)
    copied = [False] * len(found)
    for i, stands in enumerate(_in_source(found, source, run)):
        if stands:
            copied[i : i + run] = [True] * run
    return sum(copied) / len(found) if found else 0.0


def copied_sequences(text: str, source: str, size: int = 4) -> int:
    """Return how many of the `size`-word sequences of `text` stand in `source`.

    Unlike the copied share it grows with the length of each copied run, so that one turn of phrase in common costs
    little and a copied sentence much, and no further sentence dilutes it.

    >>> copied_sequences("Rain fell on the old town, briefly.", "All night rain fell on the hills.")
    1
    """
    return sum(_in_source(words(text), source, size))


def _in_source(found: list[str], source: str, size: int) -> list[bool]:
    """Return for each sequence of `size` words of `found` whether it stands in `source`."""
    read = words(source)
    known = {tuple(read[i : i + size]) for i in range(len(read) - size + 1)}
    return [tuple(found[i : i + size]) in known for i in range(len(found) - size + 1)]


def repeated_share(text: str, size: int = 3) -> float:
    """Return the share of the `size`-word sequences of `text` that occurred before in it.

    >>> repeated_share("so it goes so it goes")
    0.25
    """
    found = words(text)
    grams = [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]
    return sum(count - 1 for count in Counter(grams).values()) / len(grams) if grams else 0.0


class Copying(Scorer):
    """Square root of the number of word sequences of length `size` copied from the source.

    The first copied sequence costs most, which keeps a policy from beginning; a good summary that shares a phrase or
    two with its source is not lost.
    """

    def __init__(self, size: int = 4) -> None:
        self.size = positive("size", size)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the roots."""
        return [copied_sequences(e.text, e.source, self.size) ** 0.5 for e in episodes]


class Repetition(Scorer):
    """Share of word trigrams that occurred before in the text, 0 to 1."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the repeated share."""
        return [repeated_share(e.text) for e in episodes]


class Brevity(Scorer):
    """How far the text falls short of `words` words, 0 (long enough) to 1 (empty)."""

    def __init__(self, words: int = 12) -> None:
        self.words = positive("words", words)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the missing share."""
        return [max(0, self.words - len(words(e.text))) / self.words for e in episodes]


class Complete(Scorer):
    """1 if the agent ended the text itself and with a full sentence, else 0."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [
            float(e.finish_reason == "stop" and bool(re.search(r"[.!?][\"')\]]*$", e.text.strip()))) for e in episodes
        ]


class Length(Scorer):
    """Number of words, for reports."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the number of words."""
        return [float(len(words(e.text))) for e in episodes]
