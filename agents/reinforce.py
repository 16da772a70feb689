"""REINFORCE with a baseline, the oldest of policy gradients (Williams 1992)."""

from __future__ import annotations

from typing import Any

import torch

from agents import losses
from agents.policy_gradient import Batch, PolicyGradient, Sample
from llm_gym.errors import LLMGymError


class REINFORCE(PolicyGradient):
    """Make each token likelier by what followed from it, less what usually follows.

    The advantage of a token is the sum of the rewards from it on, less a running mean of the returns of past texts.
    There is no critic, and one optimiser step a batch.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`.
        learning_rate: A number, or a schedule of the remaining progress.
        baseline_decay: Of the running mean, a batch; 0 takes the last batch's mean.
        normalize_advantage: Whether advantages are brought to mean 0 and standard deviation 1 over the tokens of a
            batch. The baseline, the same for all tokens, then cancels: the batch's own mean stands in for it.
        kwargs: Arguments of `PolicyGradient`.

    Raises:
        LLMGymError: A decay outside of [0, 1).
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        baseline_decay: float = 0.9,
        normalize_advantage: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 0 <= baseline_decay < 1:
            raise LLMGymError(f"baseline_decay={baseline_decay} must be at least 0 and below 1")
        self.baseline_decay, self.normalize_advantage = baseline_decay, normalize_advantage
        self.baseline: float | None = None
        super().__init__(policy, env, learning_rate, **kwargs)

    def credit(self, samples: list[Sample]) -> None:
        """Set the advantages: what is still to come, less the baseline."""
        to_go = [losses.rewards_to_go(sample.rewards) for sample in samples]
        mean = torch.stack([values[0] for values in to_go]).mean().item()
        baseline = mean if self.baseline is None else self.baseline
        advantages = [values - baseline for values in to_go]
        self.baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * mean
        for sample, advantage in zip(
            samples, losses.whitened(advantages) if self.normalize_advantage else advantages, strict=True
        ):
            sample.advantages = advantage
        self.logger.record("train/baseline", baseline)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, the baseline included."""
        return {**super().state(), "baseline": self.baseline}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        super().set_state(state)
        self.baseline = state["baseline"]

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the plain policy gradient."""
        return losses.policy_gradient(log_probs, batch.advantages), {}
