"""A whole reply a step, for bandits and for methods that work on utterances."""

from __future__ import annotations

import string
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from llm_gym.envs.text_env import TextEnv, first_row
from llm_gym.envs.vector_env import TextVectorEnv
from llm_gym.errors import LLMGymError


class AnyText(spaces.Text):
    """Texts of any characters, where `spaces.Text` takes those of a given set; samples are of printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length


def _spaces(envs: TextVectorEnv) -> tuple[AnyText, AnyText]:
    """Return the spaces of what is observed and written; no text is longer than so many of the longest tokens."""
    longest = max(map(len, envs.tokenizer.get_vocab()))
    return AnyText(envs.context * longest), AnyText(envs.max_new_tokens * longest)


def _read(envs: TextVectorEnv) -> tuple[str, ...]:
    seen = envs.observation()
    lengths = (seen["roles"] > 0).sum(1)
    return tuple(envs.tokenizer.batch_decode([ids[:n] for ids, n in zip(seen["input_ids"], lengths, strict=True)]))


class VectorTextActions(VectorWrapper, RecordConstructorArgs):
    """`TextActions` for a text vector environment: N texts are observed and N are written, as tuples.

    Args:
        env: A `TextVectorEnv` with autoreset NEXT_STEP or DISABLED, unwrapped.

    Raises:
        LLMGymError: Another environment or autoreset mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        RecordConstructorArgs.__init__(self)
        VectorWrapper.__init__(self, env)
        if not isinstance(env, TextVectorEnv) or env.autoreset_mode is AutoresetMode.SAME_STEP:
            raise LLMGymError(
                f"{env} must be what `gym.make_vec` made, with autoreset_mode 'NextStep' or 'Disabled': put "
                "TextActions inside of all other wrappers"
            )
        self.envs = env
        self.single_observation_space, self.single_action_space = _spaces(env)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset rows as the environment does."""
        _, infos = self.envs.reset(seed=seed, options=options)
        return _read(self.envs), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write a reply into each running row."""
        _, *result = self.envs.step_texts(actions)
        return _read(self.envs), *result  # type: ignore[return-value]


class TextActions(gym.Wrapper, RecordConstructorArgs):
    """Write a whole reply a step: texts are observed, and texts are the actions.

    The observation is all that stands there, decoded, the chat template's marks included. A reply is encoded, written
    token by token and ended with a stop token; what is beyond `max_new_tokens` is cut off, and `finish_reason` is then
    `length`. Its reward is its turn's, so a task without a partner is a contextual bandit.

    Args:
        env: A `TextEnv` as `gym.make` returns it; other wrappers go around this one.

    Raises:
        LLMGymError: Another environment, or a wrapper inside, which would not see the tokens.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        inside: Any = env
        while isinstance(inside, PassiveEnvChecker | OrderEnforcing):
            inside = inside.env
        if not isinstance(inside, TextEnv):
            raise LLMGymError(f"{env} must be what `gym.make` made: put TextActions inside of all other wrappers")
        self.envs = inside.vector
        self.observation_space, self.action_space = _spaces(self.envs)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset as the environment does."""
        _, info = self.env.reset(seed=seed, options=options)
        return _read(self.envs)[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Write a reply."""
        _, rewards, terminations, _, infos = self.envs.step_texts([action])
        return _read(self.envs)[0], float(rewards[0]), bool(terminations[0]), False, first_row(infos)
