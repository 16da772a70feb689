"""Answers that can be checked: against the row's acceptable ones, and against the words of the passage."""

from __future__ import annotations

from collections.abc import Sequence

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.metrics import overlap_f1
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.rules import words

ABSTENTION = "not answerable"
"""What an agent says where the passage does not answer the question."""
ARTICLES = frozenset({"a", "an", "the"})


def bare(text: str) -> list[str]:
    """Return the words of an answer in lower case, without punctuation and articles, as SQuAD compares them.

    >>> bare("The harbour, at 6:40!")
    ['harbour', 'at', '6', '40']
    """
    return [word for word in words(text) if word not in ARTICLES]


def abstains(text: str) -> bool:
    """Return whether a text is the abstention and nothing else.

    >>> abstains("Not answerable."), abstains("The price is not answerable.")
    (True, False)
    """
    return bare(text) == bare(ABSTENTION)


def acceptable(episode: Episode) -> list[list[str]]:
    """Return the words of each acceptable answer; none where the question has no answer in the passage.

    Raises:
        LLMGymError: The row does not say which answers it takes.
    """
    answers = episode.example.get("answers")
    if not isinstance(answers, list):
        raise LLMGymError(
            f"example {episode.example.get('id')!r} has no 'answers': this scorer compares with a list of them, "
            "empty where there is none"
        )
    return [bare(answer) for answer in answers]


class Answer(Scorer):
    """F1 of the words against the best of the row's `answers`, 0 to 1 (Rajpurkar et al. 2016, 2018).

    Where the row has none, 1 for abstaining and 0 for any answer; where it has some, 0 for abstaining.
    """

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        return [self._judge(e.text, acceptable(e)) for e in episodes]

    def _judge(self, text: str, answers: list[list[str]]) -> float:
        if not answers or abstains(text):
            return float(not answers and abstains(text))
        return max(self._match(bare(text), answer) for answer in answers)

    def _match(self, said: list[str], wanted: list[str]) -> float:
        return overlap_f1(said, wanted)


class AnswerExact(Answer):
    """1 if the text is one of the row's `answers` and nothing else, or a right abstention, else 0."""

    def _match(self, said: list[str], wanted: list[str]) -> float:
        return float(said == wanted)


class AnswerSupport(Scorer):
    """Share of the content words that stand in the source, 0 to 1: is the answer made of what the passage says?

    An abstention claims nothing and has 1, a text without content words 0. Of use only together with `answer`: the
    whole passage is supported too.
    """

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [self._share(e) for e in episodes]

    def _share(self, episode: Episode) -> float:
        if abstains(episode.text):
            return 1.0
        content = [word for word in words(episode.text) if word not in FUNCTION_WORDS]
        read = set(words(episode.source))
        return sum(word in read for word in content) / len(content) if content else 0.0
