"""Pure loss functions on token tensors, shared by the algorithms and tested against values worked out by hand."""

from __future__ import annotations

import torch

SMALLEST = 1e-4  # spread of a group's rewards, below which they are as good as equal


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


def bradley_terry(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each preference, `(N,)`, given the rewards of both texts.

    Bradley and Terry 1952.
    """
    return -torch.nn.functional.logsigmoid(better - worse)


def group_advantages(
    rewards: torch.Tensor, token_rewards: list[torch.Tensor], group_size: int, token_coef: float
) -> list[torch.Tensor]:
    """Return an advantage for each token of each text, `(T_i,)` for the i-th.

    A reward counts relative to its group, in units of the group's standard deviation, for all tokens of the text alike
    (Shao et al. 2024, DeepSeekMath). What a single token caused counts again for that token: of a good sentence with a
    copied phrase in it, it is the phrase that is to go. A group of equal rewards, nothing placed, gets zeros.

    Args:
        rewards: `(N,)`, whole; the first `group_size` are one group.
        token_rewards: `(T_i,)` each, the share of a reward that single tokens caused.
        group_size: Texts in a group.
        token_coef: How often the latter counts again.
    """
    groups = rewards.view(-1, group_size)
    placed = torch.stack([values.sum() for values in token_rewards]).view_as(groups)
    # The placed share is in the unit too: where all texts are worth the same little, it must not count without bound.
    unit = (groups.var(1, keepdim=True) + placed.square().mean(1, keepdim=True)).sqrt() + SMALLEST
    shared, units = ((groups - groups.mean(1, keepdim=True)) / unit).flatten(), unit.expand_as(groups).flatten()
    return [a + token_coef * values / u for a, values, u in zip(shared, token_rewards, units, strict=True)]
