"""Pure loss functions on token tensors, shared by the algorithms and tested against values worked out by hand."""

from __future__ import annotations

import torch


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each of `tokens` `(N,)` under its logits `(N, V)`."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats of each distribution, `(N,)`, from logits `(N, V)`."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def clipped_surrogate(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return PPO's clipped policy loss of each token, `(N,)` (Schulman et al. 2017)."""
    ratio = (log_probs - old_log_probs).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def kl_k3(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the k3 estimate of KL(policy || reference) of each token, `(N,)`: never negative, unbiased.

    Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = reference - log_probs
    return log_ratio.expm1() - log_ratio  # not exp() - 1, which rounding makes negative near zero


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return rewards relative to their group, in units of the group's standard deviation, `(N,)`.

    Groups stand together: the first `group_size` rewards are one group. A group of equal rewards gets zeros
    (Shao et al. 2024, DeepSeekMath).
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()
