"""The best of several texts: what feedback can do without any training (Stiennon et al. 2020, Gao et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.policy import LLMPolicy
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Composite

CANDIDATES = 64  # written side by side; more would only need more memory


class BestOfN:
    """Lets a policy write several texts for each turn, and says the one that the feedback likes best.

    Args:
        policy: Who writes; it always samples.
        envs: The `TextVectorEnv` that it is going to act in.
        n: Texts to choose from.
        feedback: Who chooses; None for the environment's training feedback.

    Raises:
        LLMGymError: `n` is not positive.
    """

    def __init__(self, policy: LLMPolicy, envs: Any, n: int, feedback: Composite | None = None) -> None:
        if n < 1:
            raise LLMGymError(f"n={n} must be at least 1: the number of texts to choose from")
        self.policy, self.envs, self.n = policy, envs, n
        self.feedback = envs.feedback if feedback is None else feedback
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the next tokens of each row's text, and the policy's log-probabilities of them; see `LLMPolicy.write`.

        Raises:
            LLMGymError: `deterministic`: all texts would be the same.
        """
        if deterministic and self.n > 1:
            raise LLMGymError("the best of several greedy texts is the greedy text; leave out deterministic")
        beginning = rows[obs["tokens_left"][rows, 0] == self.envs.max_new_tokens]
        at_once = max(1, CANDIDATES // self.n)
        for start in range(0, len(beginning), at_once):
            self._plan(obs, beginning[start : start + at_once])
        tokens, log_probs = np.full((len(rows), most), -1), np.zeros((len(rows), most), np.float32)
        for place, row in enumerate(rows.tolist()):
            ids, chances = self._plans[row]
            size = min(most, len(ids))
            tokens[place, :size], log_probs[place, :size] = ids[:size], chances[:size]
            self._plans[row] = ids[size:], chances[size:]
        return tokens, log_probs

    def _plan(self, obs: dict[str, np.ndarray], rows: np.ndarray) -> None:
        repeated = {key: np.repeat(value[rows], self.n, 0) for key, value in obs.items()}
        count = len(rows) * self.n
        tokens, log_probs = self.policy.write(repeated, np.arange(count), self.envs.max_new_tokens)
        written = [ids[ids >= 0] for ids in tokens]
        turns = [self.envs.as_turn(int(row), ids) for row, ids in zip(np.repeat(rows, self.n), written, strict=True)]
        values = np.array([score.value for score in self.feedback(turns)]).reshape(len(rows), self.n)
        if (silent := np.isnan(values).all(1)).any():
            raise LLMGymError(
                f"the feedback abstained from all {self.n} texts of {silent.sum()} rows, so that none is the best; "
                "give the judge a longer deadline"
            )
        values = np.where(np.isnan(values), -np.inf, values)  # argmax would take NaN for the highest
        for row, best in zip(rows.tolist(), values.argmax(1) + np.arange(0, count, self.n), strict=True):
            self._plans[row] = written[best], log_probs[best]


class RandomAgent:
    """Writes tokens drawn evenly from the whole vocabulary, the least that an agent can do.

    Args:
        envs: The `TextVectorEnv` that it is going to act in.
        seed: Of what it draws.
    """

    def __init__(self, envs: Any, seed: int = 0) -> None:
        self.envs, self.generator = envs, np.random.default_rng(seed)

    def write(
        self, obs: dict[str, np.ndarray], rows: np.ndarray, most: int, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return random tokens, each row's up to its first stop token or its cap; see `LLMPolicy.write`."""
        size = int(self.envs.single_action_space.n)
        tokens = self.generator.integers(size, size=(len(rows), most))
        stopped = np.isin(tokens, self.envs.single_action_space.stop_ids).cumsum(1)
        after = np.pad(stopped[:, :-1], ((0, 0), (1, 0))) > 0
        after |= np.arange(most) >= obs["tokens_left"][rows]
        return np.where(after, -1, tokens), np.full(tokens.shape, -np.log(size), np.float32)
