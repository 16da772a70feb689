"""The usual metrics against a reference. Second judges: training feedback never uses them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import ClassVar

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.reference import references
from llm_gym.feedback.vocabulary import grams

PUNCTUATION = str.maketrans("", "", string.punctuation)


def overlap_f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Return the F1 of the items that two sequences share, as often as both have them.

    >>> overlap_f1(["a", "b", "b"], ["b", "c"])
    0.4
    """
    return _f1((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    >>> longest_common("a b c d".split(), "b x d".split())
    2
    """
    best = [0] * (len(other) + 1)
    for item in one:
        last = 0
        for place, candidate in enumerate(other, 1):
            last, best[place] = best[place], last + 1 if item == candidate else max(best[place], best[place - 1])
    return best[-1]


class Rouge(Scorer):
    """ROUGE F1 of the text against the reference, 0 to 1 (Lin 2004), without stemming, over lower-case words.

    Args:
        variant: `1` and `2` for runs of one and two words, `L` for the longest common subsequence.
    """

    reads_reference = True

    def __init__(self, variant: str | int = "1") -> None:
        self.variant = str(variant)
        if self.variant not in ("1", "2", "L"):
            raise LLMGymError(f"variant={variant!r} must be '1', '2' or 'L'")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        return [
            self._score(_alphanumeric(e.text), _alphanumeric(reference))
            for e, reference in zip(episodes, references(episodes), strict=True)
        ]

    def _score(self, found: list[str], wanted: list[str]) -> float:
        if self.variant == "L":
            return _f1(longest_common(found, wanted), len(found), len(wanted))
        size = int(self.variant)
        return overlap_f1(grams(found, size), grams(wanted, size))


def _alphanumeric(text: str) -> list[str]:
    """Return words as ROUGE takes them: runs of letters and digits, so that "don't" is two."""
    return re.findall(r"[^\W_]+", text.lower())


class Bleu(Scorer):
    """Sentence BLEU of the text against the reference, 0 to 1 (Papineni et al. 2002, by sacrebleu, effective order)."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        from sacrebleu.metrics import BLEU

        metric = BLEU(effective_order=True)
        pairs = zip(episodes, references(episodes), strict=True)
        return [metric.sentence_score(e.text, [reference]).score / 100 for e, reference in pairs]


class Ter(Scorer):
    """1 - TER, the edits per word that make the text the reference; at least 0 (Snover et al. 2006, by sacrebleu)."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        from sacrebleu.metrics import TER

        metric = TER()
        pairs = zip(episodes, references(episodes), strict=True)
        return [max(0.0, 1 - metric.sentence_score(e.text, [reference]).score / 100) for e, reference in pairs]


def normalised(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces.

    >>> normalised("The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


class _Answer(Scorer):
    """What exact match and F1 share: the best over the row's `answers`, or else the reference."""

    reads_reference = True
    column: ClassVar[str] = "answers"

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the best match with an answer, 0 to 1."""
        return [max(self.match(normalised(e.text), normalised(a)) for a in self._answers(e)) for e in episodes]

    def _answers(self, episode: Episode) -> Sequence[str]:
        answers = episode.example.get(self.column)
        if answers is None:
            return references([episode])
        if not isinstance(answers, list | tuple) or not answers or not all(isinstance(a, str) for a in answers):
            raise LLMGymError(
                f"example {episode.example.get('id')!r}: 'answers' must be a list of strings, not {answers!r}"
            )
        return answers

    def match(self, said: str, answer: str) -> float:
        """Return how well a normalised text matches a normalised answer."""
        raise NotImplementedError


class Exact(_Answer):
    """1 if the text is an answer, in SQuAD's normalisation (Rajpurkar et al. 2016), else 0."""

    def match(self, said: str, answer: str) -> float:
        """Return 0 or 1."""
        return float(said == answer)


class F1(_Answer):
    """F1 of the words that text and answer share, in SQuAD's normalisation; the best over the answers."""

    def match(self, said: str, answer: str) -> float:
        """Return the F1; where either has no word, whether both have none."""
        return overlap_f1(said.split(), answer.split()) if said and answer else float(said == answer)
