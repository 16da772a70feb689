"""Playing given examples in a vector environment, the loop that training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.policy import LLMPolicy
from agents.reference import ReferenceAgent
from llm_gym.episode import Episode


def play(
    policy: LLMPolicy | ReferenceAgent,
    envs: Any,
    examples: Sequence[str],
    deterministic: bool = False,
    on_step: Callable[[int], bool] | None = None,
) -> list[Episode] | None:
    """Let the policy write one episode for each example.

    Args:
        policy: Who writes.
        envs: A `TextVectorEnv` with autoreset DISABLED and any number of rows.
        examples: Ids; more than there are rows are played in turns.
        deterministic: Take the likeliest token each time.
        on_step: Called after each step with the number of tokens written in it; False stops.

    Returns:
        The finished episodes in order, with the log-probabilities of what was written; None if `on_step` stopped.
    """
    episodes: list[Episode] = []
    for start in range(0, len(examples), envs.num_envs):
        batch = _play_batch(policy, envs, examples[start : start + envs.num_envs], deterministic, on_step)
        if batch is None:
            return None
        episodes += batch
    return episodes


def _play_batch(
    policy: LLMPolicy | ReferenceAgent,
    envs: Any,
    examples: Sequence[str],
    deterministic: bool,
    on_step: Callable[[int], bool] | None,
) -> list[Episode] | None:
    idle = envs.num_envs - len(examples)
    envs.reset(options={"example": [*examples, *[examples[0]] * idle]})
    running = np.arange(envs.num_envs) < len(examples)
    waiting = np.zeros_like(running)
    log_probs: list[list[float]] = [[] for _ in examples]
    while running.any():
        rows = np.flatnonzero(running)
        tokens, chosen = policy.act(envs.observation(), rows, deterministic)
        for row, value in zip(rows, chosen, strict=True):
            log_probs[row].append(value)
        ended = envs.write(rows, tokens, chosen)
        running[ended] = False
        waiting[ended] = True
        if on_step is not None and not on_step(len(rows)):
            return None
        if not running.any():  # partners answer everyone at once
            envs.end_turns(np.flatnonzero(waiting))
            running, waiting = waiting & ~envs.done, np.zeros_like(waiting)
    envs.score()  # all at once: a source is read once for all texts about it
    episodes = envs.episodes[: len(examples)]
    for episode, values in zip(episodes, log_probs, strict=True):
        episode.log_probs = np.zeros(len(episode.agent_mask), np.float32)
        episode.log_probs[episode.agent_mask] = values
    return episodes
