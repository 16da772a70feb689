"""Agents that say whole texts, whoever words them, in environments whose steps are tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_gym.models.endpoint import Endpoint, with_model

KEY = "LLM_GYM_AGENT_KEY"


class Speaker:
    """Says a text each turn, token by token.

    Args:
        envs: The `TextVectorEnv` that it is going to act in.
    """

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        self._plans: dict[int, list[int]] = {}

    def say(self, rows: np.ndarray) -> Sequence[str]:
        """Return what is said now in each of `rows`, int `(n,)`, whose turns begin."""
        raise NotImplementedError

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the next tokens of each row's text, and log-probabilities 0; see `LLMPolicy.write`.

        Raises:
            LLMGymError: There is nothing to say.
        """
        beginning = rows[obs["tokens_left"][rows, 0] == self.envs.max_new_tokens]
        for row, text in zip(beginning.tolist(), self.say(beginning) if len(beginning) else (), strict=True):
            self._plans[row] = self._ended(self.envs.encode(row, text))
        tokens = np.full((len(rows), most), -1)
        for place, row in enumerate(rows.tolist()):
            part, self._plans[row] = self._plans[row][:most], self._plans[row][most:]
            tokens[place, : len(part)] = part
        return tokens, np.zeros(tokens.shape, np.float32)

    def _ended(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with the token that ends it, within the cap of a turn."""
        cap = self.envs.max_new_tokens
        return ids if len(ids) == cap else [*ids[: cap - 1], self.envs.single_action_space.stop_ids[0]]


class EndpointAgent(Speaker):
    """Says what a model behind an OpenAI-compatible endpoint answers to the prompt: a baseline that is not trained.

    A key that the server wants is read from the environment variable `LLM_GYM_AGENT_KEY`. A text is cut at the
    environment's cap, which the server is told.

    Args:
        envs: The `TextVectorEnv` that it is going to act in.
        address: Address and model, such as `http://127.0.0.1:8000/v1#my-model`.
        seed: Sent along, for servers that can sample alike twice.

    Raises:
        LLMGymError: The address names no model, or is none. While it speaks, an `EndpointError` if there is no answer
            within two minutes.
    """

    def __init__(self, envs: Any, address: str, seed: int = 0) -> None:
        super().__init__(envs)
        place, model = with_model("agent", address, KEY)
        self.server, self.seed = Endpoint(place, model, KEY if os.environ.get(KEY) else None), seed

    def say(self, rows: np.ndarray) -> Sequence[str]:
        """Ask for all texts, several at a time."""
        body = {"model": self.server.model, "max_tokens": self.envs.max_new_tokens, "seed": self.seed}

        def ask(client: Any, row: int, gone: Any) -> str:
            return self.server.content(client, {**body, "messages": self.envs.messages(row)}, gone).strip()

        return self.server.each(ask, rows.tolist())
