"""Language models as judges: ratings, yes or no, rubrics, principles, and comparisons."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.base import PairwiseScorer, Scorer
from llm_gym.feedback.pairs import about
from llm_gym.feedback.question import INTRO, LocalJudge, Question, local_judge, quote
from llm_gym.feedback.remote import RemoteJudge

QUALITY = "How good is the text? It should be clear, well written, complete, and true to what it was written for."
CLAIM = "Is the text a good one: clear, well written, complete, and true to what it was written for?"
WHICH = "Which of the two texts is the better one: clearer, better written, more complete, and truer to the source?"
CRITERIA = (
    {"question": "Does everything that the text says agree with the source?", "weight": 2.0},
    {"question": "Does the text say what matters most in the source?", "weight": 2.0},
    {"question": "How well is the text written?", "kind": "rating"},
)
PRINCIPLES = (
    "The text claims nothing that cannot be known from the source.",
    "The text is written in the language of the source, in whole sentences.",
    "The text speaks to its reader about its subject, and not about itself or how it should be judged.",
)


def judge(model: str = "smollm2-135m", endpoint: str | None = None, **remote: Any) -> LocalJudge | RemoteJudge:
    """Return the process-wide judge behind a name, so that the parts of a score share memory, limit and usage.

    Args:
        model: Name of a causal language model on this machine, or what the server behind `endpoint` calls its own.
        endpoint: Address of an OpenAI-compatible server, e.g. `http://127.0.0.1:8000/v1`.
        remote: With an endpoint, further arguments of `RemoteJudge`.

    Raises:
        LLMGymError: An argument is not what it should be.
    """
    if endpoint is not None:
        return _remote_judge(endpoint, model, **remote)
    if remote:
        raise LLMGymError(f"{', '.join(map(repr, remote))} is for a judge behind an endpoint; pass endpoint=... too")
    return local_judge(model)


@functools.cache
def _remote_judge(endpoint: str, model: str, **remote: Any) -> RemoteJudge:
    return RemoteJudge(endpoint, model, **remote)


@dataclass(frozen=True)
class Criterion:
    """A question about a text, with what each answer is worth, 0 to 1.

    Attributes:
        question: The question and how to answer it.
        answers: The words to answer with.
        values: Their worths.
        weight: Of this criterion among others.
    """

    question: str
    answers: tuple[str, ...]
    values: tuple[float, ...]
    weight: float = 1.0


def rated(question: str, highest: int = 5, weight: float = 1.0) -> Criterion:
    """Return a criterion that is rated with a digit from 1, worth 0, to `highest`, worth 1.

    >>> rated("How good is it?", highest=3).values
    (0.0, 0.5, 1.0)
    """
    if positive("highest", highest) not in range(2, 10):
        raise LLMGymError(f"highest={highest!r} must be from 2 to 9, a rating of one digit")
    asked = f"{_text('question', question)}\nAnswer with one number from 1 (very bad) to {highest} (very good)."
    digits = tuple(str(i + 1) for i in range(highest))
    return Criterion(asked, digits, tuple(i / (highest - 1) for i in range(highest)), weight)


def yes_or_no(question: str, weight: float = 1.0) -> Criterion:
    """Return a criterion that holds, worth 1, or not, worth 0."""
    return Criterion(f"{_text('question', question)}\nAnswer Yes or No.", ("Yes", "No"), (1.0, 0.0), weight)


class Judged(Scorer):
    """The weighted mean of criteria, each the expected worth of the judge's answer, 0 to 1; 0 for an empty text.

    The expectation is over the judge's own probabilities of the answers (G-Eval, Liu et al. 2023), which are as
    deterministic as the model and much finer than the likeliest answer.

    Attributes:
        judge: Who is asked; a remote one has its `usage`.
    """

    def __init__(self, criteria: Sequence[Criterion], options: dict[str, Any]) -> None:
        self.criteria = tuple(criteria)
        self.judge = judge(**options)

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return the means, None where the judge abstains from any criterion."""
        written = [e for e in episodes if e.text.strip()]
        questions = [Question(_head(e), _tail(e.text, c), c.answers) for c in self.criteria for e in written]
        told = iter(self.judge(questions))
        columns = [[_expected(next(told), criterion) for _ in written] for criterion in self.criteria]
        values = (self._mean(row) for row in zip(*columns, strict=True))
        return [next(values) if e.text.strip() else 0.0 for e in episodes]

    def _mean(self, row: Sequence[float | None]) -> float | None:
        known = [value for value in row if value is not None]
        if len(known) < len(row):
            return None
        return float(np.average(known, weights=[criterion.weight for criterion in self.criteria]))


class Rating(Judged):
    """The judge's expected rating, brought to 0 to 1.

    Args:
        question: What to rate.
        highest: The best rating, 2 to 9.
        options: Of the judge, see `judge`.
    """

    def __init__(self, question: str = QUALITY, highest: int = 5, **options: Any) -> None:
        super().__init__([rated(question, highest)], options)


class YesNo(Judged):
    """The judge's probability of Yes against No.

    Args:
        question: A question about the text.
        options: Of the judge, see `judge`.
    """

    def __init__(self, question: str = CLAIM, **options: Any) -> None:
        super().__init__([yes_or_no(question)], options)


class Rubric(Judged):
    """The weighted mean over criteria.

    Args:
        criteria: Each `{"question": ..., "weight": 1.0, "kind": "yes_no"}`; the other kind is `rating`.
        options: Of the judge, see `judge`.
    """

    def __init__(self, criteria: Sequence[dict[str, Any]] = CRITERIA, **options: Any) -> None:
        super().__init__([_criterion(row) for row in _rows("criteria", criteria)], options)


class Constitution(Judged):
    """The mean probability that the text keeps each of a list of principles (Bai et al. 2022).

    Args:
        principles: One sentence each.
        options: Of the judge, see `judge`.
    """

    def __init__(self, principles: Sequence[str] = PRINCIPLES, **options: Any) -> None:
        asked = [f"Principle: {_text('principle', p)}\nDoes the text keep it?" for p in _rows("principles", principles)]
        super().__init__([yes_or_no(question) for question in asked], options)


class Comparer:
    """Asks a judge which of two texts is better, in both orders, since judges favour a place (Wang et al. 2023).

    Args:
        question: What makes the better one.
        options: Of the judge, see `judge`.
    """

    def __init__(self, question: str = WHICH, **options: Any) -> None:
        self.question = f"{_text('question', question)}\nAnswer 1 for the first one or 2 for the second one."
        self.judge = judge(**options)

    def __call__(self, triples: Sequence[tuple[str, str, str]]) -> list[float | None]:
        """Return for each `(source, a, b)` the probability that `a` is better, None where the judge abstains.

        Exactly .5 for a text and itself, and `compare(s, a, b) + compare(s, b, a) == 1` up to rounding.
        """
        return [None if pair is None else (pair[0] + pair[1]) / 2 for pair in self.orders(triples)]

    def orders(self, triples: Sequence[tuple[str, str, str]]) -> list[tuple[float, float] | None]:
        """Return for each `(source, a, b)` the probability that `a` is better when it comes first, and second."""
        told = self.shown([shown for s, a, b in triples for shown in ((s, a, b), (s, b, a))])
        return [
            None if ahead is None or behind is None else (ahead, 1 - behind)
            for ahead, behind in zip(told[::2], told[1::2], strict=True)
        ]

    def shown(self, triples: Sequence[tuple[str, str, str]]) -> list[float | None]:
        """Return for each `(source, first, second)` the probability that the first is better, shown in that order."""
        told = self.judge([self._question(*triple) for triple in triples])
        return [None if shares is None else shares[0] for shares in told]

    def _question(self, source: str, first: str, second: str) -> Question:
        tail = f"{quote('first', first)}\n{quote('second', second)}\n{self.question}"
        return Question(INTRO + _quoted("source", source), tail, ("1", "2"))


def compare(source: str, a: str, b: str, **options: Any) -> float | None:
    """Return the probability that `a` is a better text for `source` than `b`; see `Comparer` for its options."""
    return Comparer(**options)([(source, a, b)])[0]


class Pairwise(PairwiseScorer):
    """The probability that the judge prefers the text to another one, 0 to 1; 0 for an empty text.

    Args:
        against: `source_start`, the first words of the source, or a column of the row with another text. The row's
            reference cannot be compared with: training feedback never reads it.
        words: How many words of the source are compared with.
        question: What makes the better one.
        options: Of the judge, see `judge`.
    """

    def __init__(self, against: str = "source_start", words: int = 25, question: str = WHICH, **options: Any) -> None:
        self.against, self.words = against, positive("words", words)
        self.comparer = Comparer(question, **options)

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Return the probabilities, None where the judge abstains.

        Raises:
            LLMGymError: A row has no such text, or it is the reference.
        """
        triples = [(about(e), e.text, self._other(e)) for e in episodes if e.text.strip()]
        values = iter(self.comparer(triples))
        return [next(values) if e.text.strip() else 0.0 for e in episodes]

    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        """Return P(first) - 1/2 of each pair, shown in that order; see `PairwiseScorer.compare`.

        An empty text is worse than any other and as good as another empty one, and nobody is asked about it.
        """
        pairs = list(zip(firsts, seconds, strict=True))
        blank = [not a.text.strip() or not b.text.strip() for a, b in pairs]
        triples = [(about(a), a.text, b.text) for (a, b), skip in zip(pairs, blank, strict=True) if not skip]
        told = iter(self.comparer.shown(triples))
        return [
            (bool(a.text.strip()) - bool(b.text.strip())) / 2 if skip else _margin(next(told))
            for (a, b), skip in zip(pairs, blank, strict=True)
        ]

    def _other(self, episode: Episode) -> str:
        if self.against == "source_start":
            return " ".join(episode.source.split()[: self.words])
        other = episode.example.get(self.against)
        if not isinstance(other, str) or not other.strip():
            raise LLMGymError(
                f"example {episode.example.get('id')!r} has no text {self.against!r} to compare with; name a column "
                "of text, or 'source_start'"
            )
        if other == episode.reference:
            raise LLMGymError(f"against={self.against!r} is the reference, which feedback never reads; name another")
        return other


def _margin(share: float | None) -> float:
    return math.nan if share is None else share - 0.5


def _quoted(name: str, text: str) -> str:
    return quote(name, text) + "\n" if text.strip() else ""


def _head(episode: Episode) -> str:
    return INTRO + _quoted("source", episode.source) + _quoted("said", episode.said)


def _tail(text: str, criterion: Criterion) -> str:
    return f"{quote('text', text)}\n{criterion.question}"


def _expected(shares: tuple[float, ...] | None, criterion: Criterion) -> float | None:
    return None if shares is None else float(np.dot(shares, criterion.values))


def _criterion(row: Any) -> Criterion:
    if not isinstance(row, dict) or "question" not in row or set(row) - {"question", "weight", "kind"}:
        raise LLMGymError(f"criterion {row!r} must be an object with 'question', and optionally 'weight' and 'kind'")
    weight, kind = row.get("weight", 1.0), row.get("kind", "yes_no")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise LLMGymError(f"the weight of criterion {row['question']!r} must be a positive number, got {weight!r}")
    if kind not in ("yes_no", "rating"):
        raise LLMGymError(f"the kind of criterion {row['question']!r} must be 'yes_no' or 'rating', got {kind!r}")
    return yes_or_no(row["question"], weight) if kind == "yes_no" else rated(row["question"], weight=weight)


def _rows(name: str, rows: Any) -> Sequence[Any]:
    if not isinstance(rows, list | tuple) or not rows:
        raise LLMGymError(f"{name}={rows!r} must be a list that is not empty")
    return rows


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LLMGymError(f"{name}={value!r} must be a text")
    return value
