"""Which tokens are legal where a policy acts or has acted: from token ids alone, so that no mask is ever stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from llm_gym.choices import Constraint, State
from llm_gym.models.packing import Segment

GIVEN = 1  # in `roles`
Allowed = Sequence[np.ndarray | None]
"""For each place the legal tokens, int64 `(k,)`; None for all."""


def reached(constraint: Constraint, ids: np.ndarray, roles: np.ndarray) -> list[State | None]:
    """Return how far each observation, int `(N, C)`, has come in what may be written there."""
    lengths = (roles > 0).sum(1)
    starts = roles.shape[1] - (roles == GIVEN)[:, ::-1].argmax(1)  # behind the last token that was given
    rows = zip(ids, lengths.tolist(), starts.tolist(), strict=True)
    return [constraint.state(row[:length], start) for row, length, start in rows]


def open_states(states: Sequence[State | None]) -> list[np.ndarray | None]:
    """Return the legal tokens of each state; a text that has ended takes any."""
    tokens = [None if state is None else state.allowed() for state in states]
    return [None if ids is None or not len(ids) else ids for ids in tokens]


def following(states: Sequence[State | None], tokens: np.ndarray, going_on: np.ndarray) -> list[State | None]:
    """Return the states after a legal token each, of those rows that are `going_on`, bool `(n,)`."""
    rows = zip(states, tokens.tolist(), going_on.tolist(), strict=True)
    return [None if state is None else state.after(token) for state, token, wanted in rows if wanted]


def along(constraint: Constraint, segment: Segment) -> Iterator[np.ndarray | None]:
    """Yield the legal tokens at each trained token of a segment."""
    ids = np.concatenate([segment.context, segment.ids])
    state: State | None = None
    before = -2
    for place in np.flatnonzero(segment.trained).tolist():
        if place != before + 1:  # a turn begins, or what is trained of it
            state = constraint.state(ids[: len(segment.context) + place])
        yield None if state is None else state.allowed()
        state = None if state is None else state.after(int(segment.ids[place]))
        before = place


def masked(logits: torch.Tensor, allowed: Allowed | None) -> torch.Tensor:
    """Return logits `(N, V)` with -inf for what is illegal."""
    if allowed is None or all(ids is None for ids in allowed):
        return logits
    legal = torch.ones_like(logits, dtype=torch.bool)
    for row, ids in enumerate(allowed):
        if ids is not None:
            legal[row] = False
            legal[row, torch.from_numpy(ids).to(logits.device)] = True
    return logits.masked_fill(~legal, -torch.inf)
