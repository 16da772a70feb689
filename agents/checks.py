"""What is made sure of before a language model acts in an environment."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces

from llm_gym.errors import LLMGymError


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space, model: str) -> None:
    """Make sure that the spaces are a text environment's, and that the model speaks its tokens."""
    from llm_gym.models.load import fingerprint, load_tokenizer

    keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
    if not {"input_ids", "roles"} <= keys or not isinstance(action_space, spaces.Discrete):
        raise LLMGymError(
            "a language model needs a text environment: a Dict observation with 'input_ids' and 'roles' and a Discrete "
            f"action space; got {observation_space} and {action_space}"
        )
    expected = getattr(action_space, "fingerprint", None)
    if expected is not None and fingerprint(load_tokenizer(model)) != expected:
        name = getattr(action_space, "tokenizer", "another one")
        raise LLMGymError(
            f"the model {model!r} and the environment's tokenizer {name!r} number tokens differently; "
            f"make the environment with tokenizer={model!r}"
        )


def check_window(config: Any, capacity: int) -> None:
    """Make sure that the model sees the whole context.

    Raises:
        LLMGymError: It has fewer positions, or a shorter sliding window.
    """
    positions = getattr(config, "max_position_embeddings", capacity)
    if positions < capacity:
        raise LLMGymError(
            f"the model has {positions} positions, and the context takes {capacity}; make the environment with smaller "
            "max_prompt_tokens or max_new_tokens, or use another model"
        )
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < capacity:
        raise LLMGymError(
            f"the model's sliding window of {window} tokens is shorter than the context of {capacity}; "
            "make the environment with smaller max_prompt_tokens"
        )


def check_head(causal: Any, name: str) -> None:
    """Make sure that logits are the head applied to the hidden state, which decoding relies on.

    Raises:
        LLMGymError: The model `name` does something else.
    """
    ids = torch.arange(4, device=causal.device)[None]
    with torch.no_grad():
        whole = causal(input_ids=ids).logits.float()
        parts = causal.get_output_embeddings()(causal.base_model(input_ids=ids).last_hidden_state).float()
    if not torch.allclose(whole, parts, atol=1e-2, rtol=1e-2):
        raise LLMGymError(f"model {name!r} changes its logits after the output layer, which is not supported yet")
