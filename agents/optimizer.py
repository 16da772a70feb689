"""Optimisers by name."""

from __future__ import annotations

from typing import Any

import torch

from llm_gym.errors import LLMGymError

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "adam": (torch.optim.Adam, {}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5}),
}
"""Optimisers by name, with the arguments they get if none are given; RMSprop's are those of SB3's A2C."""


def find_optimizer(
    name: str | type[torch.optim.Optimizer], kwargs: dict[str, Any] | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return an optimiser's class and its arguments; those of `OPTIMIZERS` where None are given.

    Raises:
        LLMGymError: An unknown name.
    """
    if not isinstance(name, str):
        usual = next((usual for known, usual in OPTIMIZERS.values() if known is name), {})
        return name, usual if kwargs is None else kwargs
    if name not in OPTIMIZERS:
        raise LLMGymError(f"optimizer_class={name!r} is unknown; expected one of {', '.join(OPTIMIZERS)}, or a class")
    found, usual = OPTIMIZERS[name]
    return found, usual if kwargs is None else kwargs
