"""Extracted triples against those of the row: strict and partial F1, and whether the lines can be read. No model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.tasks.knowledge_graph import Triple, canonical, parse


def counts(episode: Episode) -> tuple[list[Triple | None], list[Triple]]:
    """Return what the text says, a line each, None where a line is no triple or repeats one, and what is true.

    Raises:
        LLMGymError: The row has no triples.
    """
    rows = episode.example.get("triples")
    if not rows:
        raise LLMGymError(
            f"example {episode.example.get('id')!r} has no 'triples' to compare with; give it that column"
        )
    seen: set[Triple] = set()
    said: list[Triple | None] = []
    for triple in parse(episode.text):
        said.append(None if triple in seen else triple)
        seen.update(() if triple is None else (triple,))
    return said, list(dict.fromkeys(canonical(*row) for row in rows))


def strict_credit(said: Sequence[Triple | None], true: Sequence[Triple]) -> float:
    """Return the number of lines that are a true triple, all three parts."""
    return float(len(set(said) & set(true)))


def partial_credit(said: Sequence[Triple | None], true: Sequence[Triple]) -> float:
    """Return the number of true triples said, and one half for each other line that shares two parts with another.

    A true triple is used up by the line that it is matched with, whole matches first.
    """
    credit = strict_credit(said, true)
    left = [triple for triple in true if triple not in set(said)]
    for line in said:
        near = next((t for t in left if line is not None and line not in true and _shared(line, t) == 2), None)
        if near is not None:
            left.remove(near)
            credit += 0.5
    return credit


def _shared(one: Triple, other: Triple) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def f1(credit: float, said: int, true: int) -> float:
    """Return the harmonic mean of `credit / said` and `credit / true`; 0 where nothing was said.

    >>> f1(1.0, 2, 2), f1(0.0, 0, 3)
    (0.5, 0.0)
    """
    return 2 * credit / (said + true)


class TripleF1(Scorer):
    """F1 of the triples, 0 to 1: a line counts if subject, relation and object are those of a triple of the row.

    Names are compared without case, punctuation and a leading article; relations by their canonical name. Lines that
    are no triple, or repeat one, count against precision. It reads the row's `triples`.
    """

    reads_reference = True
    credit: Callable[[Sequence[Triple | None], Sequence[Triple]], float] = staticmethod(strict_credit)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the F1.

        Raises:
            LLMGymError: A row has no triples.
        """
        pairs = [counts(episode) for episode in episodes]
        return [f1(self.credit(said, true), len(said), len(true)) for said, true in pairs]


class TriplePairs(TripleF1):
    """`TripleF1` with half the credit for a line that has two of a triple's three parts right."""

    credit = staticmethod(partial_credit)


class TripleFormat(Scorer):
    """Share of the lines that are `subject | relation | object`, 0 to 1; 0 for an empty text."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        parsed = [parse(episode.text) for episode in episodes]
        return [sum(line is not None for line in lines) / max(1, len(lines)) for lines in parsed]
