"""Playing given examples in a vector environment, the loop that training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from llm_gym.episode import Episode

STRIDE = 16  # tokens that a policy writes between two looks at which rows are free


class Agent(Protocol):
    """Whoever writes texts in a vector environment."""

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write up to `most` tokens into each of `rows`; see `LLMPolicy.write`."""


def play(
    policy: Agent,
    envs: Any,
    examples: Sequence[str],
    deterministic: bool = False,
    on_step: Callable[[int], bool] | None = None,
    abstaining: bool = False,
    scored: bool = True,
) -> list[Episode] | None:
    """Let the policy write one episode for each example.

    Args:
        policy: Who writes.
        envs: A `TextVectorEnv` with autoreset DISABLED and any number of rows.
        examples: Ids; where there are more than rows, a row that has ended takes the next one.
        deterministic: Take the likeliest token each time.
        on_step: Called after each step with the number of tokens written in it; False stops.
        abstaining: Whether the feedback may abstain: such episodes have None for a reward.
        scored: Whether the feedback is asked at all; without, all episodes have None for a reward.

    Returns:
        The finished episodes in order, with the log-probabilities of what was written; None if `on_step` stopped.
    """
    if not examples:
        return []
    seats = np.full(envs.num_envs, -1)  # which of the examples a row is about
    seats[: len(examples)] = np.arange(min(len(examples), len(seats)))
    envs.reset(options={"example": [examples[max(0, seat)] for seat in seats]})
    ahead = iter(range(len(seats), len(examples)))
    episodes: list[Any] = [None] * len(examples)
    log_probs: list[list[np.ndarray]] = [[] for _ in examples]
    running, waiting = seats >= 0, np.zeros(len(seats), bool)
    while running.any():
        rows = np.flatnonzero(running)
        tokens, chosen = policy.write(envs.observation(), rows, STRIDE, deterministic)
        for seat, written, values in zip(seats[rows], tokens, chosen, strict=True):
            log_probs[seat].append(values[written >= 0])
        for ended in _replay(envs, rows, tokens, chosen, on_step):
            if ended is None:
                return None
            running[ended], waiting[ended] = False, True
        if envs.task.max_turns > 1 and running.any():
            continue  # partners answer everyone at once
        envs.end_turns(np.flatnonzero(waiting))
        over = np.flatnonzero(waiting & envs.done)
        for row in over:
            episodes[seats[row]] = envs.episodes[row]
            seats[row] = next(ahead, -1)
        _seat(envs, over[seats[over] >= 0], seats, examples)
        running |= waiting & (seats >= 0)
        waiting[:] = False
    if scored:
        envs.score(abstaining)  # all at once: a source is read once for all texts about it
    for episode, values in zip(episodes, log_probs, strict=True):
        episode.log_probs = np.zeros(len(episode.agent_mask), np.float32)
        episode.log_probs[episode.agent_mask] = np.concatenate(values)[: episode.agent_mask.sum()]
    return episodes


def _replay(
    envs: Any, rows: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray, on_step: Callable[[int], bool] | None
) -> Iterator[np.ndarray | None]:
    """Write tokens into the environment step by step; yield the rows whose turn ends, None where `on_step` stops."""
    over = np.zeros(len(rows), bool)  # an agent may have planned on, beyond a token that was illegal
    for step in range(tokens.shape[1]):
        written = (tokens[:, step] >= 0) & ~over
        if not written.any():
            return
        ended = envs.write(rows[written], tokens[written, step], log_probs[written, step])
        over |= np.isin(rows, ended)
        yield ended
        if on_step is not None and not on_step(int(written.sum())):
            yield None


def _seat(envs: Any, rows: np.ndarray, seats: np.ndarray, examples: Sequence[str]) -> None:
    """Begin the next example in each of `rows`."""
    if len(rows):
        mask = np.isin(np.arange(envs.num_envs), rows)
        envs.reset(options={"reset_mask": mask, "example": [examples[max(0, seat)] for seat in seats]})
