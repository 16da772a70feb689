"""The agent that says what a person wrote: the mark to aim at, and a check of feedback and environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.rollout import play
from agents.speaker import Speaker
from llm_gym.episode import Episode
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


class Reciter(ReferenceAgent):
    """Writes texts as a policy would have written them: what does not fit into the cap is cut off, and has no end.

    Args:
        envs: The `TextVectorEnv` that it is going to act in.
        texts: What to write, a text a row; None for the references.
    """

    def __init__(self, envs: Any, texts: Sequence[str] | None = None) -> None:
        super().__init__(envs)
        self.texts = texts

    def turn(self, row: int) -> str | None:
        """Return what to write in `row`."""
        return super().turn(row) if self.texts is None else self.texts[row]

    def _ended(self, ids: list[int]) -> list[int]:
        return [*ids, self.envs.single_action_space.stop_ids[0]][: self.envs.max_new_tokens]


def recite(
    envs: Any,
    examples: Sequence[str],
    texts: Sequence[str] | None = None,
    on_step: Callable[[int], bool] | None = None,
) -> list[Episode] | None:
    """Return episodes, unscored and without log-probabilities, in which given texts are written.

    Args:
        envs: A `TextVectorEnv` with autoreset DISABLED; with texts, of at least as many rows.
        examples: Ids.
        texts: A text for each; None for the references.
        on_step: As for `play`; None is returned where it stops.

    Raises:
        LLMGymError: An example has no reference.
    """
    episodes = play(Reciter(envs, texts), envs, examples, on_step=on_step, scored=False)
    for episode in episodes or []:
        episode.log_probs = None
    return episodes
