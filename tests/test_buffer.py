from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer

import tiny
from agents import LLMPolicy, SequenceRolloutBuffer
from llm_gym.errors import LLMGymError

N_ENVS = 3
CONTEXT, VOCABULARY, CAP = 70, 260, 6


class Story:
    """A made-up environment: prompts of random length, episodes that end at random, and replies of a partner."""

    def __init__(self, seed: int, replies: bool) -> None:
        self.random, self.replies = np.random.default_rng(seed), replies
        self.rows = [self.prompt() for _ in range(N_ENVS)]
        self.starts = np.ones(N_ENVS, bool)
        self.obs = {
            "input_ids": np.zeros((N_ENVS, CONTEXT), np.int32),
            "roles": np.zeros((N_ENVS, CONTEXT), np.int8),
            "tokens_left": np.zeros((N_ENVS, 1), np.int32),
        }

    def prompt(self) -> dict[str, Any]:
        size = int(self.random.integers(1, 20))
        return {"ids": self.random.integers(0, VOCABULARY, size).tolist(), "roles": [1] * size, "left": CAP}

    def show(self) -> dict[str, np.ndarray]:
        """Return the observation, in arrays that are used again: who wants to keep them must copy."""
        for array in self.obs.values():
            array[:] = 0
        for i, row in enumerate(self.rows):
            self.obs["input_ids"][i, : len(row["ids"])] = row["ids"]
            self.obs["roles"][i, : len(row["ids"])] = row["roles"]
            self.obs["tokens_left"][i] = row["left"]
        return self.obs

    def act(self, actions: np.ndarray) -> None:
        for i, action in enumerate(actions):
            row = self.rows[i]
            row["ids"].append(int(action))
            row["roles"].append(2)
            row["left"] -= 1
            self.starts[i] = row["left"] == 0 or self.random.random() < 0.15
            if self.starts[i]:
                self.rows[i] = self.prompt()
            elif self.replies and self.random.random() < 0.4:
                reply = self.random.integers(0, VOCABULARY, self.random.integers(1, 5)).tolist()
                row["ids"] += reply
                row["roles"] += [1] * len(reply)

    def fill(self, *buffers: Any) -> None:
        """Fill all buffers with the same rollout; log-probabilities are all different, to know transitions by."""
        for buffer in buffers:
            buffer.reset()
        for _ in range(buffers[0].buffer_size):
            actions = self.random.integers(0, VOCABULARY, N_ENVS)
            rewards = self.random.normal(size=N_ENVS).astype(np.float32)
            values, log_probs = torch.randn(N_ENVS, 1, generator=GENERATOR), -torch.rand(N_ENVS, generator=GENERATOR)
            for buffer in buffers:
                obs, starts = self.show(), self.starts.copy()
                buffer.add(obs, actions.reshape(-1, 1), rewards, starts, values, log_probs)
            self.act(actions)
        last = torch.randn(N_ENVS, 1, generator=GENERATOR)
        for buffer in buffers:
            buffer.compute_returns_and_advantage(last_values=last, dones=self.starts.copy())


GENERATOR = torch.Generator().manual_seed(0)


def make(kind: type, steps: int = 11, **kwargs: Any) -> Any:
    observation = spaces.Dict(
        {
            "input_ids": spaces.Box(0, VOCABULARY - 1, (CONTEXT,), np.int32),
            "roles": spaces.Box(0, 2, (CONTEXT,), np.int8),
            "tokens_left": spaces.Box(0, CAP, (1,), np.int32),
        }
    )
    return kind(steps, observation, spaces.Discrete(VOCABULARY), "cpu", n_envs=N_ENVS, **{"gae_lambda": 0.9, **kwargs})


def by_log_prob(samples: Any) -> dict[str, torch.Tensor]:
    order = samples.old_log_prob.argsort()
    names = ("actions", "old_values", "old_log_prob", "advantages", "returns")
    return {name: getattr(samples, name).flatten()[order].float() for name in names}


def joined(buffer: Any, batch_size: int | None = None) -> dict[str, torch.Tensor]:
    """Return everything that one `get` serves, in the order of log-probabilities."""
    parts = list(buffer.get(batch_size))
    whole = {name: torch.cat([getattr(p, name).flatten() for p in parts]) for name in parts[0]._fields[1:]}
    order = whole["old_log_prob"].argsort()
    return {name: value[order].float() for name, value in whole.items()}


@pytest.fixture
def policy(tiny_model: str, tmp_path: Path) -> LLMPolicy:
    return tiny.make_policy(tiny.make_env(tiny_model, tmp_path), tiny_model)


# -------------------------------------------------------------------- the same as the stock buffer


@pytest.mark.parametrize("replies", [False, True])
def test_transitions_are_those_of_the_stock_buffer(replies) -> None:
    ours, stock = make(SequenceRolloutBuffer), make(DictRolloutBuffer)
    story = Story(0, replies)
    for _ in range(3):  # later rollouts begin in the middle of episodes
        story.fill(ours, stock)
        (served,) = ours.get()
        left, right = by_log_prob(served), joined(stock)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert served.observations.targets.tolist() == served.actions.flatten().tolist()


@pytest.mark.parametrize("steps", [3, 11])
@pytest.mark.parametrize("replies", [False, True])
def test_evaluation_and_gradients_are_those_of_the_stock_buffer(policy, steps, replies) -> None:
    with_warning = pytest.warns(UserWarning, match="shorter than an episode") if steps < CAP else _nothing()
    with with_warning:
        ours, stock = make(SequenceRolloutBuffer, steps), make(DictRolloutBuffer, steps)
    story = Story(1, replies)
    for _ in range(3):
        story.fill(ours, stock)
        answers, grads = [], []
        for buffer in (ours, stock):
            (samples,) = buffer.get()
            values, log_probs, entropy = policy.evaluate_actions(samples.observations, samples.actions.long().flatten())
            weights = samples.old_log_prob  # the same transition has the same weight
            policy.zero_grad()
            (weights * log_probs + weights**2 * values[:, 0] + 0.1 * entropy).sum().backward()
            grads.append(tiny.gradients(policy))
            order = samples.old_log_prob.argsort()
            answers.append(torch.stack([log_probs, values[:, 0], entropy], 1)[order].detach())
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
        tiny.assert_same(*grads)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


def test_rewards_added_after_the_step_are_served(policy) -> None:
    """SB3 adds the bootstrap of a truncation to the rewards before `add`; what counts is what is handed over."""
    ours, stock = make(SequenceRolloutBuffer, gamma=0.9), make(DictRolloutBuffer, gamma=0.9)
    Story(2, False).fill(ours, stock)
    assert np.array_equal(ours.rewards, stock.rewards) and np.array_equal(ours.episode_starts, stock.episode_starts)


# -------------------------------------------------------------------- minibatches


@pytest.mark.parametrize("batch_size", [1, 4, 7, 15, 33, None])
def test_each_transition_is_served_once_whatever_the_batch_size(batch_size) -> None:
    ours, stock = make(SequenceRolloutBuffer), make(DictRolloutBuffer)
    story = Story(3, True)
    for _ in range(2):
        story.fill(ours, stock)
        expected = joined(stock)
        for _ in range(3):  # once for every epoch
            served = joined(ours, batch_size)
            assert all(torch.equal(served[name], expected[name]) for name in expected)


def segments(buffer: Any) -> list[set[float]]:
    """Return the log-probabilities of each segment, worked out from where episodes start."""
    found = []
    for env in range(N_ENVS):
        for step in range(buffer.buffer_size):
            if step == 0 or buffer.episode_starts[step, env]:
                found.append(set())
            found[-1].add(float(buffer.log_probs[step, env]))
    return found


@pytest.mark.parametrize("batch_size", [4, 7, 15])
def test_minibatches_are_whole_segments_filled_up_to_the_batch_size(batch_size) -> None:
    buffer = make(SequenceRolloutBuffer)
    Story(4, False).fill(buffer)
    whole = segments(buffer)
    sizes = []
    for samples in buffer.get(batch_size):
        served = set(samples.old_log_prob.tolist())
        parts = [s for s in whole if s & served]
        assert served == set().union(*parts)  # no segment is split
        assert len(served) <= batch_size or len(parts) == 1  # a segment that is longer goes alone
        sizes.append(len(served))
    assert sum(sizes) == 33
    assert all(a + b > batch_size for a, b in zip(sizes, sizes[1:], strict=False))  # none could have been merged


def test_epochs_come_in_different_orders_which_the_seed_decides() -> None:
    def orders(seed: int, disturb: bool = False) -> list[list[float]]:
        np.random.seed(seed)
        buffer = make(SequenceRolloutBuffer)
        GENERATOR.manual_seed(0)
        Story(5, False).fill(buffer)
        if disturb:
            np.random.rand(5)
        return [[x for s in buffer.get(5) for x in s.old_log_prob.tolist()] for _ in range(2)]

    first, second = orders(0)
    assert first != second and sorted(first) == sorted(second)
    assert orders(0, disturb=True) == [first, second]
    assert orders(1) != [first, second]


def test_a_minibatch_of_sequences_runs_far_fewer_tokens() -> None:
    ours, stock = make(SequenceRolloutBuffer, 64), make(DictRolloutBuffer, 64)
    Story(6, False).fill(ours, stock)
    (packed,), (flat,) = ours.get(), stock.get()
    roles = flat.observations["roles"] > 0
    padded = len(roles) * int(roles.sum(1).max())
    own = sum(stretch.length for stretch in ours._stretches)
    assert packed.observations.tokens < padded / 2
    assert own < roles.sum() / 2  # and each token is stored once


def test_reset_empties_it() -> None:
    buffer = make(SequenceRolloutBuffer)
    story = Story(7, False)
    story.fill(buffer)
    buffer.reset()
    assert buffer.pos == 0 and not buffer.full and not buffer.log_probs.any()
    story.fill(buffer)
    assert joined(buffer)["actions"].shape == (33,)


# -------------------------------------------------------------------- messages


def test_a_rollout_shorter_than_an_episode_warns_once() -> None:
    with pytest.warns(UserWarning) as caught:
        buffer = make(SequenceRolloutBuffer, CAP - 1)
        story = Story(8, False)
        story.fill(buffer)
        story.fill(buffer)
        list(buffer.get())
    assert len(caught) == 1
    assert "n_steps=5 is shorter than an episode of up to 6 tokens" in str(caught[0].message)
    make(SequenceRolloutBuffer, CAP)  # long enough: warnings are errors here


def test_serving_a_rollout_that_is_not_complete_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="holds 0 of 11 steps"):
        next(make(SequenceRolloutBuffer).get())


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (3,)), spaces.Dict({"input_ids": spaces.Box(0, 1, (3,))})])
def test_other_observations_are_an_error(space) -> None:
    with pytest.raises(LLMGymError, match="needs a text environment's observations"):
        SequenceRolloutBuffer(4, space, spaces.Discrete(3))
