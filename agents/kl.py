"""How much a policy pays for moving away from its reference: a fixed price, or one that follows a target."""

from __future__ import annotations

from llm_gym.errors import LLMGymError

LARGEST_ERROR = 0.2  # of the divergence, relative to its target, as far as one update reacts to it


class KLController:
    """Weight of the KL penalty.

    Without a target it stays as it is. With one it rises while the texts' divergence is above the target and falls
    while it is below, by at most 20 % in `horizon` texts (Ziegler et al. 2019).

    Args:
        coef: The weight to begin with.
        target: Divergence of a whole text from the reference to aim at, in nats; None for a fixed weight.
        horizon: Texts over which the weight adapts.

    Raises:
        LLMGymError: A negative weight, a target without a weight to adapt, or a target or horizon that is not positive.
    """

    def __init__(self, coef: float, target: float | None = None, horizon: float = 1000.0) -> None:
        if coef < 0:
            raise LLMGymError(f"kl_coef={coef} must not be negative; 0 leaves the penalty out")
        if target is not None and (coef == 0 or target <= 0):
            raise LLMGymError(
                f"kl_target={target} needs to be positive, and kl_coef={coef} too, since it is what is adapted"
            )
        if horizon <= 0:
            raise LLMGymError(f"kl_horizon={horizon} must be a positive number of texts")
        self.coef, self.target, self.horizon = float(coef), target, horizon

    def update(self, divergence: float, texts: int) -> None:
        """Adapt the weight to the mean divergence of `texts` texts."""
        if self.target is None:
            return
        error = min(max(divergence / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        # More texts at once than the horizon has would overshoot, and turn the price into a reward.
        self.coef *= 1 + error * min(1.0, texts / self.horizon)
