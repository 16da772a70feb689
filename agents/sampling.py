"""From logits to tokens, by random numbers that the caller has drawn."""

from __future__ import annotations

import torch
from torch.nn import functional

BLOCK = 256  # tokens of the vocabulary that are taken together


def choose(logits: torch.Tensor, drawn: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token for each row, int64 `(N,)`, and its log-probability, float32 `(N,)`.

    Nothing is read back to the host.

    Args:
        logits: `(N, V)`, -inf where a token is illegal.
        drawn: A random number in [0, 1) for each row, float64 `(N, 1)`; None for the likeliest tokens.
    """
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest).exp_()
    if spare := -weights.shape[1] % BLOCK:
        weights = functional.pad(weights, (0, spare))
    blocks = weights.view(len(weights), -1, BLOCK)
    reached = blocks.sum(-1).double().cumsum(-1)
    actions = logits.argmax(-1, keepdim=True) if drawn is None else _inverted(blocks, reached, drawn)
    log_probs = logits.gather(-1, actions) - highest - reached[:, -1:].log()
    return actions[:, 0], log_probs[:, 0].float()


def _inverted(blocks: torch.Tensor, reached: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Invert the distribution: one random number a row, where `multinomial` draws one a token.

    First a block of the vocabulary is drawn, then a token in it, so that sums run over few numbers in float64.

    Args:
        blocks: The tokens' weights, `(N, B, BLOCK)`.
        reached: Running sums of the blocks, float64 `(N, B)`.
        drawn: Float64 `(N, 1)`.
    """
    drawn = drawn * reached[:, -1:]
    block = _first_above(reached, drawn)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
    return block * BLOCK + _first_above(inside, drawn - (reached.gather(-1, block) - inside[:, -1:]))


def _first_above(sums: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return where running sums `(N, K)` first exceed a value `(N, 1)`, which rounding may have put out of reach."""
    value = value.clamp(min=0).minimum(sums[:, -1:].nextafter(sums.new_zeros(1)))
    return torch.searchsorted(sums, value, right=True)  # right: never a place where nothing is added
