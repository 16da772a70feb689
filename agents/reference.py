"""The agent that says what a person wrote: the mark to aim at, and a check of feedback and environments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.speaker import Speaker
from llm_gym.errors import LLMGymError


class ReferenceAgent(Speaker):
    """Says the reference of each row, in a conversation its author's answer to what was asked last.

    It looks up in the environment which example a row is about.
    """

    def turn(self, row: int) -> str | None:
        """Return what to say now in `row`, or None where the data has nothing."""
        return self.envs.reference_turn(row)

    def say(self, rows: np.ndarray) -> Sequence[str]:
        """Return the references.

        Raises:
            LLMGymError: An example has none.
        """
        texts = [self.turn(row) for row in rows.tolist()]
        known = [text for text in texts if text is not None]
        if len(known) < len(texts):
            raise LLMGymError("the data has no references for this agent to say; give a file that has them")
        return known
