"""The single environment: the vector environment's N = 1 case."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from llm_gym.envs.vector_env import TextVectorEnv


class TextEnv(gym.Env):
    """One token-level episode at a time; takes `TextVectorEnv`'s arguments except `num_envs` and `autoreset_mode`.

    Observations are a dict of `input_ids` int32 `(C,)`, `roles` int8 `(C,)` and `tokens_left` int32 `(1,)`; an
    action is a token id. See `TextVectorEnv`, which holds the one transition function.
    """

    metadata: dict[str, Any] = TextVectorEnv.metadata

    def __init__(self, task: str, **kwargs: Any) -> None:
        self.vector = TextVectorEnv(task, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.render_mode = self.vector.render_mode

    @property
    def tokenizer(self) -> Any:
        """The tokenizer behind the action space."""
        return self.vector.tokenizer

    @property
    def episode(self) -> Any:
        """The last finished `Episode`, or None."""
        return self.vector.episodes[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; `options={"example": id}` chooses the example, else it is drawn from `np_random`."""
        super().reset(seed=seed)
        self.vector.generators[0] = self.np_random
        example = (options or {}).get("example")
        observation, infos = self.vector.reset(options={"example": example})
        return _row(observation), first_row(infos)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Append one token."""
        observation, rewards, terminations, _, infos = self.vector.step(np.asarray([action]))
        return _row(observation), float(rewards[0]), bool(terminations[0]), False, first_row(infos)

    def action_masks(self) -> np.ndarray:
        """Return which tokens may be written next, int8 `(V,)`, 1 for legal; see `TextVectorEnv.action_masks`."""
        return self.vector.action_masks()[0]

    def render(self) -> str | None:
        """Return the episode as text under `ansi`; print it under `human`."""
        texts = self.vector.render()
        return None if texts is None else texts[0]


def _row(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value[0] for key, value in observation.items()}


def first_row(infos: dict[str, Any]) -> dict[str, Any]:
    """Return row 0 of a vector environment's infos as plain Python values."""
    single: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith("_"):
            continue
        single[key] = first_row(value) if isinstance(value, dict) else value[0]
        if isinstance(single[key], np.generic):
            single[key] = single[key].item()
    return single
