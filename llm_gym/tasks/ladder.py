"""A ladder of toy tasks: whether an algorithm learns at all, in seconds, with a small random model.

`gym.make("llm_gym.tasks.ladder:CopySymbol-v0", tokenizer="tiny-1k", template="plain")`. They are no environments of the
suite: nobody needs an agent for them. Their answers are fixed, so the reward is a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym

from llm_gym.episode import Episode
from llm_gym.feedback.base import Scorer
from llm_gym.registration import register
from llm_gym.tasks.base import Task

ALPHABET_SHARE = 0.2  # credit for using the right characters at all, without which a random model finds nothing


class InPlace(Scorer):
    """Share of the answer's characters that stand in their places, and a little for using such characters at all.

    White space does not count. 1 for the answer and nothing else, 0 for a text without any of the characters.

    Args:
        alphabet: The characters of all answers.
    """

    reads_reference = True

    def __init__(self, alphabet: str) -> None:
        self.alphabet = set(alphabet)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [self._score("".join(e.text.split()), e.example["answer"]) for e in episodes]

    def _score(self, text: str, answer: str) -> float:
        if not text:
            return 0.0
        placed = sum(a == b for a, b in zip(text, answer, strict=False)) / max(len(text), len(answer))
        usable = sum(c in self.alphabet for c in text) / len(text)
        return (1 - ALPHABET_SHARE) * placed + ALPHABET_SHARE * usable


class RightLength(Scorer):
    """How near the number of characters, white space left out, comes to the row's `answer`; 1 where it is that."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the nearness."""
        sizes = [len("".join(e.text.split())) for e in episodes]
        wanted = [int(e.example["answer"]) for e in episodes]
        return [1 - abs(n - w) / max(n, w) for n, w in zip(sizes, wanted, strict=True)]


class Rung(Task):
    """A toy task: something given, one right answer."""

    required = ("given", "answer")
    source_column = "given"
    reference_column = "answer"
    instruction = "Answer."
    judge: ClassVar[dict[str, Any]] = {"exact": 1.0}
    verifiable = True
    max_prompt_tokens = 24

    def plain(self, instruction: str, source: str, example: dict[str, Any]) -> str:
        """Return what is given and nothing more, so that a small model has it before its eyes."""
        return source


class CopySymbol(Rung):
    """Write the symbol that is given."""

    name = corpus = "ladder_copy"
    feedback: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:InPlace": {"weight": 1.0, "alphabet": "taso"}}
    max_new_tokens = 1


class Alternate(Rung):
    """Write the two symbols that are given in turns, three times."""

    name = corpus = "ladder_alternate"
    feedback: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:InPlace": {"weight": 1.0, "alphabet": "taso"}}
    max_new_tokens = 6


class CountUpwards(Rung):
    """Write the three digits after the one that is given."""

    name = corpus = "ladder_count"
    feedback: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:InPlace": {"weight": 1.0, "alphabet": "0123456789"}}
    max_new_tokens = 3


class ReverseWord(Rung):
    """Write the word that is given backwards."""

    name = corpus = "ladder_reverse"
    feedback: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:InPlace": {"weight": 1.0, "alphabet": "taosne"}}
    max_new_tokens = 3


class MatchLength(Rung):
    """Write as many characters as are asked for, and stop."""

    name = corpus = "ladder_length"
    feedback: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:RightLength": {"weight": 1.0}}
    judge: ClassVar[dict[str, Any]] = {"llm_gym.tasks.ladder:RightLength": {"weight": 1.0}}
    max_new_tokens = 6


LADDER = {f"{rung.__name__}-v0": rung for rung in (CopySymbol, Alternate, CountUpwards, ReverseWord, MatchLength)}
"""The rungs by their ids, from the lowest."""

for _name, _rung in LADDER.items():
    if _name not in gym.registry:
        register(_name, f"{__name__}:{_rung.__name__}")
