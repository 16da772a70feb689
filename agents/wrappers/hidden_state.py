"""A flat observation: what a frozen language model makes of the text so far."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper
from gymnasium.vector.utils import batch_space

from agents.wrappers.frozen_lm import FrozenLM, frozen_lm
from llm_gym.errors import LLMGymError


def features(lm: FrozenLM) -> np.ndarray:
    """Return what `HiddenStateObservation` observes in each row, float32 `(N, H + 1)`."""
    hidden = lm.hidden()
    scaled = hidden / hidden.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    left = torch.from_numpy(lm.envs.observation()["tokens_left"] / lm.envs.max_new_tokens)
    return torch.cat([scaled.cpu(), left.float()], -1).numpy()


def _space(lm: FrozenLM) -> spaces.Box:
    bound = float(np.sqrt(lm.hidden_size)) + 0.01  # where one unit has all of it, and for rounding
    return spaces.Box(-bound, bound, (lm.hidden_size + 1,), np.float32)


class VectorHiddenStateObservation(VectorObservationWrapper, RecordConstructorArgs):
    """`HiddenStateObservation` for a text vector environment.

    Args:
        env: A `TextVectorEnv`, or a wrapper of one, with autoreset NEXT_STEP or DISABLED: like Gymnasium's own vector
            observation wrappers it does not change the observations that SAME_STEP leaves in `infos`.
        model: Name of the frozen language model; it must speak the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment or of another autoreset mode, or the model does not fit.
    """

    def __init__(self, env: VectorEnv, model: str = "smollm2-135m") -> None:
        if env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP:
            raise LLMGymError("hidden states need autoreset_mode 'NextStep' or 'Disabled', not 'SameStep'")
        RecordConstructorArgs.__init__(self, model=model)
        VectorObservationWrapper.__init__(self, env)
        self.lm = frozen_lm(env, model)
        self.single_observation_space = _space(self.lm)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def observations(self, observations: Any) -> np.ndarray:
        """Return the features, float32 `(N, H + 1)`."""
        return features(self.lm)


class HiddenStateObservation(gym.ObservationWrapper, RecordConstructorArgs):
    """Observe the hidden state of a frozen language model at the last token, float32 `(H + 1,)`.

    The state is that behind the model's final norm, from which it predicts the next token, divided by its root mean
    square, so that its units are about 1 in size whatever the model. The last number is the share of the turn's
    tokens that are left: without it the cap would be invisible and the process not Markov.

    Args:
        env: A `TextEnv`, or a wrapper of one.
        model: Name of the frozen language model; it must speak the environment's tokens.

    Raises:
        LLMGymError: The environment is no text environment, or the model does not fit.
    """

    def __init__(self, env: gym.Env, model: str = "smollm2-135m") -> None:
        RecordConstructorArgs.__init__(self, model=model)
        gym.ObservationWrapper.__init__(self, env)
        self.lm = frozen_lm(env, model)
        self.observation_space = _space(self.lm)

    def observation(self, observation: Any) -> np.ndarray:
        """Return the features."""
        return features(self.lm)[0]
