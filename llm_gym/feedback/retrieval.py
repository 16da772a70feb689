"""What a search was worth: nDCG of its results, queries beyond the first, words beyond what a query needs. No model."""

from __future__ import annotations

from collections.abc import Sequence

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.rules import words


def queries(episode: Episode) -> list[str]:
    """Return the agent's queries up to the turn, in order; a turn that ends the search is none."""
    from llm_gym.tasks.retrieval import ends_search

    said = [turn["text"] for turn in episode.turns if turn["role"] == "agent"] or [episode.text]
    return [text for text in said if not ends_search(text)]


def is_query(episode: Episode) -> bool:
    """Return whether the turn's text is a query."""
    from llm_gym.tasks.retrieval import ends_search

    return not ends_search(episode.text)


class NDCG(Scorer):
    """What a query adds to the best nDCG@`top` of the queries before it, 0 to 1.

    The turns of an episode therefore sum to the nDCG of its best query: a refinement that does not help earns nothing.
    It reads which documents of the row are `relevant`.
    """

    reads_reference = True

    def __init__(self, top: int = 10) -> None:
        self.top = positive("top", top)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the gains.

        Raises:
            LLMGymError: A row does not say what is relevant.
        """
        return [self._gain(episode) for episode in episodes]

    def _gain(self, episode: Episode) -> float:
        from llm_gym.tasks.retrieval import search

        row = episode.example
        if not row.get("relevant"):
            raise LLMGymError(f"example {row.get('id')!r} has no 'relevant': the scorer 'ndcg' is for retrieval")
        if not is_query(episode):
            return 0.0
        *before, last = [self._value(search(row, query, self.top), row) for query in queries(episode)]
        return max(0.0, last - max(before, default=0.0))

    def _value(self, found: Sequence[tuple[str, ...]], row: dict[str, object]) -> float:
        from llm_gym.search import ndcg

        return ndcg([document[0] for document in found], row["relevant"], self.top)  # type: ignore[arg-type]


class Refinement(Scorer):
    """1 for a query after the first, else 0: what it costs to ask again."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [float(is_query(episode) and len(queries(episode)) > 1) for episode in episodes]


class Excess(Scorer):
    """Words of the turn beyond `words`, as a share of `words`: 0 for a query of that length, 1 for twice it."""

    def __init__(self, words: int = 12) -> None:
        self.words = positive("words", words)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [max(0, len(words(episode.text)) - self.words) / self.words for episode in episodes]
