"""The action space: a vocabulary."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from llm_gym.choices import Constraint


class Vocabulary(spaces.Discrete):
    """`Discrete(V)` that remembers which tokenizer its numbers belong to.

    It is how a policy, which is given spaces and no environment, can tell that it speaks the same tokens.

    Attributes:
        tokenizer: Name of the tokenizer.
        fingerprint: Hash of the tokenizer's contents.
        stop_ids: Token ids that end a turn.
        constraint: What tokens may follow others, where the task constrains them, else None.
    """

    def __init__(
        self,
        size: int,
        tokenizer: str,
        fingerprint: str,
        stop_ids: tuple[int, ...],
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__(size)
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.stop_ids = stop_ids
        self.constraint = constraint

    def __eq__(self, other: Any) -> bool:
        """Return whether both spaces number the same tokens; a plain `Discrete(V)` of the same size also fits."""
        return super().__eq__(other) and getattr(other, "fingerprint", self.fingerprint) == self.fingerprint

    __hash__ = None  # type: ignore[assignment]  # like Discrete, which defines __eq__ alone
