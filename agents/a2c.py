"""Advantage actor-critic over whole texts (Mnih et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch

from agents import losses
from agents.policy_gradient import Batch, PolicyGradient, Sample


class A2C(PolicyGradient):
    """Let a critic say what to expect at each token, and learn from the surprise.

    Advantages are generalised advantage estimates token by token; the critic is a linear head on the same model. One
    optimiser step a batch. Stable-Baselines3's `A2C` cuts rollouts into steps, this one takes whole texts.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`.
        learning_rate: A number, or a schedule of the remaining progress.
        gamma: Discount; 1 suits texts, whose reward comes at the end.
        gae_lambda: Of generalised advantage estimation; 1 lets a text's reward count in full for its first tokens too.
        vf_coef: Weight of the critic's loss.
        normalize_advantage: Whether advantages are brought to mean 0 and standard deviation 1 over the tokens of a
            batch.
        kwargs: Arguments of `PolicyGradient`.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        vf_coef: float = 0.5,
        normalize_advantage: bool = False,
        **kwargs: Any,
    ) -> None:
        self.gamma, self.gae_lambda, self.vf_coef = gamma, gae_lambda, vf_coef
        self.normalize_advantage = normalize_advantage
        super().__init__(policy, env, learning_rate, **kwargs)

    def credit(self, samples: list[Sample]) -> None:
        """Set advantages and what the critic is to predict."""
        for s in samples:
            s.advantages = losses.generalised_advantages(s.rewards, s.values, self.gamma, self.gae_lambda)
            s.returns = s.advantages + s.values
        if self.normalize_advantage:
            for s, advantages in zip(samples, losses.whitened([s.advantages for s in samples]), strict=True):
                s.advantages = advantages

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the plain policy gradient."""
        return losses.policy_gradient(log_probs, batch.advantages), {}
