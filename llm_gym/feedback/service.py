"""How a customer's case was handled: resolved, looked into, within the policy, politely, in few turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.likelihood import FLOOR, Likelihood
from llm_gym.feedback.rules import copied_words, occurrences, words
from llm_gym.feedback.zero_shot import ByLikelihood
from llm_gym.search import shared_index

if TYPE_CHECKING:
    from llm_gym.tasks.customer_service import Turn

DENIALS = frozenset("not no never cannot nothing nor neither without unable unfortunately".split())
"""Words that make a clause no promise, besides those that end with n't, and "instead of"."""
IDIOMS = r"\b(?:do not worry|don't worry|no problem|no worries|not at all|not only)\b"
"""Words that deny nothing, though one of them is in `DENIALS`."""


def case(episode: Episode) -> tuple[dict[str, Any], list[Turn]]:
    """Return the row, and the agent's turns up to the one that is judged.

    Raises:
        LLMGymError: The row is no customer's case.
    """
    from llm_gym.tasks.customer_service import agent_turns

    row = episode.example
    if "decision" not in row or "told" not in row:
        raise LLMGymError(f"example {row.get('id')!r} has no 'decision' and 'told': this scorer is for cases")
    return row, agent_turns(episode.turns or [{"role": "agent", "text": episode.text}])


def heard(episode: Episode) -> str | None:
    """Return what the customer heard of the turn, or None where the handbook was asked."""
    from llm_gym.tasks.customer_service import taken_apart

    turn = taken_apart(episode.text)
    return turn.said if turn.query is None else None


def promises(text: str, phrase: str) -> bool:
    """Return whether a clause of `text` has `phrase` and denies nothing besides; `;`, `:` and "but" end a clause.

    >>> promises("Don't worry, you get a voucher.", "voucher"), promises("A voucher isn't possible.", "voucher")
    (True, False)
    """
    plain = re.sub(IDIOMS, "", text.lower().replace("’", "'"))
    clauses = [clause for line in plain.splitlines() for clause in re.split(r"[.!?;:]+(?:\s|$)|\bbut\b", line)]
    return any(occurrences(clause, phrase) and not _denies(clause.replace(phrase.lower(), "")) for clause in clauses)


def _denies(clause: str) -> bool:
    return "instead of" in clause or any(word in DENIALS or word.endswith("n't") for word in words(clause))


class Resolution(Scorer):
    """How well the turn closes the case, 0 to 1.

    Half for the right decision, half for the share of the row's key words (`told`) that the customer has heard; 0 for
    a turn that closes nothing, or with another decision.
    """

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        from llm_gym.tasks.customer_service import resolved

        return [resolved(*case(e)) for e in episodes]


class Inquiry(Scorer):
    """What the turn adds to the share of what the case depends on that the agent knows: the passage, each fact.

    The turns of an episode sum to at most 1; to look up or ask for the same again adds nothing.
    """

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the gains."""
        return [self._gain(*case(e)) for e in episodes]

    def _gain(self, row: dict[str, Any], turns: list[Turn]) -> float:
        from llm_gym.tasks.customer_service import learned

        return learned(row, turns) - learned(row, turns[:-1])


class Breaches(Scorer):
    """How often the turn breaks the policy: by a wrong decision, and by each promise that is `forbidden` in this case.

    To escalate what need not be is no breach. A phrase counts once a turn, and only in a clause that denies nothing.
    """

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the numbers."""
        return [self._count(*case(e)) for e in episodes]

    def _count(self, row: dict[str, Any], turns: list[Turn]) -> float:
        last = turns[-1]
        wrong = last.decision not in (None, "escalate", row["decision"])
        return float(wrong + sum(promises(last.said, phrase) for phrase in row.get("forbidden") or ()))


class Recital(Scorer):
    """Square root of the number of words that the customer hears in runs of at least `run` from the row's handbook.

    A passage may be quoted; read out, it tells the customer of cases that are not his.
    """

    def __init__(self, run: int = 8) -> None:
        self.run = positive("run", run)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the roots."""
        return [self._root(*case(e)) for e in episodes]

    def _root(self, row: dict[str, Any], turns: list[Turn]) -> float:
        documents = shared_index(row["handbook"]).documents
        return copied_words(turns[-1].said, "\n".join(document.text for document in documents), self.run) ** 0.5


class ExtraTurns(Scorer):
    """1 for a turn more than the case needs (to look up, to ask if there is something to ask, to close it), else 0."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return 0 or 1."""
        return [self._extra(*case(e)) for e in episodes]

    def _extra(self, row: dict[str, Any], turns: list[Turn]) -> float:
        return float(len(turns) > 2 + bool(row.get("asked")))


class Rudeness(ByLikelihood):
    """How much likelier a language model finds what the customer hears to be rude than friendly, 0 to 1.

    The probability of rude less that of friendly, where that is above 0. 0 where the handbook is asked, 1 for a turn
    that says nothing.
    """

    column, default_labels = "tone", ("friendly", "rude")
    prompt = "{text}\n\nThe tone of this text is"

    def __init__(self, model: str = "smollm2-135m") -> None:
        super().__init__(model)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the differences."""
        said = [heard(e) for e in episodes]
        friendly = iter(super().__call__([replace(e, text=t) for e, t in zip(episodes, said, strict=True) if t]))
        return [max(0.0, 1 - 2 * next(friendly)) if text else float(text is not None) for text in said]

    def _wanted(self, episode: Episode) -> str:
        return self.labels[0]


class Speech(Likelihood):
    """How far the likelihood of what the customer hears falls short of `ceiling`, in nats per token; at most 0.

    0 where the handbook is asked; a turn that says nothing gets the whole way down to −8.
    """

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return nats per token, 0 or below."""
        said = [heard(e) for e in episodes]
        values = iter(super().__call__([replace(e, text=t) for e, t in zip(episodes, said, strict=True) if t]))
        return [self._shortfall(text, values) for text in said]

    def _shortfall(self, text: str | None, values: Any) -> float:
        if text is None:
            return 0.0
        return (next(values) if text else FLOOR) - self.ceiling
