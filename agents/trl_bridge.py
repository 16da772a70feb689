"""Environments for trainers of TRL: their prompts as a data set, their feedback as a reward function.

    dataset = trl_dataset("QuestionAnswering-v0", tokenizer=MODEL)
    reward = trl_reward("QuestionAnswering-v0", tokenizer=MODEL)
    GRPOTrainer(model=MODEL, reward_funcs=reward, train_dataset=dataset, args=...)

A completion is the agent's first turn. In a conversation TRL plays no further one, so train there by `agents`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.evaluate import make_envs
from llm_gym.errors import LLMGymError


def trl_dataset(env_id: str, split: str = "train", **env_kwargs: Any) -> Any:
    """Return the prompts of an environment as a `datasets.Dataset`.

    Args:
        env_id: Such as `TextSummary-v0`.
        split: Which examples.
        **env_kwargs: Of the environment; `tokenizer` is the model that is trained, since its tokens are counted.

    Returns:
        A row for each example: `prompt`, a chat (a text under `template="plain"`), and `example`, its id.

    Raises:
        LLMGymError: `datasets` is not installed, or an argument is bad.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise LLMGymError("a data set for TRL needs datasets: pip install llm-gym[hub]") from error
    envs = make_envs(env_id, 1, split, env_kwargs)
    ids = envs.example_ids
    return Dataset.from_dict({"prompt": [envs.given(name) for name in ids], "example": ids})


def trl_reward(env_id: str, split: str = "train", **env_kwargs: Any) -> Callable[..., list[float | None]]:
    """Return a reward function as TRL's trainers call it.

    The tokens are written into the environment one by one, so that a reward is its own: of the text up to a stop token
    or the environment's cap, of an illegal token, of what special tokens leave.

    Args:
        env_id: Such as `TextSummary-v0`.
        split: Which examples; those of the data set.
        **env_kwargs: Of the environment, as for `trl_dataset`; `feedback` among them.

    Returns:
        A function of `completion_ids` and `example`, one id for each, that leaves TRL's other columns unread. A reward
        is None, which TRL leaves out, where a judge abstains and where a completion has no token or one that the
        tokenizer does not have: a model's logits may be wider than its vocabulary, and TRL samples from all of them.

    Raises:
        LLMGymError: An argument is bad; when called, an unknown example, or feedback that is not finite.
    """
    rows = functools.cache(lambda count: make_envs(env_id, count, split, env_kwargs))

    def reward(
        prompts: Any, completions: Any, *, completion_ids: Sequence[Sequence[int]], example: Sequence[str], **_: Any
    ) -> list[float | None]:
        return _rewards(rows(len(example)), list(example), completion_ids)

    reward.__name__ = env_id  # TRL logs it under this name
    return reward


def _rewards(envs: Any, examples: list[str], written: Sequence[Sequence[int]]) -> list[float | None]:
    size = envs.single_action_space.n
    known = np.flatnonzero([bool(len(ids)) and max(ids) < size for ids in written])
    envs.reset(options={"example": examples})
    envs.write_turns(known, [written[row] for row in known.tolist()])
    envs.end_turns(known)
    rewards: dict[int, float | None] = {row: turn.reward for row, turn in envs.score(abstaining=True)}
    return [rewards.get(row) for row in range(len(written))]
