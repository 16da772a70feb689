"""Scorers of SentimentMonitoring-v0: they read the answer by its strict format and compare it with the annotation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.metrics import overlap_f1
from llm_gym.feedback.rules import copied_share, words
from llm_gym.feedback.similarity import embedder
from llm_gym.tasks.sentiment import LABELS, Answer, parse


def annotated(episode: Episode, column: str) -> str:
    """Return what the row's annotation says.

    Raises:
        LLMGymError: The row has no such column.
    """
    value = episode.example.get(column)
    if not isinstance(value, str):
        raise LLMGymError(
            f"example {episode.example.get('id')!r} has no {column!r} to compare with; "
            "give the data that column or leave out the scorers that read it"
        )
    return value


class AnswerScorer(Scorer):
    """What these scorers share: an answer that is not in the format gets `unreadable`.

    Attributes:
        column: The annotation that every row must have.
        unreadable: The value of what is not in the format.
    """

    reads_reference = True
    column: ClassVar[str] = "label"
    unreadable: float = 0.0

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return one value an episode.

        Raises:
            LLMGymError: A row lacks the annotation that the scorer compares with.
        """
        wanted = [annotated(episode, self.column) for episode in episodes]
        answers = [parse(episode.text) for episode in episodes]
        return [
            self.unreadable if answer is None else self.judge(answer, right, episode)
            for answer, right, episode in zip(answers, wanted, episodes, strict=True)
        ]

    @abstractmethod
    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return the value of an answer in the format; `wanted` is the annotation."""


class AnswerFormat(Scorer):
    """1 if the answer is exactly in the format, else 0."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [float(parse(episode.text) is not None) for episode in episodes]


class SentimentLabel(AnswerScorer):
    """1 if the label is the annotated one, else 0."""

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return 0 or 1."""
        return float(answer.label == wanted)


class AlarmCost(AnswerScorer):
    """What a wrong alarm costs: nothing if it is right, `missed` or `false`; an unreadable answer costs the dearest.

    Args:
        missed: Of no alarm where there should be one.
        false: Of an alarm where there should be none.
    """

    column = "alarm"

    def __init__(self, missed: float = 4.0, false: float = 1.0) -> None:
        for name, cost in (("missed", missed), ("false", false)):
            if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < math.inf:
                raise LLMGymError(f"{name}={cost!r} must be a finite cost, 0 or more")
        self.costs = {"yes": missed, "no": false}
        self.unreadable = float(max(missed, false))

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return the cost."""
        return 0.0 if answer.alarm == wanted else float(self.costs[wanted])


class ReasonSupported(AnswerScorer):
    """Share of the reason's words that stand in the news, two or more running; of a single word, whether it does."""

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return the share."""
        return copied_share(answer.reason, episode.source, run=min(2, max(1, len(words(answer.reason)))))


class ReasonOverlap(AnswerScorer):
    """F1 of the reason's words and the annotated reason's, 0 to 1 (as for answers in SQuAD, Rajpurkar et al. 2016)."""

    column = "reason"

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return the F1."""
        return overlap_f1(words(answer.reason), words(wanted))


class SentimentOrder(AnswerScorer):
    """1 if the label is right, 1/2 if it is next to the annotated one, 0 if it is the opposite: a second judge."""

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return 0, 0.5 or 1."""
        return 1 - abs(LABELS.index(answer.label) - LABELS.index(wanted)) / 2


class AlarmRight(AnswerScorer):
    """1 if the alarm is right, whatever an error costs: a second judge, which always raising it does not please."""

    column = "alarm"

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return 0 or 1."""
        return float(answer.alarm == wanted)


class ReasonSimilarity(AnswerScorer):
    """Cosine between the embeddings of the reason and of the annotated one: a second judge.

    Args:
        model: Name of an embedding model.
    """

    column = "reason"

    def __init__(self, model: str = "minilm-l6") -> None:
        self.embedder = embedder(model)

    def judge(self, answer: Answer, wanted: str, episode: Episode) -> float:
        """Return the cosine."""
        said, right = self.embedder([answer.reason, wanted])
        return float(said @ right)
