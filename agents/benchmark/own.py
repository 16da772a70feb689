"""Agents of the user's: any class `module:Class` that predicts as Stable-Baselines3's models do.

It is constructed with an SB3 `VecEnv` of token steps, and with `seed=` if it takes one. `predict(observation, state,
episode_start, deterministic)` gets batches of any size. If it has `learn(total_timesteps, ...)`, it is trained first;
it gets a `callback=` if it takes one, and is stopped within the environment's step once its budget is spent.
"""

from __future__ import annotations

import importlib
import inspect
import time
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.recorder import Limit, LimitReached
from llm_gym.envs.vector_env import WRITTEN
from llm_gym.errors import LLMGymError

UNLIMITED = 10**12


def find_class(name: str) -> Any:
    """Return the class behind `module:Class`, or a function that makes such an agent.

    Raises:
        LLMGymError: There is none.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise LLMGymError(
            f"agent {name!r} cannot be loaded ({error}); expected 'module:Class', where Python finds the module "
            "(PYTHONPATH=. for one in this folder)"
        ) from error


def make_agent(name: str, env: VecEnv, seed: int) -> Any:
    """Return an agent of the class, ready to learn or to predict.

    Raises:
        LLMGymError: It does not predict.
    """
    cls = find_class(name)
    set_random_seed(seed)  # what it draws from the global generators is nobody else's: a cell has its own process
    env.action_space.seed(seed)
    agent = cls(env, **({"seed": seed} if "seed" in inspect.signature(cls).parameters else {}))
    if not callable(getattr(agent, "predict", None)):
        raise LLMGymError(f"agent {name!r} has no predict(observation, state, episode_start, deterministic)")
    return agent


def learn(agent: Any, env: BudgetEnv) -> None:
    """Let an agent learn until its budget is spent, or until it has had enough."""
    callback = {"callback": Stop(env)} if "callback" in inspect.signature(agent.learn).parameters else {}
    try:
        agent.learn(env.limit.tokens or UNLIMITED, **callback)
    except LimitReached:
        pass
    env.end()


class BudgetEnv(VecEnvWrapper):
    """Ends learning at a limit, and keeps what the episodes earned.

    Attributes:
        rows: A learning curve: rows of metrics as a run of ours has them, each over as many episodes as there are rows.
    """

    def __init__(self, venv: VecEnv, limit: Limit) -> None:
        super().__init__(venv)
        self.limit, self.rows, self.tokens = limit, list[dict[str, Any]](), 0
        self._started = time.monotonic()
        self._rewards: list[float] = []

    def reset(self) -> Any:
        """Reset all rows."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Step all rows.

        Raises:
            LimitReached: The budget is spent.
        """
        if self.spent(self.tokens):
            raise LimitReached
        observation, rewards, dones, infos = self.venv.step_wait()
        self.tokens += self.num_envs
        self._rewards += [info["episode"]["r"] for info in infos if "episode" in info]
        if len(self._rewards) >= self.num_envs:
            self.end()
        return observation, rewards, dones, infos

    def spent(self, tokens: int) -> bool:
        """Return whether the budget is spent after so many tokens."""
        return self.limit.spent(0, time.monotonic() - self._started, tokens) >= self.limit.most

    def end(self) -> None:
        """Write a row of the episodes that have ended since the last one."""
        if self._rewards:
            facts = {"update": len(self.rows) + 1, "tokens_total": self.tokens}
            elapsed, reward = time.monotonic() - self._started, float(np.mean(self._rewards))
            self.rows.append({**facts, "elapsed": round(elapsed, 3), "reward": round(reward, 6)})
            self._rewards = []


class Stop(BaseCallback):
    """Ends the learning of an SB3 algorithm at the limit, also of one that steps the environment inside itself."""

    def __init__(self, env: BudgetEnv) -> None:
        super().__init__()
        self.budget = env

    def _on_step(self) -> bool:
        return not self.budget.spent(max(self.budget.tokens, self.num_timesteps))


class Predicting:
    """An agent that predicts, as one that writes; it is asked anew for every token.

    Args:
        agent: Whose `predict` is called.
        name: What messages call it.
    """

    def __init__(self, agent: Any, name: str) -> None:
        self.agent, self.name = agent, name
        self._state: Any = None

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one token for each row, and log-probabilities 0; see `LLMPolicy.write`.

        Raises:
            LLMGymError: The agent predicts something else than a token for each row.
        """
        starts = ~(obs["roles"] == WRITTEN).any(1)
        actions, self._state = self.agent.predict(
            obs, state=self._state, episode_start=starts, deterministic=deterministic
        )
        actions = np.asarray(actions)
        if actions.shape != starts.shape or not np.issubdtype(actions.dtype, np.integer):
            raise LLMGymError(
                f"agent {self.name!r} predicted {actions.dtype} of shape {actions.shape} for {len(starts)} rows; "
                "expected a token id for each"
            )
        return actions[rows, None], np.zeros((len(rows), 1), np.float32)
