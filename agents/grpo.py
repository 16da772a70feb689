"""Group relative policy optimisation, which needs no critic (Shao et al. 2024, DeepSeekMath), and its variants."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from agents import losses
from agents.policy_gradient import Batch, PolicyGradient, Sample, placed_rewards
from llm_gym.errors import LLMGymError

RATIO_LEVELS = ("token", "sequence")


class GRPO(PolicyGradient):
    """Learn from the differences within groups of answers to the same prompt.

    The policy moves towards the answers that scored above their group's mean, in units of the group's spread. The KL
    penalty is a term of the loss. The published variants are options:

    - GRPO as published: `loss_reduction="sequence"`.
    - Dr. GRPO (Liu et al. 2025): `scale_rewards=False, loss_reduction="constant"`.
    - DAPO (Yu et al. 2025): the default reduction, `clip_range_high=0.28`, `mask_truncated=True`.
    - GSPO (Zheng et al. 2025): `ratio_level="sequence", loss_reduction="sequence"`.

    Args:
        policy: `LLMPolicy`.
        env: From `make_vec_env`; its number of rows is a multiple of `group_size`.
        learning_rate: A number, or a schedule of the remaining progress.
        group_size: Answers to each prompt.
        n_epochs: Passes over each batch.
        n_minibatches: Optimiser steps of each pass.
        clip_range: How far the ratio may move in one batch; it matters from the second step on.
        clip_range_high: How far it may move above 1; None for the same.
        scale_rewards: Whether advantages are in units of the group's standard deviation.
        token_coef: Weight of what a scorer blames on single tokens, such as a copied run of words, in the advantage of
            these alone (`agents.losses.group_advantages`).
        loss_reduction: `token`, `sequence` or `constant` (`agents.losses.token_weights`).
        ratio_level: Whether a ratio is that of a token, or of its text (the geometric mean over the tokens).
        mask_truncated: Whether texts that were cut off at the cap are left out of the loss.
        kwargs: Arguments of `PolicyGradient`.

    Raises:
        LLMGymError: An unknown `loss_reduction` or `ratio_level`.
    """

    kl_in_loss: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def __init__(
        self,
        policy: Any,
        env: Any,
        learning_rate: Any = 1e-4,
        group_size: int = 8,
        n_epochs: int = 1,
        n_minibatches: int = 1,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        scale_rewards: bool = True,
        token_coef: float = 20.0,
        loss_reduction: str = "token",
        ratio_level: str = "token",
        mask_truncated: bool = False,
        **kwargs: Any,
    ) -> None:
        if loss_reduction not in losses.REDUCTIONS:
            raise LLMGymError(
                f"loss_reduction={loss_reduction!r} is unknown; expected one of {', '.join(losses.REDUCTIONS)}"
            )
        if ratio_level not in RATIO_LEVELS:
            raise LLMGymError(f"ratio_level={ratio_level!r} is unknown; expected one of {', '.join(RATIO_LEVELS)}")
        self.n_epochs, self.n_minibatches = n_epochs, n_minibatches
        self.clip_range, self.clip_range_high = clip_range, clip_range_high
        self.scale_rewards, self.token_coef = scale_rewards, token_coef
        self.loss_reduction, self.ratio_level, self.mask_truncated = loss_reduction, ratio_level, mask_truncated
        super().__init__(policy, env, learning_rate, group_size, **kwargs)

    def credit(self, samples: list[Sample]) -> None:
        """Set the advantages, and take out what was cut off where that is wanted."""
        rewards = torch.tensor([sample.episode.reward for sample in samples])
        placed = [torch.from_numpy(placed_rewards(sample.episode)) for sample in samples]
        advantages = losses.group_advantages(rewards, placed, self.group_size, self.token_coef, self.scale_rewards)
        for sample, advantage in zip(samples, advantages, strict=True):
            sample.advantages = advantage.to(self.device)
            sample.kept = not (self.mask_truncated and sample.episode.finish_reason in ("length", "context"))

    def policy_loss(self, log_probs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the clipped policy loss."""
        log_ratio = log_probs - batch.old
        if self.ratio_level == "sequence":
            log_ratio = losses.by_text(log_ratio, batch.lengths, mean=True)
        loss = losses.clipped_surrogate(log_ratio, batch.advantages, self.clip_range, self.clip_range_high)
        return loss, {"clip_fraction": losses.clipped(log_ratio, self.clip_range, self.clip_range_high)}
