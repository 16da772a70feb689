"""Deep Q-learning of tokens (Mnih et al. 2015; for language models Snell et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy

from agents import losses
from agents.base import TextAlgorithm
from agents.policy import LLMPolicy
from agents.q_policy import QPolicy
from agents.replay import Experience, Replay, experience
from llm_gym.errors import LLMGymError, positive
from llm_gym.models.packing import pack


class DQN(TextAlgorithm):
    """Learn what each token is worth from texts that may be old, and write the best.

    What is acted by, and how a value is made of a language model's logits, is in `QPolicy`: ε-greedy among the tokens
    that the reference finds likeliest. Every batch of texts goes into a replay of whole episodes; then `gradient_steps`
    steps are made, each on `batch_size` episodes of it, by the Huber loss of all their tokens. What a token is to be
    worth are the rewards of the next `n_step` tokens and what a target network thinks of the best token after them
    (double Q-learning, van Hasselt et al. 2016); or, with None, all that was earned from it on (Monte Carlo), which
    needs no target network: a text's reward comes at its end, and one-step targets carry it back by a token for each
    copy of the network.

    Texts for a report are written with `exploration_final_eps` before and after training.

    Args:
        policy: `LLMPolicy`, which stands for `QPolicy` here.
        env: From `make_vec_env`.
        learning_rate: A number, or a schedule of the remaining progress.
        top_k: Candidates at each place, of the legal tokens; None for all of these.
        advantage_scale: What a nat of logit is worth in reward. The larger, the less a logit moves for what was learnt.
        n_step: Rewards in a target before an estimate takes over; None for Monte Carlo.
        gamma: Discount of a token; 1 suits texts, whose reward comes at the end.
        buffer_size: Episodes in the replay.
        learning_starts: Episodes in the replay before the first step.
        batch_size: Episodes of a step.
        gradient_steps: Steps after each batch of new texts.
        target_update_interval: Steps between two updates of the target network.
        tau: How far it moves then; 1 for a copy.
        exploration_fraction: Share of training over which exploration falls.
        exploration_initial_eps: Probability of a random candidate at the start.
        exploration_final_eps: The same at the end.
        kwargs: Arguments of `TextAlgorithm`.

    Raises:
        LLMGymError: An argument that cannot be.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"LLMPolicy": QPolicy}
    policy: QPolicy

    def __init__(
        self,
        policy: str | type[LLMPolicy],
        env: Any,
        learning_rate: Any = 1e-4,
        top_k: int | None = 16,
        advantage_scale: float = 1.0,
        n_step: int | None = None,
        gamma: float = 1.0,
        buffer_size: int = 1024,
        learning_starts: int = 0,
        batch_size: int = 16,
        gradient_steps: int = 2,
        target_update_interval: int = 8,
        tau: float = 1.0,
        exploration_fraction: float = 0.5,
        exploration_initial_eps: float = 0.2,
        exploration_final_eps: float = 0.05,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in {
            "batch_size": batch_size,
            "gradient_steps": gradient_steps,
            "target_update_interval": target_update_interval,
        }.items():
            positive(name, value)
        if learning_starts > buffer_size:
            raise LLMGymError(
                f"learning_starts={learning_starts} is more than buffer_size={buffer_size} holds: it would never learn"
            )
        for name, share in {
            "exploration_initial_eps": exploration_initial_eps,
            "exploration_final_eps": exploration_final_eps,
            "exploration_fraction": exploration_fraction,
        }.items():
            if not 0 <= share <= 1:
                raise LLMGymError(f"{name}={share} must be from 0 to 1")
        if n_step is not None and n_step < 1:
            raise LLMGymError(f"n_step={n_step} must be at least 1, or None for Monte Carlo targets")
        if not 0 < tau <= 1:
            raise LLMGymError(f"tau={tau} must be above 0 and at most 1, which is a copy")
        self.top_k, self.advantage_scale, self.n_step, self.gamma = top_k, advantage_scale, n_step, gamma
        self.buffer_size, self.learning_starts = buffer_size, learning_starts
        self.batch_size, self.gradient_steps = batch_size, gradient_steps
        self.target_update_interval, self.tau = target_update_interval, tau
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps, self.exploration_final_eps = exploration_initial_eps, exploration_final_eps
        self.exploration_rate, self.n_updates = exploration_initial_eps, 0
        self.replay = Replay(buffer_size)
        own = {"top_k": top_k, "scale": advantage_scale, "epsilon": exploration_final_eps}
        policy = QPolicy if policy is LLMPolicy else policy
        super().__init__(policy, env, learning_rate, policy_kwargs={**(policy_kwargs or {}), **own}, **kwargs)

    # ---------------------------------------------------------------- collecting

    def collect(self, callback: BaseCallback) -> bool:
        """Let the policy answer a batch of prompts, exploring as much as it is time to."""
        self.logger.record("rollout/exploration_rate", self.exploration_rate)
        with self.policy.exploring(self.exploration_rate):
            return super().collect(callback)

    def _remember(self) -> None:
        """Put what was just written into the replay, with what might have been written instead."""
        new = [experience(episode) for episode in self.episodes]
        for run in self._passes(new):
            candidates = self.policy.candidates(pack([e.segment for e in run]).to(self.device))
            if candidates is not None:
                parts = candidates.int().cpu().split([len(e.rewards) for e in run])
                for e, part in zip(run, parts, strict=True):
                    e.candidates = part.clone()
        self.replay.add(new)

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """Remember `self.episodes`, and make steps on what is remembered."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._remember()
        if len(self.replay) >= self.learning_starts:
            steps = [self._step(self.replay.sample(self.batch_size, self._order)) for _ in range(self.gradient_steps)]
            for name in steps[0]:
                self.logger.record(f"train/{name}", float(np.mean([step[name] for step in steps])))
        self.logger.record("train/n_updates", self.n_updates, exclude="tensorboard")
        self.exploration_rate = self._exploration(1 - self._current_progress_remaining)

    def _exploration(self, done: float) -> float:
        """Return the exploration rate after a share of training: it falls in a line, then stays."""
        share = min(1.0, done / self.exploration_fraction) if self.exploration_fraction else 1.0
        return self.exploration_initial_eps + share * (self.exploration_final_eps - self.exploration_initial_eps)

    def _step(self, batch: list[Experience]) -> dict[str, float]:
        """Make one optimiser step; return what to log, means over the tokens of the batch."""
        if self.n_step is not None and self.n_updates % self.target_update_interval == 0:
            self.policy.follow(self.tau if self.n_updates else 1.0)
        self.policy.optimizer.zero_grad()
        tokens = sum(len(e.rewards) for e in batch)
        sums: dict[str, float] = {}
        for members in self._passes(batch):
            values, targets = self._values_and_targets(members)
            loss = losses.huber(values, targets)
            (loss.sum() / tokens).backward()
            for name, found in {"loss": loss, "q_mean": values, "target_mean": targets}.items():
                sums[name] = sums.get(name, 0.0) + found.detach().sum().item() / tokens
        self.n_updates += 1
        return {**sums, "grad_norm": self._descend()}

    def _values_and_targets(self, members: list[Experience]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of all trained tokens, with gradient, and what they are to become, `(N,)` each."""
        packed = pack([e.segment for e in members]).to(self.device)
        candidates = None
        if members[0].candidates is not None:
            candidates = torch.cat([e.candidates for e in members]).long().to(self.device)  # type: ignore[misc]
        values, online = self.policy.q_values(packed, candidates)
        ahead = torch.zeros_like(values)
        if self.n_step is not None:
            with torch.no_grad(), self.policy.as_target():
                ahead = losses.double_q(online, self.policy.q_values(packed, candidates)[1])
        parts = zip(members, ahead.detach().split([len(e.rewards) for e in members]), strict=True)
        targets = [losses.q_targets(e.rewards.to(self.device), part, self.gamma, self.n_step) for e, part in parts]
        return values, torch.cat(targets)

    # ---------------------------------------------------------------- going on

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, exploration and the number of steps included."""
        return {**super().state(), "exploration_rate": self.exploration_rate, "n_updates": self.n_updates}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        super().set_state(state)
        self.exploration_rate, self.n_updates = state["exploration_rate"], state["n_updates"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the replay and the target network."""
        target = {f"target/{name}": value for name, value in self.policy.target_tensors.items()}
        return {**target, **{f"replay/{name}": value for name, value in self.replay.tensors().items()}}

    def set_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` returned."""
        under = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.policy.set_target(under("target/"))
        self.replay.set_tensors(under("replay/"))
