"""A frozen language model that reads along with a text environment; wrappers of the same one share its pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from agents.checks import check_head, check_spaces, check_window
from agents.decoder import Decoder, can_pack
from agents.engine import Engine
from llm_gym.envs.text_env import TextEnv
from llm_gym.envs.vector_env import TextVectorEnv
from llm_gym.errors import LLMGymError
from llm_gym.models.load import shared_causal_lm


class FrozenLM:
    """What a frozen language model makes of each row of an environment.

    Keys and values are kept by row, so that a token costs one token; and the last answer is kept until something is
    written, so that several wrappers cost one pass.

    Args:
        envs: The environment.
        model: Name of a causal language model that speaks the environment's tokens.

    Raises:
        LLMGymError: No text environment, another tokenizer, or a model that cannot read here.
    """

    def __init__(self, envs: TextVectorEnv, model: str) -> None:
        check_spaces(envs.single_observation_space, envs.single_action_space, model)
        self.envs, self.model = envs, model
        self._actions: Any = envs.single_action_space
        causal = shared_causal_lm(model)
        check_window(causal.config, envs.context)
        self.hidden_size = int(causal.config.hidden_size)
        backbone, self._head = _decoding(causal, model)
        self._engine = Engine(backbone, envs.num_envs, envs.context)
        self._ids = np.zeros((envs.num_envs, envs.context), np.int32)  # what was read last
        self._lengths = np.full(envs.num_envs, -1)  # nothing yet, not even rows that are empty before a reset
        self._hidden = torch.zeros(0)
        self._log_probs: torch.Tensor | None = None

    @torch.no_grad()
    def hidden(self) -> torch.Tensor:
        """Return the hidden state at the last token of each row, float32 `(N, H)`, behind the model's final norm."""
        seen = self.envs.observation()
        lengths = (seen["roles"] > 0).sum(1)
        if (lengths != self._lengths).any() or (seen["input_ids"] != self._ids).any():
            self._forget_ended(seen["input_ids"], lengths)
            self._hidden = self._engine.last_hidden(seen["input_ids"], lengths).float()
            self._ids, self._lengths, self._log_probs = seen["input_ids"], lengths, None
        return self._hidden

    def _forget_ended(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Read rows that begin anew from their start, so that no bit of them depends on the episode before."""
        changed = (ids != self._ids) & (np.arange(self.envs.context) < self._lengths[:, None])
        self._engine.forget(np.flatnonzero(changed.any(1) | (lengths < self._lengths)))

    @torch.no_grad()
    def log_probs(self) -> torch.Tensor:
        """Return the log-probability of each token as the next, float32 `(N, V)`; -inf for what is illegal."""
        hidden = self.hidden()
        if self._log_probs is None:
            logits = self._head(hidden)[:, : self._actions.n].float()
            if self._actions.constraint is not None:
                logits.masked_fill_(torch.from_numpy(self.envs.action_masks() == 0).to(logits.device), -torch.inf)
            self._log_probs = logits.log_softmax(-1)
        return self._log_probs


def frozen_lm(env: gym.Env | VectorEnv, model: str) -> FrozenLM:
    """Return the model that reads along with `env`: that of a wrapper inside which asks the same one, or a new one.

    Raises:
        LLMGymError: What `FrozenLM` raises.
    """
    inside: Any = env
    while isinstance(inside, gym.Wrapper | gym.vector.VectorWrapper):
        if isinstance(lm := getattr(inside, "lm", None), FrozenLM) and lm.model == model:
            return lm
        inside = inside.env
    if isinstance(inside, TextEnv):
        inside = inside.vector
    if not isinstance(inside, TextVectorEnv):
        raise LLMGymError(f"{env} is no text environment; wrap one that `gym.make` or `gym.make_vec` made")
    return FrozenLM(inside, model)


@lru_cache(maxsize=2)
def _decoding(causal: Any, model: str) -> tuple[Any, Any]:
    """Return transformer and output layer in the form that decodes fastest; one copy for all environments."""
    check_head(causal, model)
    head = causal.get_output_embeddings()
    if not can_pack(causal.base_model):
        return causal.base_model, lambda hidden: head(hidden.to(head.weight.dtype))
    decoder = Decoder(causal.base_model)
    decoder.refresh(head.weight.float(), head.bias)
    return decoder.backbone, decoder.head
