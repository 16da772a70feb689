"""Log-probabilities and entropies from hidden states, without ever holding the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agents import losses
from agents.mask import Allowed, masked
from llm_gym.errors import LLMGymError

CHUNK = 256  # tokens whose logits exist at a time: enough to multiply at full speed, 50 MB at 50,000 tokens
LEGAL = 8192  # legal tokens, of all places together, whose logits exist at a time
IMPOSSIBLE = -1e9  # logit of an illegal token where two distributions are compared: of -inf the difference is none


class Output(NamedTuple):
    """What logits are made of: `weight` applied to `hidden`, and `bias`.

    Attributes:
        hidden: float32 `(N, H)`, divided by the temperature.
        weight: Of the output layer, float32 `(V, H)`.
        bias: Of the output layer, `(V,)` divided by the temperature, or None.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def token_stats(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each token and the entropy of its distribution, both `(N,)`, with gradient.

    Args:
        hidden: float32 `(N, H)`, divided by the temperature.
        weight: Of the output layer, float32 `(V, H)`.
        bias: Of the output layer, `(V,)` divided by the temperature, or None.
        tokens: int64 `(N,)`.
        chunk: Tokens whose logits exist at a time.
    """
    if not torch.is_grad_enabled() or weight.requires_grad or (bias is not None and bias.requires_grad):
        return _joined([_again(_stats, h, weight, bias, t) for h, t in _chunks(hidden, tokens, chunk)])
    return _FrozenHead.apply(hidden, weight, bias, tokens, chunk)


def constrained_stats(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    allowed: Sequence[np.ndarray | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `token_stats` does, where only some tokens are legal: the others have no probability and no logits.

    Args:
        hidden: float32 `(N, H)`, divided by the temperature.
        weight: Of the output layer, float32 `(V, H)`.
        bias: Of the output layer, `(V,)` divided by the temperature, or None.
        tokens: int64 `(N,)`.
        allowed: For each place the legal tokens, int64 `(k,)`; None for all.

    Raises:
        LLMGymError: One of `tokens` is illegal.
    """
    free = [place for place, ids in enumerate(allowed) if ids is None]
    bound = [place for place, ids in enumerate(allowed) if ids is not None]
    parts = [token_stats(hidden[free], weight, bias, tokens[free])] if free else []
    for places in _filled(bound, allowed):
        legal: Any = [allowed[place] for place in places]
        ids = torch.from_numpy(np.concatenate(legal)).to(hidden.device)
        sizes = torch.tensor([len(some) for some in legal], device=hidden.device)
        owners = torch.arange(len(places), device=hidden.device).repeat_interleave(sizes)
        parts.append(_again(_legal_stats, hidden[places], weight, bias, tokens[places], ids, owners))
    order = np.argsort([*free, *bound])
    log_probs, entropies = _joined(parts)
    return log_probs[order], entropies[order]


def divergence(
    student: Output, teacher: Output, beta: float, allowed: Allowed | None = None, chunk: int = CHUNK // 2
) -> torch.Tensor:
    """Return the generalised Jensen-Shannon divergence of two distributions at each place, `(N,)`, with gradient.

    It is `agents.losses.generalised_jsd` over the whole vocabulary.

    Args:
        student: Whose gradient is wanted.
        teacher: Of the same places and tokens; another width is no matter.
        beta: From 0, KL(teacher || student), to 1, KL(student || teacher).
        allowed: For each place the legal tokens, among which alone both are compared; None for all.
        chunk: Places whose logits exist at a time.
    """
    parts = []
    for start in range(0, len(student.hidden), chunk):
        places = slice(start, start + chunk)
        legal = None if allowed is None else allowed[places]
        arguments = (student.hidden[places], *student[1:], teacher.hidden[places], *teacher[1:], beta, legal)
        parts.append(_again(_divergence, *arguments))
    return torch.cat(parts)


def _divergence(
    hidden: Any, weight: Any, bias: Any, theirs: Any, their_weight: Any, their_bias: Any, beta: float, allowed: Any
) -> torch.Tensor:
    logits = functional.linear(hidden, weight, bias), functional.linear(theirs, their_weight, their_bias)
    student, teacher = (masked(values, allowed).clamp(min=IMPOSSIBLE).log_softmax(-1) for values in logits)
    return losses.generalised_jsd(student, teacher, beta)


def _filled(places: list[int], allowed: Any) -> Iterator[list[int]]:
    """Cut places into runs of at most `LEGAL` legal tokens, or of one place."""
    run: list[int] = []
    size = 0
    for place in places:
        if run and size + len(allowed[place]) > LEGAL:
            yield run
            run, size = [], 0
        run.append(place)
        size += len(allowed[place])
    if run:
        yield run


def _legal_stats(
    hidden: Any, weight: Any, bias: Any, tokens: Any, ids: Any, owners: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies `(n,)` among `ids`, int64 `(k,)`, whose places are `owners`, `(k,)`."""
    chosen = ids == tokens[owners]
    if int(chosen.sum()) != len(tokens):
        wrong = [token for place, token in enumerate(tokens.tolist()) if token not in ids[owners == place]]
        raise LLMGymError(f"token {wrong[0]} is illegal where it stands; sample it under the task's constraint")
    logits = (hidden[owners] * weight[ids]).sum(-1)
    logits = logits if bias is None else logits + bias[ids]
    nothing = logits.new_zeros(len(tokens))
    highest = (nothing - torch.inf).scatter_reduce(0, owners, logits.detach(), "amax")
    logits = logits - highest[owners]
    shares = logits.exp()
    total = nothing.index_add(0, owners, shares)
    mean = nothing.index_add(0, owners, shares * logits) / total
    return nothing.index_add(0, owners[chosen], logits[chosen]) - total.log(), total.log() - mean


def _chunks(hidden: torch.Tensor, tokens: torch.Tensor, chunk: int) -> Any:
    return zip(hidden.split(chunk), tokens.split(chunk), strict=True)


def _joined(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)


def _again(function: Any, *arguments: Any) -> Any:
    """Call a function whose inside is computed again for the gradient, instead of kept."""
    return checkpoint(function, *arguments, use_reentrant=False)


def _stats(hidden: Any, weight: Any, bias: Any, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _results(*_softmax(hidden, weight, bias), tokens)


class _FrozenHead(torch.autograd.Function):
    """`_stats` where the output layer is not trained.

    Either result of a token depends on one hidden state alone, so that its slope there, `(H,)`, is all that the way
    back needs: it is computed on the way out, while the logits exist. The entropy's costs a product of its own, which
    is left out until it is known to be wanted: logits are then computed a second time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, tokens: Any, chunk: int) -> Any:
        parts, slopes = [], []
        for h, t in _chunks(hidden, tokens, chunk):
            logits, shares, total = _softmax(h, weight, bias)
            parts.append(_results(logits, shares, total, t))
            slopes.append(weight[t] - (shares @ weight) / total)
        ctx.save_for_backward(hidden, weight, bias, torch.cat(slopes))
        ctx.chunk = chunk
        return _joined(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden, weight, bias, slopes = ctx.saved_tensors
        of_log_probs, of_entropies = gradients
        back = of_log_probs[:, None] * slopes
        if of_entropies.any():
            parts = zip(back.split(ctx.chunk), of_entropies.split(ctx.chunk), hidden.split(ctx.chunk), strict=True)
            for part, gradient, h in parts:
                logits, shares, total = _softmax(h, weight, bias)
                mean = _mean(shares, logits) / total
                part.sub_(gradient[:, None] * (((logits - mean) * shares) @ weight) / total)
        return back, None, None, None, None


def _softmax(hidden: Any, weight: Any, bias: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits less their maximum `(n, V)`, the softmax times its sum `(n, V)`, and that sum `(n, 1)`."""
    logits = functional.linear(hidden, weight, bias)
    logits.sub_(logits.detach().amax(-1, keepdim=True))
    shares = logits.exp()
    return logits, shares, shares.sum(-1, keepdim=True)


def _results(logits: Any, shares: Any, total: Any, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = logits.gather(-1, tokens[:, None]) - total.log()
    return log_probs[:, 0], (total.log() - _mean(shares, logits) / total)[:, 0]


def _mean(shares: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.bmm(shares[:, None], logits[:, :, None])[:, 0]
