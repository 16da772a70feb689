"""The record of one finished episode, shared by environments, scorers, algorithms and reports."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FINISH_REASONS = ("stop", "length", "context", "illegal")
ARRAYS = {
    "prompt_ids": np.int32,
    "response_ids": np.int32,
    "agent_mask": bool,
    "log_probs": np.float32,
    "token_rewards": np.float32,
}


@dataclass
class Episode:
    """One finished episode.

    Token ids are the truth; `text` is decoded from them and never encoded back to be trained on.

    Attributes:
        example: The data row the episode was about, with its `id`.
        source: The text that the agent was given to work on.
        text: What the agent wrote, decoded, without special tokens and outer white space; its turns a line each.
        reference: A text written by a person, if the data has one. Training feedback reads it only where
            the task is `verifiable`.
        prompt_ids: int32 `(P,)`, what the first observation held.
        response_ids: int32 `(T,)`, everything appended after it.
        agent_mask: bool `(T,)`, True where the agent wrote the token.
        log_probs: float32 `(T,)`, natural log-probabilities under the policy that acted, or None.
        finish_reason: `stop`, `length`, `context` or `illegal`.
        turns: What was said, in order, as `{"role": ..., "text": ...}`; roles are `agent`, `partner`
            and what else a task lets answer, such as `handbook`.
        over: False in the record of a single turn after which the conversation goes on. Such records, whose `text`
            is that turn's, are what scorers see of a conversation.
        reward: The value that the feedback gave, or None before scoring.
        parts: The named parts of that value.
        turn_rewards: What each of the agent's turns was worth, in order; their sum is `reward`.
        token_rewards: float32 `(T,)`, the share of `reward` that single tokens caused, each where it arose, or None;
            what is left of `reward` is about the text as a whole.
    """

    example: dict[str, Any]
    source: str
    text: str
    reference: str | None = None
    prompt_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    response_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    agent_mask: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    log_probs: np.ndarray | None = None
    finish_reason: str = "stop"
    turns: list[dict[str, str]] = field(default_factory=list)
    over: bool = True
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    turn_rewards: list[float] = field(default_factory=list)
    token_rewards: np.ndarray | None = None

    @property
    def said(self) -> str:
        """What the partner said last before the agent's turn, empty where there is no partner."""
        return next((turn["text"] for turn in reversed(self.turns) if turn["role"] == "partner"), "")

    def to_json(self) -> str:
        """Return the episode as one line of JSON.

        >>> Episode({"id": "a"}, source="Rain fell.", text="It rained.").to_json()[:24]
        '{"example": {"id": "a"},'
        """
        return json.dumps(self.to_record(), ensure_ascii=False)

    def to_record(self) -> dict[str, Any]:
        """Return the episode as the object in `to_json`'s line."""
        record = asdict(self)
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in record.items()}

    @classmethod
    def from_json(cls, line: str) -> Episode:
        """Rebuild an episode from `to_json`'s line."""
        return cls.from_record(json.loads(line))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Episode:
        """Rebuild an episode from the object in `to_json`'s line; what it lacks has its default."""
        arrays = {name: np.asarray(record[name], kind) for name, kind in ARRAYS.items() if record.get(name) is not None}
        return cls(**{**record, **arrays})
