"""Dense rewards that change no return: potential-based shaping by any scorer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from llm_gym.envs.text_env import TextEnv
from llm_gym.envs.vector_env import TextVectorEnv
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build

Spec = str | dict[str, Any]


def whole_sentences(text: str) -> str:
    """Return a text up to where its last finished sentence ends.

    >>> whole_sentences('It rained. "Why?" asked the')
    'It rained. "Why?"'
    """
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


EVERY: dict[str, Callable[[str], str]] = {"token": lambda text: text, "sentence": whole_sentences}
"""How much of what has been written a potential looks at."""


class Potential:
    """The potential of every row of a text environment: what the turn being written is worth so far.

    It is the feedback's value of the text so far, less its value of an empty text, so that a turn begins at 0; and 0
    when the episode is over.

    Args:
        feedback: Spec of the feedback.
        every: `token`, or `sentence`: the text counts up to its last finished sentence.
    """

    def __init__(self, feedback: Spec, every: str) -> None:
        if every not in EVERY:
            raise LLMGymError(f"every={every!r} must be one of {', '.join(EVERY)}")
        self.feedback, self.part = build(feedback), EVERY[every]

    def __call__(self, envs: TextVectorEnv) -> np.ndarray:
        """Return the potentials, float64 `(N,)`.

        Raises:
            LLMGymError: The feedback abstains.
        """
        potentials = np.zeros(envs.num_envs)
        rows = np.flatnonzero(~envs.done)
        drafts = [(row, _said(e, self.part(e.text))) for row, e in zip(rows, envs.drafts(rows), strict=True)]
        written = [(row, draft) for row, draft in drafts if draft.text]
        texts, empty = [draft for _, draft in written], [_said(draft, "") for _, draft in written]
        scores = self.feedback([*texts, *empty])
        for (row, draft), now, nothing in zip(written, scores, scores[len(texts) :], strict=False):
            if abstained := (*now.abstained, *nothing.abstained):
                raise LLMGymError(
                    f"{', '.join(abstained)} abstained from example {draft.example['id']!r}, and a potential needs a "
                    "value; give the judge a longer deadline"
                )
            potentials[row] = now.value - nothing.value
        return potentials


def _said(draft: Episode, text: str) -> Episode:
    return replace(draft, text=text, turns=[*draft.turns[:-1], {"role": "agent", "text": text}])


class VectorPotentialShaping(VectorWrapper, RecordConstructorArgs):
    """Adds `gamma` · Φ(after) − Φ(before) to every reward of a text vector environment, Φ being a `Potential`.

    The sums over a turn, discounted by `gamma`, are those of the environment itself, since a turn begins and ends with
    a potential of 0; so the best policy is the same (Ng et al. 1999), and a token is told at once what it was good for.
    All rows are scored in one call a step. `info["score"]` and the episode's record keep the true reward.

    Args:
        env: A `TextVectorEnv`, or a wrapper of one.
        feedback: Spec of the potential, any scorers that can judge a text that is not finished.
        every: `token`, or `sentence`: the potential changes when a sentence ends, which asks the scorers less often.
        gamma: The discount that the algorithm uses.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: VectorEnv, feedback: Spec, every: str = "token", gamma: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, feedback=feedback, every=every, gamma=gamma)
        VectorWrapper.__init__(self, env)
        if not isinstance(env.unwrapped, TextVectorEnv):
            raise LLMGymError(f"{env} is no text vector environment; shape one that `gym.make_vec` made")
        self.potential, self.gamma = Potential(feedback, every), _checked(gamma)
        self._before = np.zeros(env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset rows as the environment does; their potential is 0 again."""
        observation, infos = self.env.reset(seed=seed, options=options)
        self._before = self.potential(self._texts)
        return observation, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step, and shape the rewards."""
        observation, rewards, terminations, truncations, infos = self.env.step(actions)
        after = self.potential(self._texts)
        rewards = rewards + self.gamma * after - self._before
        self._before = after
        return observation, rewards, terminations, truncations, infos

    @property
    def _texts(self) -> TextVectorEnv:
        return self.env.unwrapped  # type: ignore[return-value]


class PotentialShaping(gym.Wrapper, RecordConstructorArgs):
    """`VectorPotentialShaping` for a single text environment; `gym.make(env.spec)` makes it again.

    Args:
        env: A `TextEnv`, or a wrapper of one, as `gym.make` returns.
        feedback: Spec of the potential.
        every: `token` or `sentence`.
        gamma: The discount that the algorithm uses.

    Raises:
        LLMGymError: The environment is no text environment, or an argument is not what it should be.
    """

    def __init__(self, env: gym.Env, feedback: Spec, every: str = "token", gamma: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, feedback=feedback, every=every, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, TextEnv):
            raise LLMGymError(f"{env} is no text environment; shape one that `gym.make` made")
        self.potential, self.gamma = Potential(feedback, every), _checked(gamma)
        self._before = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the potential is 0."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = self._now()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and shape the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = self._now()
        shaped = float(reward) + self.gamma * after - self._before
        self._before = after
        return observation, shaped, terminated, truncated, info

    def _now(self) -> float:
        env: Any = self.env.unwrapped
        return float(self.potential(env.vector)[0])


def _checked(gamma: Any) -> float:
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise LLMGymError(f"gamma={gamma!r} must be above 0 and at most 1: the discount that the algorithm uses")
    return float(gamma)
