"""Rules on the text itself: copying, repetition, brevity, completeness. No model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.base import Scorer

WORD = r"\w+(?:'\w+)*"


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without punctuation.

    >>> words("Don't stop: 3 boats!")
    ["don't", 'stop', '3', 'boats']
    """
    return [word.lower() for word in re.findall(WORD, text)]


def sentences(text: str) -> list[str]:
    r"""Return the sentences of `text`: they end with `.`, `!` or `?` before what can begin one, or with the line.

    >>> sentences('"Is it late?" she asked. It was. "Go home!" He went.')
    ['"Is it late?" she asked.', 'It was.', '"Go home!"', 'He went.']
    >>> sentences("Rain fell. Why? 3.5 inches\nBob: no")
    ['Rain fell.', 'Why?', '3.5 inches', 'Bob: no']
    >>> sentences("#Person1# calls. #Person2# is out.")
    ['#Person1# calls.', '#Person2# is out.']
    """
    ends = r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[\"'(\[]*(?:[^\W_a-z]|#\w))"
    return [part for line in text.splitlines() for part in re.split(ends, line.strip()) if words(part)]


def occurrences(text: str, phrase: str) -> int:
    """Return how often `phrase` stands in `text` as whole words, whatever the case, also in the plural.

    >>> occurrences("Two Lockers, one locker room.", "locker"), occurrences("It costs 500.", "50")
    (2, 0)
    """
    return len(re.findall(rf"(?<!\w){re.escape(phrase.lower())}(?:s|es)?(?!\w)", text.lower()))


def says(text: str, keys: Sequence[str]) -> bool:
    """Return whether all `keys` stand in `text` as whole words, whatever their case, also in the plural.

    >>> says("Two Lockers are free from 21:40.", ["locker", "21:40"]), says("It costs 500.", ["50"])
    (True, False)
    """
    return all(occurrences(text, key) for key in keys)


def copied_counts(text: str, source: str, run: int = 4) -> list[int]:
    """Return for each word of `text` how many words up to it lie in runs of `run` and more copied from `source`.

    A run counts from the word that makes it one.

    >>> copied_counts("Rain fell on the old town, briefly.", "All night rain fell on the hills.")
    [0, 0, 0, 4, 4, 4, 4]
    """
    found, read = words(text), words(source)
    known = {tuple(read[i : i + run]) for i in range(len(read) - run + 1)}
    copied: set[int] = set()
    counts = []
    for end in range(1, len(found) + 1):
        if tuple(found[end - run : end]) in known:
            copied.update(range(end - run, end))
        counts.append(len(copied))
    return counts


def copied_words(text: str, source: str, run: int = 4) -> int:
    """Return how many words of `text` lie in runs of at least `run` words copied from `source`.

    The extractive fragments of Grusky et al. 2018 (Newsroom), long ones only: shared names and terms are no copying.

    >>> copied_words("Rain fell on the old town, briefly.", "All night rain fell on the hills.")
    4
    """
    return max(copied_counts(text, source, run), default=0)


def copied_share(text: str, source: str, run: int = 4) -> float:
    """Return the share of the words of `text` that are copied from `source`, see `copied_words`.

    >>> copied_share("Rain fell on the old town, briefly.", "All night rain fell on the hills.")
    0.5714285714285714
    """
    return copied_words(text, source, run) / max(1, len(words(text)))


def repeated_share(text: str, size: int = 3) -> float:
    """Return the share of the `size`-word sequences of `text` that occurred before in it.

    >>> repeated_share("so it goes so it goes")
    0.25
    """
    found = words(text)
    grams = [tuple(found[i : i + size]) for i in range(len(found) - size + 1)]
    return sum(count - 1 for count in Counter(grams).values()) / len(grams) if grams else 0.0


class _Copied(Scorer):
    """What the words in runs of at least `run` words copied from the source are worth, placed on these words."""

    def __init__(self, run: int = 4) -> None:
        self.run = positive("run", run)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return what all copied words of each text are worth together."""
        return [self._rising(e)[-1] for e in episodes]

    def placed(self, episode: Episode) -> list[tuple[int, float]]:
        """Return the words that made or went on a copied run, each with what it added to the value."""
        ends = [match.end() for match in re.finditer(WORD, episode.text)]
        added = np.diff(self._rising(episode))
        return [(end, float(more)) for end, more in zip(ends, added, strict=True) if more]

    def _rising(self, episode: Episode) -> list[float]:
        """Return the value before the first word and after each."""
        counts = copied_counts(episode.text, episode.source, self.run)
        return [self._worth(count, len(counts)) for count in (0, *counts)]

    def _worth(self, count: int, of: int) -> float:
        raise NotImplementedError


class Copying(_Copied):
    """Square root of the number of words in runs of at least `run` words copied from the source.

    A count, which no further sentence dilutes as it would a share; its root, so that the first copied run costs most,
    which keeps a policy from beginning, while a good summary that shares a phrase or two with its source is not lost.
    """

    def _worth(self, count: int, of: int) -> float:
        return count**0.5


class CopiedShare(_Copied):
    """Share of the words that lie in runs of at least `run` words copied from the source, 0 to 1.

    Beside `Copying`, of whose count a long text that shares names and phrases with its source may have as much as a
    short one that is nothing but copied.
    """

    def _worth(self, count: int, of: int) -> float:
        return count / max(1, of)


class Repetition(Scorer):
    """Share of word trigrams that occurred before in the text, 0 to 1."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the repeated share."""
        return [repeated_share(e.text) for e in episodes]


class Brevity(Scorer):
    """How far the text falls short of `words` words, 0 (long enough) to 1 (empty)."""

    def __init__(self, words: int = 16) -> None:
        self.words = positive("words", words)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the missing share."""
        return [max(0, self.words - len(words(e.text))) / self.words for e in episodes]


class LengthRatio(Scorer):
    """How far the text's number of words is from the source's: |log ratio| beyond `tolerance`, in nats.

    0 within the tolerance; 0.6 allows 1.8 times as many words or as few. An empty text counts as one word.
    """

    def __init__(self, tolerance: float = 0.6) -> None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < np.inf:
            raise LLMGymError(f"tolerance={tolerance!r} must be a finite number of nats, 0 or more")
        self.tolerance = tolerance

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats."""
        counts = np.array([[max(1, len(words(text))) for text in (e.text, e.source)] for e in episodes])
        return np.maximum(0, abs(np.log(counts[:, 0] / counts[:, 1])) - self.tolerance).tolist()


class Complete(Scorer):
    """1 if the agent ended the text itself and with a full sentence, else 0."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [
            float(e.finish_reason == "stop" and bool(re.search(r"[.!?][\"')\]]*$", e.text.strip()))) for e in episodes
        ]


class CutOff(Scorer):
    """1 for a text or turn that the agent did not end itself, so that the cap on tokens cut it off, else 0."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [float(e.finish_reason != "stop") for e in episodes]


class Goals(Scorer):
    """The share of the partner's goals that were met, when the conversation is over; 0 in the turns before."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares.

        Raises:
            LLMGymError: The task has no goals.
        """
        return [_goals_met(e) if e.over else 0.0 for e in episodes]


def _goals_met(episode: Episode) -> float:
    from llm_gym.tasks.dialogue import progress

    goals = episode.example.get("goals")
    if not goals:
        raise LLMGymError(f"example {episode.example.get('id')!r} has no 'goals': the scorer 'goals' is for dialogues")
    return sum(progress(goals, episode.turns).met) / len(goals)


class Elements(Scorer):
    """Share of the row's required `elements` that the text names, 0 to 1; 1 where the row requires none."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [_named(e.text, e.example.get("elements") or ()) for e in episodes]


def _named(text: str, elements: Sequence[str]) -> float:
    return sum(occurrences(text, element) > 0 for element in elements) / len(elements) if elements else 1.0


class Length(Scorer):
    """Number of words, for reports."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the number of words."""
        return [float(len(words(e.text))) for e in episodes]
