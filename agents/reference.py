"""The agent that says what a person wrote: the mark to aim at, and a check of feedback and environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.rollout import play
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError


class ReferenceAgent:
    """Writes the reference of each row, in a conversation its author's answer to what was asked last.

    Args:
        envs: The `TextVectorEnv` that it is going to act in; it looks up there which example a row is about.
    """

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        self._plans: dict[int, list[int]] = {}

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the next tokens of each row's text, and log-probabilities 0; see `LLMPolicy.write`.

        Raises:
            LLMGymError: An example has no reference.
        """
        tokens = np.full((len(rows), most), -1)
        for place, row in enumerate(rows.tolist()):
            if obs["tokens_left"][row, 0] == self.envs.max_new_tokens:  # a turn begins
                self._plans[row] = self._plan(row)
            part, self._plans[row] = self._plans[row][:most], self._plans[row][most:]
            tokens[place, : len(part)] = part
        return tokens, np.zeros(tokens.shape, np.float32)

    def turn(self, row: int) -> str | None:
        """Return what to say now in `row`, or None where the data has nothing."""
        return self.envs.reference_turn(row)

    def _plan(self, row: int) -> list[int]:
        text = self.turn(row)
        if text is None:
            raise LLMGymError("the data has no references for this agent to say; give a file that has them")
        return self._ended(self.envs.encode(row, text))

    def _ended(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with the token that ends it, within the cap of a turn."""
        return [*ids[: self.envs.max_new_tokens - 1], self.envs.single_action_space.stop_ids[0]]


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
