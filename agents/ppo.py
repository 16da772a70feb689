"""Proximal policy optimisation over whole texts (Schulman et al. 2017; for language models Ziegler et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch

from agents import losses
from agents.a2c import A2C
from agents.policy_gradient import Batch


class PPO(A2C):
    """Actor-critic with several careful steps on each batch.

    Token-level advantages, a KL penalty that each token pays out of its reward, clipped ratios and, if wanted, clipped
    values. Stable-Baselines3's own `PPO` trains `LLMPolicy` too; this one takes whole texts, knows a reference, and
    places rewards on the tokens that earned them.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`.
        learning_rate: A number, or a schedule of the remaining progress.
        n_epochs: Passes over each batch.
        n_minibatches: Optimiser steps of each pass.
        clip_range: How far the ratio may move in one batch.
        clip_range_vf: How far a value may move in one batch; None for any.
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
        n_epochs: int = 2,
        n_minibatches: int = 2,
        clip_range: float = 0.2,
        clip_range_vf: float | None = None,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        vf_coef: float = 0.5,
        normalize_advantage: bool = True,
        **kwargs: Any,
    ) -> None:
        self.n_epochs, self.n_minibatches = n_epochs, n_minibatches
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        super().__init__(policy, env, learning_rate, gamma, gae_lambda, vf_coef, normalize_advantage, **kwargs)

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the clipped policy loss."""
        log_ratio = log_probs - batch.old
        loss = losses.clipped_surrogate(log_ratio, batch.advantages, self.clip_range)
        return loss, {"clip_fraction": losses.clipped(log_ratio, self.clip_range)}
