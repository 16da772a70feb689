"""A language model whose logits are read as values of tokens, among the few that a reference finds likely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from agents.head import CHUNK
from agents.losses import dueling
from agents.mask import Allowed, masked
from agents.policy import LLMPolicy, Observation
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Packed


class QPolicy(LLMPolicy):
    """Acts ε-greedily by the values of tokens, `Q(s, a) = V(s) + scale (z_a - mean z)`.

    The candidates at each place are the `top_k` tokens that the reference, the model as it was before training, finds
    likeliest there; the mean is over them. `z` are the trained model's logits and V is the value head, which is the
    dueling form of Wang et al. (2016) with an adapted language model for the advantages, as ILQL (Snell et al. 2022)
    adds what it learnt to a language model's logits. Because V is the same for all tokens of a place, the logits alone
    decide what is written: the untrained policy writes what the reference would write greedily, a saved adapter acts
    without its value head, and nothing the size of a vocabulary is learnt from nothing. That candidates never leave the
    reference's keeps the maximum over actions from picking values that were never tested (Fujimoto et al. 2019, BCQ).

    The stochastic policy takes the best candidate, or with probability `epsilon` any of them, each as likely; the
    deterministic one takes the best. Logits and log-probabilities of sampling are those of this policy;
    `evaluate_actions` alone speaks of the language model that the logits belong to.

    Args:
        observation_space: Of a text environment.
        action_space: Of the same.
        lr_schedule: SB3's learning rate schedule.
        top_k: Candidates at each place, of the legal tokens where the task constrains them; None for all of these.
        epsilon: Probability of taking any candidate.
        scale: What a nat of logit is worth in reward.
        guide: Name of the model that proposes candidates, and folder of its adapter or None; None for those this
            policy starts from.
        kwargs: Arguments of `LLMPolicy`.

    Raises:
        LLMGymError: A `top_k`, `epsilon` or `scale` that cannot be.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        top_k: int | None = 16,
        epsilon: float = 0.05,
        scale: float = 1.0,
        guide: tuple[str, str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        if top_k is not None and top_k < 2:
            raise LLMGymError(f"top_k={top_k} leaves nothing to choose from; pass at least 2, or None for all tokens")
        if not 0 <= epsilon <= 1:
            raise LLMGymError(f"epsilon={epsilon} is a probability; pass a number from 0 to 1")
        if scale <= 0:
            raise LLMGymError(f"scale={scale} must be positive: a likelier token is worth more at the start")
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.top_k, self.epsilon, self.scale = top_k, epsilon, scale
        self._guide_name: tuple[str, str | None] = (self.model_name, self.adapter) if guide is None else guide
        self._target: dict[str, torch.Tensor] = {}
        # Not a submodule: it is neither trained nor saved.
        self.__dict__["guide"] = None if top_k is None else self._make_guide()

    guide: LLMPolicy | None

    def _make_guide(self) -> LLMPolicy:
        model, adapter = self._guide_name
        guide = LLMPolicy(
            self.observation_space, self.action_space, lambda _: 0.0, model=model, lora=None, adapter=adapter
        )  # fmt: skip
        guide.requires_grad_(False)
        return guide

    def to(self, *args: Any, **kwargs: Any) -> QPolicy:
        """Move the policy, and who proposes its candidates."""
        super().to(*args, **kwargs)
        if self.guide is not None:
            self.guide.to(*args, **kwargs)
        return self

    def forget(self) -> None:
        """Drop what has been read, by the guide too: a run gone on with begins with empty caches."""
        super().forget()
        if self.guide is not None:
            for engine in self.guide._engines.values():
                engine.clear()

    # ---------------------------------------------------------------- acting

    @contextmanager
    def exploring(self, epsilon: float) -> Iterator[None]:
        """Act with another `epsilon` inside the block."""
        kept, self.epsilon = self.epsilon, epsilon
        try:
            yield
        finally:
            self.epsilon = kept

    def _can_stride(self) -> bool:
        return False  # who proposes candidates reads along, token by token

    def _begin(self, obs: dict[str, np.ndarray], lengths: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        return self._beside(super()._begin(obs, lengths, rows), lambda guide: guide._begin(obs, lengths, rows))

    def _append(self, rows: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        return self._beside(super()._append(rows, tokens), lambda guide: guide._append(rows, tokens))

    def _beside(self, hidden: torch.Tensor, theirs: Any) -> torch.Tensor:
        """Return own hidden states with the guide's beside them, `(n, 2 H)`."""
        return hidden if self.guide is None else torch.cat([hidden, theirs(self.guide)], -1)

    def _legal_logits(self, hidden: torch.Tensor, allowed: Allowed | None) -> torch.Tensor:
        if self.guide is None:
            return self._behaviour(super()._legal_logits(hidden, allowed))
        mine, theirs = hidden.chunk(2, -1)
        proposed = self._proposed(self.guide._legal_logits(theirs, allowed))
        return self._behaviour(_among(super()._legal_logits(mine, allowed), proposed))

    def _next_logits(self, obs: Observation, engine: str) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, logits = super()._next_logits(obs, engine)
        if self.guide is not None:
            logits = _among(logits, self._proposed(self.guide._next_logits(obs, engine)[1]))
        return hidden, self._behaviour(logits)

    def _behaviour(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities `(N, V)` of acting ε-greedily by logits, -inf where there is no candidate."""
        open_ = logits > -torch.inf
        chances = open_ * (self.epsilon / open_.sum(-1, keepdim=True))
        best = logits.argmax(-1, keepdim=True)
        return chances.scatter_add(-1, best, torch.full_like(chances[:, :1], 1 - self.epsilon)).log()

    def _proposed(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the candidates int64 `(N, k)` among the guide's logits `(N, V)`."""
        return logits.topk(min(self.top_k or self.actions, self.actions), -1).indices

    # ---------------------------------------------------------------- values

    @torch.no_grad()
    def candidates(self, packed: Packed) -> torch.Tensor | None:
        """Return the candidates at each trained token, int64 `(N, k)`, -1 where fewer are legal; None for all."""
        if self.guide is None:
            return None
        hidden = self.guide._hidden(packed, "")
        allowed, found = self._allowed(packed), []
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = masked(self.guide.logits(hidden[part]), None if allowed is None else allowed[part])
            ids = self._proposed(logits)
            found.append(ids.masked_fill(logits.gather(-1, ids) == -torch.inf, -1))
        return torch.cat(found)

    def q_values(self, packed: Packed, candidates: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of the trained tokens `(N,)` and of the candidates `(N, k)`, with gradient.

        Args:
            packed: The episodes.
            candidates: As `candidates` returned them; with None the second is `(N, V)`. What is no candidate is -inf.
        """
        packed = packed.to(self.device)
        hidden = self._hidden_packed(packed)
        values, scaled, (weight, bias) = self._values(hidden), self._scaled(hidden), self._head()
        if candidates is None:
            logits = masked(nn.functional.linear(scaled, weight, bias), self._allowed(packed))
            chosen = logits.gather(-1, packed.targets[:, None])
        else:
            # The token that was written may be none of the candidates by rounding: it is valued all the same.
            ids = torch.cat([packed.targets[:, None], candidates.clamp(min=0)], -1)
            logits = torch.bmm(weight[ids], scaled[:, :, None])[..., 0]
            logits = logits if bias is None else logits + bias[ids]
            chosen, logits = logits[:, :1], logits[:, 1:].masked_fill(candidates < 0, -torch.inf)
        return dueling(values, chosen, logits, self.scale)[:, 0], dueling(values, logits, logits, self.scale)

    # ---------------------------------------------------------------- the target network

    def trained_tensors(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name: all that a target network differs in."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def follow(self, tau: float = 1.0) -> None:
        """Move the target network towards what is trained now, all the way with `tau=1`."""
        with torch.no_grad():
            for name, p in self.trained_tensors().items():
                kept = self._target.setdefault(name, p.detach().clone())
                kept.copy_(p) if tau == 1 else kept.lerp_(p, tau)

    @property
    def target_tensors(self) -> dict[str, torch.Tensor]:
        """The target network's copy of what is trained; empty before `follow`."""
        return self._target

    def set_target(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `target_tensors` returned."""
        self._target = {name: value.to(self.device) for name, value in tensors.items()}

    @contextmanager
    def as_target(self) -> Iterator[None]:
        """Be the target network inside the block."""
        with self._having(self._target):
            yield

    # ---------------------------------------------------------------- saving

    def saved_arguments(self) -> dict[str, Any]:
        """Return what `LLMPolicy` keeps, and who proposes candidates."""
        return {**super().saved_arguments(), "guide": self._guide_name}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        mine = {"top_k": self.top_k, "epsilon": self.epsilon, "scale": self.scale, "guide": self._guide_name}
        return {**super()._get_constructor_parameters(), **mine}


def _among(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return logits `(N, V)` with -inf for all but `ids`, int64 `(N, k)`."""
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, logits.gather(-1, ids))
