"""A file of what was written, and what it was worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from llm_gym.data.files import append_line
from llm_gym.envs.text_env import TextEnv
from llm_gym.envs.vector_env import TextVectorEnv
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError

FILE = "episodes.jsonl"


class _Writer:
    """Appends each finished episode once, whole, when it is first seen; not those without a score."""

    def __init__(self, env: Any, folder: str) -> None:
        inside = env.unwrapped
        self.envs = inside.vector if isinstance(inside, TextEnv) else inside
        if not isinstance(self.envs, TextVectorEnv):
            raise LLMGymError(f"{env} is no text environment; record one that `gym.make` or `gym.make_vec` made")
        self.path = Path(folder) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LLMGymError(f"folder={folder!r} cannot be made ({error.strerror}); pass another") from error
        self._last: Sequence[Episode | None] = list(self.envs.episodes)

    def write(self) -> None:
        for episode, last in zip(self.envs.episodes, self._last, strict=True):
            if episode is not None and episode is not last and episode.reward is not None:
                append_line(self.path, episode.to_record())
        self._last = list(self.envs.episodes)


class VectorRecordTexts(VectorWrapper, RecordConstructorArgs):
    """`RecordTexts` for a text vector environment: episodes in the order in which they end.

    Args:
        env: A `TextVectorEnv`, or a wrapper of one.
        folder: Where `episodes.jsonl` is written; it is made if need be.

    Raises:
        LLMGymError: The environment is no text environment, or the folder cannot be made.
    """

    def __init__(self, env: VectorEnv, folder: str) -> None:
        RecordConstructorArgs.__init__(self, folder=folder)
        VectorWrapper.__init__(self, env)
        self._writer = _Writer(env, folder)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step, and write down what has ended."""
        result = self.env.step(actions)
        self._writer.write()
        return result


class RecordTexts(gym.Wrapper, RecordConstructorArgs):
    """Append each finished episode to `folder/episodes.jsonl`: `Episode.to_json`, a line each.

    A line has text, reward and its parts, token ids, turns and the example; `Episode.from_json` reads it. Rewards are
    the environment's own, whatever wrappers make of them. An episode that something outside cuts off, or that the
    feedback abstains from, has no score and is not recorded. A line is written whole, so several environments may share
    a folder.

    Args:
        env: A `TextEnv`, or a wrapper of one.
        folder: Where the file is written; it is made if need be.

    Raises:
        LLMGymError: The environment is no text environment, or the folder cannot be made.
    """

    def __init__(self, env: gym.Env, folder: str) -> None:
        RecordConstructorArgs.__init__(self, folder=folder)
        gym.Wrapper.__init__(self, env)
        self._writer = _Writer(env, folder)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and write down what has ended."""
        result = self.env.step(action)
        self._writer.write()
        return result
