"""Pure functions on token tensors: losses, advantages and divergences, each written once for all algorithms.

`(N,)` is a value a token, of several texts one after the other; `(T,)` a value a token of one text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from llm_gym.errors import LLMGymError

SMALLEST = 1e-4  # spread of a group's rewards, below which they are as good as equal
KL_ESTIMATORS = ("k1", "k2", "k3")
REDUCTIONS = ("token", "sequence", "constant")


# -------------------------------------------------------------------- policy


def policy_gradient(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the plain policy-gradient loss of each token, `(N,)` (Williams 1992)."""
    return -advantages * log_probs


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, clip: float, clip_high: float | None = None
) -> torch.Tensor:
    """Return PPO's clipped policy loss of each token, `(N,)` (Schulman et al. 2017).

    Args:
        log_ratio: `(N,)`, log-probability now less that of sampling; of the token, or of its text.
        advantages: `(N,)`.
        clip: How far below 1 the ratio may move.
        clip_high: How far above 1; None for the same (a larger one is DAPO's clip-higher, Yu et al. 2025).
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.min(ratio * advantages, clipped * advantages)


def clipped(log_ratio: torch.Tensor, clip: float, clip_high: float | None = None) -> torch.Tensor:
    """Return 1 for each token whose ratio is beyond what `clipped_surrogate` lets it be, else 0, `(N,)`."""
    ratio = log_ratio.detach().exp()
    return ((ratio < 1 - clip) | (ratio > 1 + (clip if clip_high is None else clip_high))).float()


def by_text(values: torch.Tensor, lengths: Sequence[int], mean: bool = False) -> torch.Tensor:
    """Return the sum (or the mean) over each text's tokens, given to each of them, `(N,)`.

    Of log-ratios, the sum is the log-ratio of the whole text (RLOO, Ahmadian et al. 2024), the mean that of GSPO
    (Zheng et al. 2025).

    >>> by_text(torch.tensor([1.0, 2.0, 5.0]), [2, 1]).tolist()
    [3.0, 3.0, 5.0]
    """
    parts = values.split(list(lengths))
    return torch.cat([(p.mean() if mean else p.sum()).expand(len(p)) for p in parts])


def token_weights(lengths: Sequence[int], kept: Sequence[bool], reduction: str, longest: int) -> list[torch.Tensor]:
    """Return the weights `(T,)` of each text's tokens, by which losses of tokens are summed to one.

    Args:
        lengths: Tokens of each text.
        kept: Which texts count; the others' weights are 0, and they count in no denominator.
        reduction: `token`: the mean over all tokens (DAPO); `sequence`: the mean over texts of the means over their
            tokens (Shao et al. 2024); `constant`: the sum, by texts times `longest` (Dr. GRPO, Liu et al. 2025).
        longest: The most tokens a text can have.

    >>> [w.tolist() for w in token_weights([1, 2], [True, True], "sequence", 4)]
    [[0.5], [0.25, 0.25]]
    """
    texts = max(1, sum(kept))
    tokens = max(1, sum(length for length, keep in zip(lengths, kept, strict=True) if keep))
    shares = {
        "token": [1 / tokens] * len(lengths),
        "sequence": [1 / (texts * length) for length in lengths],
        "constant": [1 / (texts * longest)] * len(lengths),
    }[reduction]
    return [torch.full((length,), share * keep) for length, share, keep in zip(lengths, shares, kept, strict=True)]


# -------------------------------------------------------------------- critic


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None = None
) -> torch.Tensor:
    """Return the squared error of each token's value, `(N,)`.

    Args:
        values: `(N,)`, with gradient.
        old_values: `(N,)`, at sampling.
        returns: `(N,)`.
        clip: How far a value may move in one batch, as in Stable-Baselines3's PPO; None for any.
    """
    if clip is not None:
        values = old_values + (values - old_values).clamp(-clip, clip)
    return (values - returns).square()


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Return the generalised advantage estimates of one whole text, `(T,)` (Schulman et al. 2015).

    After the last token nothing comes: its next value is 0.
    """
    advantages = torch.zeros_like(rewards)
    last, following = 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        last = float(rewards[t]) + gamma * following - float(values[t]) + gamma * gae_lambda * last
        following = float(values[t])
        advantages[t] = last
    return advantages


def rewards_to_go(rewards: torch.Tensor) -> torch.Tensor:
    """Return for each token the sum of the rewards from it on, `(T,)`.

    >>> rewards_to_go(torch.tensor([1.0, 0.0, 2.0])).tolist()
    [3.0, 2.0, 2.0]
    """
    return rewards.flip(0).cumsum(0).flip(0)


# -------------------------------------------------------------------- values of tokens


def dueling(values: torch.Tensor, chosen: torch.Tensor, logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the value of tokens from that of their place and their logits, `(N, j)` (Wang et al. 2016, eq. 9).

    Args:
        values: `(N, 1)`, of the place.
        chosen: `(N, j)`, logits of the tokens that are to be valued.
        logits: `(N, k)`, of all candidates, whose mean is taken off; -inf for what is none.
        scale: What a nat of logit is worth.

    >>> logits = torch.tensor([[3.0, 1.0, -torch.inf]])
    >>> dueling(torch.tensor([[5.0]]), logits, logits, 0.5).tolist()
    [[5.5, 4.5, -inf]]
    """
    open_ = logits > -torch.inf
    mean = logits.masked_fill(~open_, 0).sum(-1, keepdim=True) / open_.sum(-1, keepdim=True)
    return values + scale * (chosen - mean)


def double_q(online: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return what the target network thinks of the action that is best now, `(N,)` (van Hasselt et al. 2016).

    Args:
        online: Values `(N, k)` of the candidates, -inf for what is none.
        target: The target network's, `(N, k)`.
    """
    return target.gather(-1, online.argmax(-1, keepdim=True))[:, 0]


def q_targets(rewards: torch.Tensor, ahead: torch.Tensor, gamma: float, n_step: int | None) -> torch.Tensor:
    """Return what the value of each token of one whole text is to become, `(T,)`.

    The rewards of `n_step` tokens, and what stands ahead after them (Sutton 1988); after the last token nothing does.

    Args:
        rewards: `(T,)`.
        ahead: `(T,)`, the value of the place where each token was written.
        gamma: Discount of a token.
        n_step: None for all rewards that follow and no estimate (Monte Carlo).

    >>> rewards, ahead = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([9.0, 8.0, 4.0])
    >>> q_targets(rewards, ahead, 0.5, 1).tolist(), q_targets(rewards, ahead, 0.5, None).tolist()
    ([4.0, 3.0, 2.0], [1.0, 2.0, 2.0])
    """
    length = len(rewards)
    steps = length if n_step is None else min(n_step, length)
    targets = torch.zeros_like(rewards)
    for i in range(steps):
        targets[: length - i] += gamma**i * rewards[i:]
    targets[: length - steps] += gamma**steps * ahead[steps:]
    return targets


def huber(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of each token's value, `(N,)`: squared near the target, linear beyond 1 (Mnih et al. 2015)."""
    return torch.nn.functional.smooth_l1_loss(values, targets, reduction="none")


# -------------------------------------------------------------------- advantages


def whitened(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the values of all texts at mean 0 and standard deviation 1 over their tokens.

    Where they hardly differ they get the mean 0 alone: rounding is no difference to be blown up.
    """
    tokens = torch.cat(values)
    if len(tokens) < 2:
        return values
    mean, spread = tokens.mean(), tokens.std() + 1e-8
    return [(v - mean) / (spread if spread > SMALLEST else 1.0) for v in values]


def leave_one_out(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return each reward less the mean of the others in its group, `(N,)` (Kool et al. 2019; RLOO).

    >>> leave_one_out(torch.tensor([1.0, 3.0, 8.0]), 3).tolist()
    [-4.5, -1.5, 6.0]
    """
    groups = rewards.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups) / (group_size - 1)).flatten()


def group_advantages(
    rewards: torch.Tensor, token_rewards: list[torch.Tensor], group_size: int, token_coef: float, scale: bool = True
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
        scale: Whether to divide by the standard deviation; without, it is Dr. GRPO's (Liu et al. 2025).
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    placed = torch.stack([values.sum() for values in token_rewards]).view_as(groups)
    # The placed share is in the unit too: where all texts are worth the same little, it must not count without bound.
    unit = (groups.var(1, keepdim=True) + placed.square().mean(1, keepdim=True)).sqrt() + SMALLEST
    unit = unit if scale else torch.ones_like(unit)
    shared, units = (centred / unit).flatten(), unit.expand_as(groups).flatten()
    return [a + token_coef * values / u for a, values, u in zip(shared, token_rewards, units, strict=True)]


# -------------------------------------------------------------------- preferences


def bradley_terry(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each preference, `(N,)`, given the rewards of both texts.

    Bradley and Terry 1952. Where a reward is `beta` times the log-ratio of policy and reference, it is the loss of
    direct preference optimisation (Rafailov et al. 2023).
    """
    return -torch.nn.functional.logsigmoid(better - worse)


# -------------------------------------------------------------------- divergence


def generalised_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the generalised Jensen-Shannon divergence of distributions, `(N,)` (Agarwal et al. 2024, GKD).

    Args:
        student: Log-probabilities, `(N, V)`.
        teacher: Log-probabilities, `(N, V)`.
        beta: 0 for KL(teacher || student), which covers all that the teacher does; 1 for KL(student || teacher), which
            keeps to what it likes best; between them, the weight of the teacher in the mixture that both are compared
            with.
    """
    if beta in (0, 1):
        p, q = (teacher, student) if beta == 0 else (student, teacher)
        return (p.exp() * (p - q)).sum(-1)
    mixture = torch.logaddexp(student + math.log(1 - beta), teacher + math.log(beta))
    of_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return beta * of_teacher + (1 - beta) * (student.exp() * (student - mixture)).sum(-1)


def kl(log_probs: torch.Tensor, reference: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    """Return an estimate of KL(policy || reference) of each token that the policy drew, `(N,)`.

    Schulman 2020, "Approximating KL divergence". Averaged over what the policy draws, `k1` and `k3` are unbiased, and
    `k3` is never negative; `k2` is biased, but its gradient is that of the divergence, where that of `k1` is 0.

    Args:
        log_probs: `(N,)`, of the policy.
        reference: `(N,)`, of the reference.
        estimator: `k1`, `k2` or `k3`.

    Raises:
        LLMGymError: Another estimator.
    """
    log_ratio = reference - log_probs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        return log_ratio.expm1() - log_ratio  # not exp() - 1, which rounding makes negative near zero
    raise LLMGymError(f"kl_estimator={estimator!r} is unknown; expected one of {', '.join(KL_ESTIMATORS)}")
