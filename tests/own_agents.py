"""Agents of a user's, as `llm-gym benchmark` takes them: `own_agents:Class`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO


class Constant:
    """Writes the same token again and again, and says so if it is not asked as SB3's models are."""

    def __init__(self, env: Any) -> None:
        self.token = 40
        assert env.num_envs == 16 and "input_ids" in env.observation_space.spaces

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        rows = len(observation["roles"])
        state = np.zeros(rows, int) if state is None else np.where(episode_start, 0, state)
        written = (observation["roles"] == 2).sum(1)
        running = observation["tokens_left"][:, 0] > 0
        assert (state == written)[running].all(), "state and episode_start do not follow the episodes"
        return np.full(rows, self.token), np.where(running, state + 1, state)


class Script:
    """Writes markup that a page must not run."""

    def __init__(self, env: Any) -> None:
        tokenizer = env.get_attr("tokenizer")[0]
        self.tokens = np.array([*tokenizer("<script>x", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        written = (observation["roles"] == 2).sum(1)
        return self.tokens[np.minimum(written, len(self.tokens) - 1)], None


class Counting:
    """Learns by trial which token earns most, and tells how far it came."""

    def __init__(self, env: Any, seed: int) -> None:
        self.env, self.generator = env, np.random.default_rng(seed)
        self.earned, self.tried = np.zeros(env.action_space.n), np.full(env.action_space.n, 1e-9)

    def learn(self, total_timesteps: int) -> None:
        self.env.reset()
        while True:  # nobody stops it but the budget
            actions = self.generator.integers(self.env.action_space.n, size=self.env.num_envs)
            _, rewards, _, _ = self.env.step(actions)
            np.add.at(self.earned, actions, rewards)
            np.add.at(self.tried, actions, 1)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return np.full(len(observation["roles"]), int((self.earned / self.tried).argmax())), None


def stock(env: Any, seed: int) -> PPO:
    """Return Stable-Baselines3's PPO on a small network."""
    return PPO("MultiInputPolicy", env, n_steps=8, batch_size=64, n_epochs=1, seed=seed, device="cpu")


class Mended(Constant):
    """Fails until a file is there."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        if not Path(os.environ["LLM_GYM_TEST_MENDED"]).exists():
            raise RuntimeError("not mended <b>yet</b>")


class Dying(Constant):
    """Takes its whole process along."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Hostile(Constant):
    """Predicts what is no token."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return np.full(len(observation["roles"]), 0.5), None


class Mute:
    """Does not predict."""

    def __init__(self, env: Any) -> None:
        self.env = env
