"""Log-probabilities and entropies in chunks equal those of whole logits, their gradients too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import head, losses

CLOSE = {"atol": 1e-9, "rtol": 1e-9}  # in float64, so that nothing but a wrong formula differs


def drawn(n: int, bias: bool, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(n, 8, generator=generator, dtype=torch.float64),
        "weight": torch.randn(50, 8, generator=generator, dtype=torch.float64),
        "bias": torch.randn(50, generator=generator, dtype=torch.float64) if bias else None,
        "tokens": torch.randint(50, (n,), generator=generator),
    }


def whole(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, tokens: torch.Tensor) -> Any:
    log_probs = (hidden @ weight.T + (0 if bias is None else bias)).log_softmax(-1)
    return log_probs[torch.arange(len(tokens)), tokens], -(log_probs.exp() * log_probs).sum(-1)


def gradients(function: Any, of: tuple[str, ...], upstream: torch.Tensor, arguments: dict[str, Any]) -> Any:
    leaves = {name: arguments[name].clone().requires_grad_() for name in of}
    results = function(**{**arguments, **leaves})
    sum((result * weights).sum() for result, weights in zip(results, upstream, strict=True)).backward()
    return [result.detach() for result in results] + [leaf.grad for leaf in leaves.values()]


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(n=st.integers(1, 20), chunk=st.integers(1, 9), bias=st.booleans(), both=st.booleans())
def test_chunks_equal_the_whole(n: int, chunk: int, bias: bool, both: bool) -> None:
    arguments = drawn(n, bias)
    upstream = torch.randn(2, n, generator=torch.Generator().manual_seed(1))
    upstream[1] *= both  # SB3 without an entropy bonus sends zeros
    found = gradients(lambda **a: head.token_stats(**a, chunk=chunk), ("hidden",), upstream, arguments)
    for mine, expected in zip(found, gradients(whole, ("hidden",), upstream, arguments), strict=True):
        torch.testing.assert_close(mine, expected, **CLOSE)


@pytest.mark.parametrize(
    "trained", [("weight",), ("hidden", "weight"), ("hidden", "bias"), ("hidden", "weight", "bias")]
)
def test_an_output_layer_that_is_trained_gets_its_gradient(trained: tuple[str, ...]) -> None:
    arguments, upstream = drawn(11, bias=True), torch.randn(2, 11, generator=torch.Generator().manual_seed(2))
    found = gradients(lambda **a: head.token_stats(**a, chunk=4), trained, upstream, arguments)
    for mine, expected in zip(found, gradients(whole, trained, upstream, arguments), strict=True):
        torch.testing.assert_close(mine, expected, **CLOSE)


def test_large_logits_neither_overflow_nor_lose_the_gradient() -> None:
    arguments = drawn(6, bias=False)
    arguments["hidden"] *= 300
    found = gradients(head.token_stats, ("hidden",), torch.ones(2, 6), arguments)
    assert all(torch.isfinite(value).all() for value in found)
    torch.testing.assert_close(found[0], whole(**arguments)[0], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_never_more_logits_than_a_chunk(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, linear = [], torch.nn.functional.linear

    def watched(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(hidden))
        return linear(hidden, *rest)

    monkeypatch.setattr(head.functional, "linear", watched)
    gradients(lambda **a: head.token_stats(**a, chunk=4), (trained,), torch.ones(2, 10), drawn(10, bias=False))
    assert max(sizes) == 4 and sum(sizes) == 20  # once on the way out, once on the way back


def test_slopes_are_not_differentiated_again() -> None:
    arguments = drawn(3, bias=False)
    hidden = arguments["hidden"].requires_grad_()
    log_probs, _ = head.token_stats(**arguments)
    (slope,) = torch.autograd.grad(log_probs.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_divergence_in_chunks_is_that_of_whole_distributions(beta: float, constrained: bool) -> None:
    """In value and gradient, from a teacher of another width; among legal tokens where some are not."""
    mine, theirs = drawn(9, bias=True), drawn(9, bias=False, seed=1)
    teacher = head.Output(torch.cat([theirs["hidden"]] * 2, 1), torch.cat([theirs["weight"]] * 2, 1), None)
    allowed = [None if i % 3 == 0 else np.arange(i, 30) for i in range(9)] if constrained else None
    found = []
    for chunk in (2, 100):
        hidden = mine["hidden"].clone().requires_grad_()
        student = head.Output(hidden, mine["weight"], mine["bias"])
        values = head.divergence(student, teacher, beta, allowed, chunk)
        (values * torch.arange(9)).sum().backward()
        found.append((values.detach(), hidden.grad))
    hidden = mine["hidden"].clone().requires_grad_()
    expected = []
    for i in range(9):
        legal = torch.arange(50) if allowed is None or allowed[i] is None else torch.from_numpy(allowed[i])
        own = (hidden[i] @ mine["weight"].T + mine["bias"])[legal].log_softmax(-1)
        other = (teacher.hidden[i] @ teacher.weight.T)[legal].log_softmax(-1)
        expected.append(losses.generalised_jsd(own[None], other[None], beta)[0])
    (torch.stack(expected) * torch.arange(9)).sum().backward()
    for values, gradient in found:
        torch.testing.assert_close(values, torch.stack(expected).detach(), **CLOSE)
        torch.testing.assert_close(gradient, hidden.grad, **CLOSE)
