"""A small action space: the likeliest next tokens of a frozen language model."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from agents.wrappers.frozen_lm import FrozenLM, frozen_lm
from llm_gym.errors import LLMGymError, positive


def likeliest(lm: FrozenLM, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k likeliest next tokens of each row, the likeliest first, and how many of them are legal.

    Where fewer are legal, the likeliest one takes the places of those that lack, so that no action is illegal.

    Returns:
        Tokens int64 `(N, k)`, and counts int64 `(N,)`.
    """
    log_probs, tokens = lm.log_probs().topk(k, dim=-1)
    legal = torch.isfinite(log_probs)
    return torch.where(legal, tokens, tokens[:, :1]).cpu().numpy(), legal.sum(-1).cpu().numpy()


def _masks(counts: np.ndarray, k: int) -> np.ndarray:
    return (np.arange(k) < counts[:, None]).astype(np.int8)


class VectorTopKActions(VectorWrapper, RecordConstructorArgs):
    """`TopKActions` for a text vector environment.

    Args:
        env: A `TextVectorEnv`, or a wrapper of one whose actions are tokens.
        k: Number of actions.
        model: Name of the frozen language model; it must speak the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: VectorEnv, k: int, model: str = "smollm2-135m") -> None:
        RecordConstructorArgs.__init__(self, k=k, model=model)
        VectorWrapper.__init__(self, env)
        self.lm, self.k = frozen_lm(env, model), _checked(k, env.single_action_space)
        self.single_action_space = spaces.Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; where tokens are constrained, `info["action_mask"]` is about the k actions."""
        observation, infos = self.env.reset(seed=seed, options=options)
        return observation, self._with_masks(infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write the token that each action, int `(N,)`, stands for."""
        tokens = likeliest(self.lm, self.k)[0]
        chosen = tokens[np.arange(len(tokens)), _in_range(actions, self.k, len(tokens))]
        *result, infos = self.env.step(chosen)
        return *result, self._with_masks(infos)  # type: ignore[return-value]

    def action_masks(self) -> np.ndarray:
        """Return which actions stand for a legal token of their own, int8 `(N, k)`."""
        return _masks(likeliest(self.lm, self.k)[1], self.k)

    def _with_masks(self, infos: dict[str, Any]) -> dict[str, Any]:
        return {**infos, "action_mask": self.action_masks()} if "action_mask" in infos else infos


class TopKActions(gym.Wrapper, RecordConstructorArgs):
    """Act among the k likeliest next tokens of a frozen language model: action i writes the i-th likeliest.

    What is likeliest depends on all that stands there, so the same action is another token at each step. Where the
    task constrains its tokens, the legal ones alone are ranked; `action_masks` says which actions stand for one of
    their own, and the others write the likeliest.

    Args:
        env: A `TextEnv`, or a wrapper of one whose actions are tokens.
        k: Number of actions.
        model: Name of the frozen language model; it must speak the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: gym.Env, k: int, model: str = "smollm2-135m") -> None:
        RecordConstructorArgs.__init__(self, k=k, model=model)
        gym.Wrapper.__init__(self, env)
        self.lm, self.k = frozen_lm(env, model), _checked(k, env.action_space)
        self.action_space = spaces.Discrete(self.k)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; where tokens are constrained, `info["action_mask"]` is about the k actions."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._with_mask(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Write the token that the action stands for."""
        tokens = likeliest(self.lm, self.k)[0]
        *result, info = self.env.step(tokens[0, _in_range([action], self.k, 1)[0]])
        return *result, self._with_mask(info)  # type: ignore[return-value]

    def action_masks(self) -> np.ndarray:
        """Return which actions stand for a legal token of their own, int8 `(k,)`."""
        return _masks(likeliest(self.lm, self.k)[1], self.k)[0]

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "action_mask": self.action_masks()} if "action_mask" in info else info


def _checked(k: Any, space: Any) -> int:
    if not hasattr(space, "fingerprint"):
        raise LLMGymError(f"the actions inside are {space} and no tokens; put TopKActions nearer to the environment")
    if positive("k", k) > space.n:
        raise LLMGymError(f"k={k} is more than the {space.n} tokens there are; pass a smaller k")
    return int(k)


def _in_range(actions: Any, k: int, rows: int) -> np.ndarray:
    actions = np.asarray(actions)
    if actions.shape != (rows,) or not np.issubdtype(actions.dtype, np.integer):
        raise LLMGymError(f"actions must be {rows} integers, got {actions.dtype} of shape {actions.shape}")
    if actions.min() < 0 or actions.max() >= k:
        raise LLMGymError(f"action {actions[(actions < 0) | (actions >= k)][0]} is not one of 0 to {k - 1}")
    return actions
