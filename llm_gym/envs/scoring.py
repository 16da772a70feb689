"""What a score makes of a turn that has ended: its reward, its tokens' rewards, and its episode's once that is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Score
from llm_gym.tasks import Task

Pieces = Callable[[np.ndarray], list[str]]
"""Returns what each token of some ids adds to the text."""


class Ended(NamedTuple):
    """A turn that has ended: its row and record, all turns of its episode, and the episode's record once it is over."""

    row: int
    turn: Episode
    past: list[Episode]
    whole: Episode | None


def reward(ended: Ended, score: Score, task: Task, pieces: Pieces) -> None:
    """Write a score into the records of a turn and, once all of its turns are scored, of its episode.

    Args:
        ended: The turn.
        score: What the feedback made of it, no abstention.
        task: Whose turn it is.
        pieces: Cuts ids into the texts of their tokens.

    Raises:
        LLMGymError: The score is not finite.
    """
    turn = ended.turn
    if not np.isfinite(score.value):
        raise LLMGymError(
            f"the feedback gave {score.value} for example {turn.example['id']!r} (parts {score.parts}); "
            "a reward must be finite: mend or remove that part"
        )
    value = float(score.value)
    value = min(value, task.worst) if turn.finish_reason == "illegal" else value
    turn.reward = value / task.max_turns
    turn.turn_rewards = [turn.reward]
    turn.parts = {name: part / task.max_turns for name, part in score.parts.items()}
    turn.token_rewards = _token_rewards(turn, [(end, part / task.max_turns) for end, part in score.placed], pieces)
    if turn.over and ended.whole is not turn and all(t.reward is not None for t in ended.past):
        _sum_up(ended.whole, ended.past)


def _token_rewards(turn: Episode, placed: Sequence[tuple[int, float]], pieces: Pieces) -> np.ndarray:
    """Give each placed value to the token of the turn that brought the text so far."""
    rewards = np.zeros(len(turn.response_ids), np.float32)
    if placed:
        start = len(turn.agent_mask) - int(np.argmin(turn.agent_mask[::-1])) if not turn.agent_mask.all() else 0
        texts = pieces(turn.response_ids[start:])
        written = "".join(texts)
        margin = len(written) - len(written.lstrip())  # which the text has lost
        reached = np.cumsum([len(text) for text in texts]) - margin
        for end, value in placed:
            rewards[start + int(np.searchsorted(reached, end))] += value
    return rewards


def _sum_up(whole: Any, turns: list[Any]) -> None:
    """Give an episode the sum of its turns' rewards."""
    whole.turn_rewards = [turn.reward for turn in turns]
    whole.reward = sum(whole.turn_rewards)
    whole.parts = {name: sum(turn.parts[name] for turn in turns) for name in turns[0].parts}
    whole.token_rewards = np.zeros(len(whole.response_ids), np.float32)
    for turn in turns:
        whole.token_rewards[: len(turn.response_ids)] += turn.token_rewards
