"""A rollout buffer that stores episodes once and serves them to stock SB3 as flat minibatches."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples

from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment, pack


@dataclass
class _Stretch:
    """What one rollout holds of one episode: `ids` as the observations showed them, and where the agent acted."""

    env: int
    start: int
    context: int
    ids: list[np.ndarray] = field(default_factory=list)
    length: int = 0
    predictors: list[int] = field(default_factory=list)

    def grow(self, ids: np.ndarray) -> None:
        self.ids.append(ids[self.length :].copy())
        self.length = len(ids)
        self.predictors.append(self.length - 1)


class SequenceRolloutBuffer(RolloutBuffer):
    """Drop-in for SB3's `DictRolloutBuffer` on text environments; `PPO` and `A2C` train through it unmodified.

    Each token is stored once, not once for every later step, and a minibatch is made of whole episode segments, as
    many as fit into `batch_size` transitions, so that one forward pass serves all steps of a segment. A segment is
    what the rollout holds of an episode; one that began before the rollout carries its beginning as context.

    Args:
        buffer_size: Steps in each environment.
        observation_space: Of a text environment.
        action_space: Of the same.
        device: PyTorch device.
        gae_lambda: Of generalised advantage estimation.
        gamma: Discount; 1 suits texts, whose reward comes at the end.
        n_envs: Number of environments.

    Raises:
        LLMGymError: The observation space is not a text environment's.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        keys = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
        if not {"input_ids", "roles", "tokens_left"} <= keys:
            raise LLMGymError(f"SequenceRolloutBuffer needs a text environment's observations, got {observation_space}")
        # SB3's `seed` reaches a buffer through numpy's global generator alone: one number is drawn from it.
        self._random = np.random.default_rng(np.random.randint(2**31))
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        longest = int(observation_space["tokens_left"].high.max())  # type: ignore[index]
        if buffer_size < longest:
            warnings.warn(
                f"n_steps={buffer_size} is shorter than an episode of up to {longest} tokens: it works, but each "
                "rollout reads the unfinished episodes anew",
                UserWarning,
                stacklevel=2,
            )

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.actions = np.zeros(shape, np.int64)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros(shape, np.float32))
        self._stretches: list[_Stretch] = []
        self._open: list[_Stretch] = []
        super(RolloutBuffer, self).reset()

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: torch.Tensor,
        log_prob: torch.Tensor,
    ) -> None:
        """Store one step of every environment; see SB3's `RolloutBuffer.add`."""
        lengths = (obs["roles"] > 0).sum(1)
        for env in range(self.n_envs):
            if self.pos == 0 or episode_start[env]:
                stretch = _Stretch(env, self.pos, context=int(lengths[env]))
                self._stretches.append(stretch)
                self._open[env : env + 1] = [stretch]
            self._open[env].grow(obs["input_ids"][env, : lengths[env]])
        self.actions[self.pos] = action.reshape(self.n_envs)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.detach().cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.detach().cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def get(self, batch_size: int | None = None) -> Generator[DictRolloutBufferSamples, None, None]:  # type: ignore[override]
        """Yield minibatches of whole segments in random order, each filled up to `batch_size` transitions."""
        if not self.full:
            raise LLMGymError(f"the rollout holds {self.pos} of {self.buffer_size} steps; collect it first")
        limit = batch_size or self.buffer_size * self.n_envs
        batch: list[_Stretch] = []
        size = 0
        for i in self._random.permutation(len(self._stretches)):
            stretch = self._stretches[i]
            if batch and size + len(stretch.predictors) > limit:
                yield self._samples(batch)
                batch, size = [], 0
            batch.append(stretch)
            size += len(stretch.predictors)
        yield self._samples(batch)

    def _samples(self, batch: list[_Stretch]) -> DictRolloutBufferSamples:  # type: ignore[override]
        steps = np.concatenate([s.start + np.arange(len(s.predictors)) for s in batch])
        envs = np.concatenate([np.full(len(s.predictors), s.env) for s in batch])
        return DictRolloutBufferSamples(
            observations=pack([self._segment(s) for s in batch]).to(self.device),  # type: ignore[arg-type]
            actions=self.to_torch(self.actions[steps, envs]),
            old_values=self.to_torch(self.values[steps, envs]),
            old_log_prob=self.to_torch(self.log_probs[steps, envs]),
            advantages=self.to_torch(self.advantages[steps, envs]),
            returns=self.to_torch(self.returns[steps, envs]),
        )

    def _segment(self, stretch: _Stretch) -> Segment:
        actions = self.actions[stretch.start : stretch.start + len(stretch.predictors), stretch.env]
        ids = np.concatenate([*stretch.ids, actions[-1:]])
        trained = np.zeros(len(ids) - stretch.context, bool)
        trained[np.asarray(stretch.predictors) + 1 - stretch.context] = True
        return Segment(ids[: stretch.context], ids[stretch.context :], trained)
