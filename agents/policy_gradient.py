"""What the policy-gradient algorithms share: whole episodes, packed passes, the penalty for leaving the reference.

An algorithm says what a token is worth (`credit`) and what loss follows from it (`policy_loss`); the rest is here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance

from agents import losses
from agents.base import TextAlgorithm, segment
from agents.kl import KLController
from agents.policy import LLMPolicy
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, positive
from llm_gym.models.packing import Segment

RATIO_ERROR = 0.1  # mean difference of log-probabilities between sampling and training that is no rounding any more


@dataclass
class Sample:
    """An episode as training sees it. Tensors are float32 `(T,)` over the tokens that the agent wrote.

    Attributes:
        episode: The record.
        segment: Its tokens, for packing.
        old: Log-probabilities at sampling.
        rewards: What each token earned, the penalty for leaving the reference included where it is part of the reward.
        reference: Log-probabilities under the reference, or None without a penalty.
        values: The critic's, at sampling; zeros without a critic.
        advantages: What `credit` made of it.
        returns: What the critic is to predict; zeros without a critic.
        kept: Whether it is trained on.
    """

    episode: Episode
    segment: Segment
    old: torch.Tensor
    rewards: torch.Tensor
    reference: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kept: bool = True


@dataclass
class Batch:
    """Samples that run together, their tensors one after the other: `(N,)`, as in `Sample`; `lengths` are their T."""

    lengths: list[int]
    old: torch.Tensor
    reference: torch.Tensor | None
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class PolicyGradient(TextAlgorithm):
    """Learn from whole episodes by the gradient of their log-probabilities.

    Each iteration draws `n_envs / group_size` examples, lets the policy answer each `group_size` times, and makes
    `n_epochs` times `n_minibatches` optimiser steps on the answers. The reference of the KL penalty is the model as it
    was before training (its adapters off, or a frozen copy of what is trained).

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt.
        kl_coef: Weight of the KL penalty to the reference; 0 leaves it out.
        kl_estimator: `k1`, `k2` or `k3` (`agents.losses.kl`); None for the algorithm's own.
        kl_target: Divergence of a text, in nats, that `kl_coef` is adapted to keep; None for a fixed weight.
        kl_horizon: Texts over which it is adapted.
        ent_coef: Weight of the entropy bonus.
        kwargs: Arguments of `TextAlgorithm`.

    Raises:
        LLMGymError: An unknown `kl_estimator`, or a penalty that cannot be.
    """

    kl_in_loss: ClassVar[bool] = False
    """Whether the penalty is a term of the loss; else every token pays it out of its reward."""
    n_epochs: int = 1
    n_minibatches: int = 1
    vf_coef: float | None = None
    """Weight of the critic's loss; None without a critic."""
    clip_range_vf: float | None = None
    loss_reduction: str = "token"

    def __init__(
        self,
        policy: str | type[LLMPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        group_size: int = 1,
        kl_coef: float = 0.02,
        kl_estimator: str | None = None,
        kl_target: float | None = None,
        kl_horizon: float = 1000.0,
        ent_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.group_size, self.kl_coef, self.ent_coef = group_size, kl_coef, ent_coef
        self.kl_estimator = kl_estimator or ("k3" if self.kl_in_loss else "k1")
        if self.kl_estimator not in losses.KL_ESTIMATORS:
            raise LLMGymError(
                f"kl_estimator={kl_estimator!r} is unknown; expected one of {', '.join(losses.KL_ESTIMATORS)}"
            )
        positive("n_epochs", self.n_epochs)
        positive("n_minibatches", self.n_minibatches)
        self.kl_target, self.kl_horizon = kl_target, kl_horizon
        self.kl = KLController(kl_coef, kl_target, kl_horizon)
        super().__init__(policy, env, learning_rate, **kwargs)

    @property
    def needs_reference(self) -> bool:
        """Whether there is a penalty for leaving it."""
        return bool(self.kl_coef)

    # ---------------------------------------------------------------- what an algorithm says

    def credit(self, samples: list[Sample]) -> None:
        """Set the advantages of all samples, and with a critic the returns; may take some out by `kept`."""
        raise NotImplementedError

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token `(N,)`, and what to log, `(N,)` each."""
        raise NotImplementedError

    # ---------------------------------------------------------------- learning

    def train(self) -> None:
        """Make optimiser steps on `self.episodes`."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        samples = self._samples()
        self.credit(samples)
        first: dict[str, float] | None = None
        for _ in range(self.n_epochs):
            for minibatch in self._minibatches(samples):
                logged = self._step(minibatch)
                first = logged if first is None else first
        assert first is not None
        self._audit(first["ratio_error"])
        self._record({**logged, "ratio_error": first["ratio_error"]}, samples)

    def _samples(self) -> list[Sample]:
        samples = []
        for e in self.episodes:
            old = torch.from_numpy(e.log_probs[e.agent_mask]).to(self.device)  # type: ignore[index]
            zeros = torch.zeros_like(old)
            rewards = torch.from_numpy(token_rewards(e)).to(self.device)
            samples.append(Sample(e, segment(e), old, rewards, None, zeros, zeros, zeros))
        if self.kl.coef:
            with self.policy.reference():
                for sample, (_, log_probs, _) in zip(samples, self._read(samples), strict=True):
                    sample.reference = log_probs
                    if not self.kl_in_loss:
                        sample.rewards = sample.rewards - self.kl.coef * losses.kl(
                            sample.old, log_probs, self.kl_estimator
                        )
        if self.vf_coef is not None:
            for sample, (values, _, _) in zip(samples, self._read(samples), strict=True):
                sample.values = values
        return samples

    def _minibatches(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        """Yield the samples in `n_minibatches` parts, groups whole and, where there are several parts, shuffled."""
        groups = [samples[i : i + self.group_size] for i in range(0, len(samples), self.group_size)]
        order = np.arange(len(groups)) if self.n_minibatches == 1 else self._order.permutation(len(groups))
        for part in np.array_split(order, min(self.n_minibatches, len(groups))):
            yield [sample for i in part for sample in groups[i]]

    def _step(self, samples: list[Sample]) -> dict[str, float]:
        """Make one optimiser step; return what to log: losses as they were reduced, all else as means over tokens."""
        self.policy.optimizer.zero_grad()
        lengths = [len(sample.old) for sample in samples]
        longest = self._envs().task.max_turns * self._envs().max_new_tokens
        weights = losses.token_weights(lengths, [s.kept for s in samples], self.loss_reduction, longest)
        weight_of = {id(sample): weight for sample, weight in zip(samples, weights, strict=True)}
        sums: dict[str, float] = {}
        for members in self._passes(samples):
            weight = torch.cat([weight_of[id(sample)] for sample in members]).to(self.device)
            loss, stats = self._loss(members)
            (loss * weight).sum().backward()
            for name, values in stats.items():
                share = weight if name.endswith("loss") else torch.full_like(weight, 1 / sum(lengths))
                sums[name] = sums.get(name, 0.0) + (values.detach() * share).sum().item()
        return {**sums, "grad_norm": self._descend()}

    def _loss(self, members: list[Sample]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of each token and what to log, one value a token each."""
        batch = _joined(members)
        values, log_probs, entropies = self._evaluate(members)
        loss, stats = self.policy_loss(log_probs, batch)
        stats = {"policy_loss": loss, "entropy": entropies, "ratio_error": (log_probs - batch.old).abs(), **stats}
        if self.ent_coef:
            loss = loss - self.ent_coef * entropies
        if self.vf_coef is not None:
            stats["value_loss"] = losses.value_loss(values, batch.values, batch.returns, self.clip_range_vf)
            loss = loss + self.vf_coef * stats["value_loss"]
        if batch.reference is not None:
            stats["kl"] = losses.kl(log_probs, batch.reference)
            if self.kl_in_loss:
                loss = loss + self.kl.coef * losses.kl(log_probs, batch.reference, self.kl_estimator)
        return loss, {**stats, "loss": loss}

    def _audit(self, ratio_error: float) -> None:
        """Before the first step the policy that is trained is the one that sampled, so that every ratio is 1."""
        if ratio_error > RATIO_ERROR:
            warnings.warn(
                f"log-probabilities of sampling and training differ by {ratio_error:.3f} on average before any step: "
                "what is trained is not what wrote the texts (did weights change in between, or is the dtype coarse?)",
                UserWarning,
                stacklevel=3,
            )

    def _record(self, logged: dict[str, float], samples: list[Sample]) -> None:
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        if self.vf_coef is not None:
            join = lambda name: torch.cat([getattr(s, name) for s in samples]).cpu().numpy()  # noqa: E731
            self.logger.record("train/explained_variance", float(explained_variance(join("values"), join("returns"))))
        if self.kl.coef:
            spent = float(np.mean([(s.old - s.reference).sum().item() for s in samples]))  # type: ignore[operator]
            self.logger.record("train/kl_text", spent)
            self.logger.record("train/kl_coef", self.kl.coef)
            self.kl.update(spent, len(samples))

    # ---------------------------------------------------------------- going on

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, the weight of the penalty included."""
        return {**super().state(), "kl_coef": self.kl.coef}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        super().set_state(state)
        self.kl.coef = state["kl_coef"]


def token_rewards(episode: Episode) -> np.ndarray:
    """Return what each token of the agent's earned, float32 `(T,)`; their sum is the episode's reward.

    What a scorer places on single tokens is earned there, the rest of a turn's reward at the turn's last token.
    """
    mask = episode.agent_mask
    placed = np.zeros(len(mask), np.float32) if episode.token_rewards is None else episode.token_rewards
    rewards = placed.copy()
    ends = np.flatnonzero(mask & ~np.append(mask[1:], False))
    starts = np.concatenate([[0], ends[:-1] + 1])
    for start, end, reward in zip(starts, ends, episode.turn_rewards or [episode.reward or 0.0], strict=True):
        rewards[end] += reward - placed[start : end + 1].sum()
    return rewards[mask].astype(np.float32)


def placed_rewards(episode: Episode) -> np.ndarray:
    """Return the share of its reward that single tokens caused, float32 `(T,)` over the tokens that the agent wrote."""
    if episode.token_rewards is None:
        return np.zeros(int(episode.agent_mask.sum()), np.float32)
    return episode.token_rewards[episode.agent_mask]


def _joined(members: Sequence[Sample]) -> Batch:
    join = lambda name: torch.cat([getattr(sample, name) for sample in members])  # noqa: E731
    return Batch(
        lengths=[len(sample.old) for sample in members],
        old=join("old"),
        reference=None if members[0].reference is None else join("reference"),
        values=join("values"),
        advantages=join("advantages"),
        returns=join("returns"),
    )
