"""What may be written in each row of an environment whose task constrains it."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_gym.choices import Choices, Constraint, Grammar, State
from llm_gym.tasks import Task


class Limits:
    """Follows what is written in each row, and knows what may come next.

    Args:
        task: The task, which constrains its tokens.
        tokenizer: A Hugging Face tokenizer.
        stops: Its stop tokens.
        constraint: What policies ask; it learns here what may be written.
        rows: Number of rows.

    Attributes:
        illegal: bool `(N,)`, which rows have written something illegal.
    """

    def __init__(self, task: Task, tokenizer: Any, stops: tuple[int, ...], constraint: Constraint, rows: int) -> None:
        self.task, self.tokenizer, self.stops, self.constraint = task, tokenizer, stops, constraint
        self.illegal = np.zeros(rows, bool)
        self._states: list[State | None] = [None] * rows
        self._grammars: dict[tuple[tuple[str, ...], str], Grammar] = {}

    def begin(self, row: int, example: dict[str, Any], turns: list[dict[str, str]], ids: np.ndarray) -> None:
        """Look up what may be written in the turn that begins in `row` after `ids`."""
        choices = self.task.choices(example, turns)
        self._states[row] = None if choices is None else self._grammar(choices).start(choices)
        self.illegal[row] = False
        self.constraint.begin(ids, self._states[row])

    def follow(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Move on by a token in each of `rows`; return which were illegal, bool `(n,)`."""
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if (state := self._states[row]) is not None:
                self._states[row] = state.after(token)
                self.illegal[row] = self._states[row] is None
        return self.illegal[rows]

    def mask(self, row: int) -> np.ndarray:
        """Return which tokens may be written next in a running row, int8 `(V,)`."""
        state = self._states[row]
        if state is None:
            return np.ones(len(self.tokenizer), np.int8)
        mask = np.zeros(len(self.tokenizer), np.int8)
        mask[state.allowed()] = 1
        return mask

    def encode(self, example: dict[str, Any], turns: list[dict[str, str]], text: str) -> list[int] | None:
        """Return the legal ids of `text`, None if it is none of what may be written."""
        choices = self.task.choices(example, turns)
        return None if choices is None else self._grammar(choices).encode(choices.pieces(text))

    def _grammar(self, choices: Choices) -> Grammar:
        key = (choices.texts, choices.separator)
        if key not in self._grammars:
            self._grammars[key] = Grammar(*key, self.tokenizer, self.stops)
        return self._grammars[key]
