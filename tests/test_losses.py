from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.losses import bradley_terry, clipped_surrogate, generalised_jsd, group_advantages, kl, whitened

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "slope"),
    [
        (0.0, 3.0, -3.0, -3.0),  # ratio 1: the plain policy gradient
        (LOG2, 1.0, -1.2, 0.0),  # twice as likely and good: clipped, no further push
        (LOG2, -1.0, 2.0, 2.0),  # twice as likely and bad: not clipped
        (-LOG2, 1.0, -0.5, -0.5),  # half as likely and good: not clipped
        (-LOG2, -1.0, 0.8, 0.0),  # half as likely and bad: clipped
    ],
)
def test_clipped_surrogate_has_the_values_worked_out_by_hand(
    log_ratio: float, advantage: float, loss: float, slope: float
) -> None:
    old = torch.tensor([-1.5])
    new = (old + log_ratio).requires_grad_()
    result = clipped_surrogate(new - old, torch.tensor([advantage]), clip=0.2)
    result.sum().backward()
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert new.grad.item() == pytest.approx(slope, abs=1e-6)


def test_clipped_surrogate_keeps_one_loss_a_token() -> None:
    old = torch.zeros(4)
    loss = clipped_surrogate(old - old, torch.tensor([1.0, 2.0, 3.0, 4.0]), clip=0.2)
    assert loss.tolist() == [-1, -2, -3, -4]


def test_kl_k3_has_the_values_worked_out_by_hand() -> None:
    policy = torch.tensor([-1.0, -1.0, -1.0])
    reference = policy + torch.tensor([0.0, LOG2, -LOG2])
    expected = [0.0, 2 - 1 - LOG2, 0.5 - 1 + LOG2]
    assert kl(policy, reference).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.floats(-20, 0, width=32), st.floats(-20, 0, width=32))
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_kl_k3_is_never_negative_and_zero_only_when_equal(left: float, right: float) -> None:
    value = kl(torch.tensor([left]), torch.tensor([right])).item()
    assert value >= 0 or value > -1e-7 * abs(left - right)  # but for rounding
    if abs(left - right) > 1e-3:
        assert value > 0
    if left == right:
        assert value == 0


def test_kl_k3_is_an_unbiased_estimate() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    expectation = (p * kl(p.log(), q.log())).sum()
    torch.testing.assert_close(expectation, (p * (p / q).log()).sum())


def whole(rewards: list[float] | torch.Tensor, group_size: int) -> torch.Tensor:
    """Advantages of texts of one token, nothing placed."""
    rewards = torch.as_tensor(rewards)
    return torch.cat(group_advantages(rewards, [torch.zeros(1)] * len(rewards), group_size, 1.0))


def test_group_advantages_have_the_values_worked_out_by_hand() -> None:
    # standard deviations are sqrt(2), 0 and sqrt(8)
    expected = [-0.7070, 0.7070, 0, 0, 0.7071, -0.7071]
    assert whole([1.0, 3.0, 10.0, 10.0, 0.0, -4.0], 2).tolist() == pytest.approx(expected, abs=1e-4)


def test_all_tokens_of_a_text_share_what_is_about_the_whole() -> None:
    long, short = group_advantages(torch.tensor([1.0, 3.0]), [torch.zeros(3), torch.zeros(2)], 2, 1.0)
    assert (len(long), len(short)) == (3, 2)
    assert long.tolist() == [long[0]] * 3 and short.tolist() == [short[0]] * 2


def test_what_a_token_caused_counts_again_for_that_token() -> None:
    # The second text is worth 4 less for its second token.
    placed = [torch.zeros(3), torch.tensor([0.0, -4.0, 0.0])]
    first, second = group_advantages(torch.tensor([1.0, -1.0]), placed, 2, token_coef=3.0)
    unit = (2 + (0 + 16) / 2) ** 0.5  # variance of (1, -1), mean square of (0, -4)
    assert first.tolist() == pytest.approx([1 / unit] * 3, abs=1e-4)
    assert second.tolist() == pytest.approx([-1 / unit, -13 / unit, -1 / unit], rel=1e-3)


def test_a_group_that_differs_in_nothing_but_placed_values_keeps_a_sane_scale() -> None:
    placed = [torch.tensor([-3.0])] * 4
    advantages = torch.cat(group_advantages(torch.full((4,), -3.0), placed, 4, 1.0))
    assert advantages.tolist() == pytest.approx([-1.0] * 4, abs=1e-3)


def test_group_advantages_of_equal_rewards_are_exactly_zero() -> None:
    assert whole([-0.7] * 8, 4).tolist() == [0.0] * 8


def test_rounding_is_not_whitened_into_an_advantage() -> None:
    equal = whitened([torch.full((160,), 1.7), torch.full((320,), 1.7)])
    noisy = whitened([1e-7 * torch.randn(480, generator=torch.Generator().manual_seed(0))])
    assert max(values.abs().max() for values in (*equal, *noisy)) < 1e-5
    spread = torch.cat(whitened([torch.tensor([1.0, 2.0]), torch.tensor([6.0])]))
    assert spread.mean().abs() < 1e-6 and spread.std().item() == pytest.approx(1.0)


def test_group_advantages_do_not_mix_groups() -> None:
    first = torch.tensor([1.0, 2.0, 3.0])
    alone = whole(first, 3)
    beside = whole(torch.cat([first, torch.tensor([100.0, 0.0, 7.0])]), 3)[:3]
    assert torch.equal(alone, beside)
    torch.testing.assert_close(whole(first + 50, 3), alone)  # only differences count


def test_the_loss_of_a_pair_has_the_values_worked_out_by_hand() -> None:
    """Of log-ratios 2 and 1 with beta 0.5, and of equal ones: -log sigmoid(0.5), and log 2."""
    loss = bradley_terry(0.5 * torch.tensor([2.0, 1.0]), 0.5 * torch.tensor([1.0, 1.0]))
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), LOG2], abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)),  # of the policy from the teacher
        (1.0, 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)),
        # Both from the mixture (3/8, 5/8), halved.
        (0.5, (math.log(4 / 3) + math.log(4 / 5)) / 4 + (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)) / 2),
    ],
)
def test_generalised_jsd_has_the_values_worked_out_by_hand(beta: float, expected: float) -> None:
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert generalised_jsd(student, teacher, beta).tolist() == pytest.approx([expected], abs=1e-6)


@given(st.floats(0, 1, width=32), st.integers(0, 1000))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_generalised_jsd_is_zero_where_both_agree_and_positive_elsewhere(beta: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert generalised_jsd(student, student, beta).abs().max() < 1e-12
    assert (generalised_jsd(student, teacher, beta) > -1e-12).all()
