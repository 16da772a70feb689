"""A price on what a frozen language model would not have written."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from agents.wrappers.frozen_lm import FrozenLM, frozen_lm
from llm_gym.errors import LLMGymError


class VectorKLPenalty(VectorWrapper, RecordConstructorArgs):
    """`KLPenalty` for a text vector environment; rows that rest pay nothing.

    Args:
        env: A `TextVectorEnv`, or a wrapper of one whose actions are tokens.
        coef: What a nat costs.
        model: Name of the reference, a frozen language model that speaks the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: VectorEnv, coef: float, model: str = "smollm2-135m") -> None:
        RecordConstructorArgs.__init__(self, coef=coef, model=model)
        VectorWrapper.__init__(self, env)
        _check_tokens(env.single_action_space)
        self.lm, self.coef = frozen_lm(env, model), _checked(coef)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step, and pay for the tokens, int `(N,)`; each running row's is in `infos["reference_log_prob"]`."""
        running = ~self.lm.envs.done
        found = _reference_log_probs(self.lm, actions)
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        rewards = rewards + self.coef * np.where(running, found, 0)
        infos = {**infos, "reference_log_prob": np.where(running, found, 0), "_reference_log_prob": running}
        return observation, rewards, terminations, truncations, infos


class KLPenalty(gym.Wrapper, RecordConstructorArgs):
    """Adds `coef` · log p(token) to the reward of each token, p being a frozen reference: its half of a KL penalty.

    A KL penalty takes `coef` · (log π(token) - log p(token)) off. Its mean is `coef` times the cross-entropy with the
    reference, which is about the token alone and is paid here, less `coef` times the entropy of the agent, which the
    environment cannot know: give the algorithm that one (`ent_coef=coef` in SB3's PPO and A2C). Without it the best
    policy is not the reference tilted by the reward, but writes likely texts of high reward and no others.
    An agent that knows log π of what it did finds log p in `info["reference_log_prob"]` and can report the KL itself.

    A token that the task forbids costs what the reference thinks of the least likely legal one.

    Args:
        env: A `TextEnv`, or a wrapper of one whose actions are tokens; so it goes inside of `TopKActions`.
        coef: What a nat costs.
        model: Name of the reference, a frozen language model that speaks the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: gym.Env, coef: float, model: str = "smollm2-135m") -> None:
        RecordConstructorArgs.__init__(self, coef=coef, model=model)
        gym.Wrapper.__init__(self, env)
        _check_tokens(env.action_space)
        self.lm, self.coef = frozen_lm(env, model), _checked(coef)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and pay for the token; `info["reference_log_prob"]` says what it was."""
        found = float(_reference_log_probs(self.lm, [action])[0])
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward + self.coef * found, terminated, truncated, {**info, "reference_log_prob": found}  # type: ignore[operator]


def _reference_log_probs(lm: FrozenLM, actions: Any) -> np.ndarray:
    """Return what the reference thinks of each row's token, float64 `(N,)`, before it is written."""
    tokens = lm.envs.checked(actions)
    log_probs = lm.log_probs()
    found = log_probs.gather(-1, torch.from_numpy(tokens).to(log_probs.device)[:, None])[:, 0]
    least = log_probs.masked_fill(~torch.isfinite(log_probs), torch.inf).amin(-1)
    return torch.where(torch.isfinite(found), found, least).double().cpu().numpy()


def _checked(coef: Any) -> float:
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not 0 < coef < np.inf:
        raise LLMGymError(f"coef={coef!r} must be a positive number: what a nat of surprise costs")
    return float(coef)


def _check_tokens(space: Any) -> None:
    if not hasattr(space, "fingerprint"):
        raise LLMGymError(f"the actions inside are {space} and no tokens; put KLPenalty nearer to the environment")
