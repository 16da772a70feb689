"""REINFORCE leave-one-out: the other answers to a prompt are the baseline (Kool et al. 2019, Ahmadian et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from agents import losses
from agents.policy_gradient import Batch, PolicyGradient, Sample


class RLOO(PolicyGradient):
    """Learn from how much better a text is than the others about the same prompt.

    A whole text is one action: its advantage is its reward, the KL penalty included, less the mean of the others in
    its group; its ratio is that of the whole text, clipped as PPO's. The loss is the mean over texts.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt.
        n_epochs: Passes over each batch.
        n_minibatches: Optimiser steps of each pass.
        clip_range: How far the ratio may move in one batch; it matters from the second step on.
        normalize_advantage: Whether advantages are brought to mean 0 and standard deviation 1 over the batch.
        kwargs: Arguments of `PolicyGradient`.
    """

    least_group: ClassVar[int] = 2
    loss_reduction = "sequence"

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        group_size: int = 8,
        n_epochs: int = 1,
        n_minibatches: int = 1,
        clip_range: float = 0.2,
        normalize_advantage: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_epochs, self.n_minibatches = n_epochs, n_minibatches
        self.clip_range, self.normalize_advantage = clip_range, normalize_advantage
        super().__init__(policy, env, learning_rate, group_size, **kwargs)

    def credit(self, samples: list[Sample]) -> None:
        """Set the advantages: one number a text, the same for all of its tokens."""
        rewards = torch.stack([sample.rewards.sum() for sample in samples])
        advantages = losses.leave_one_out(rewards, self.group_size)
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + losses.SMALLEST)
        for sample, advantage in zip(samples, advantages, strict=True):
            sample.advantages = advantage.expand(len(sample.old))

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the clipped loss of each text, once for each of its tokens."""
        log_ratio = losses.by_text(log_probs - batch.old, batch.lengths)
        loss = losses.clipped_surrogate(log_ratio, batch.advantages, self.clip_range)
        return loss, {"clip_fraction": losses.clipped(log_ratio, self.clip_range)}
