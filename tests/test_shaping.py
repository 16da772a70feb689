"""Potential-based shaping: rewards become dense, returns stay what they were."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

import llm_gym  # noqa: F401
from agents import GymVecEnv
from llm_gym.envs.shaping import Potential, PotentialShaping, VectorPotentialShaping, whole_sentences
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Scorer, build

SMALL: dict[str, Any] = {"tokenizer": "sp-1k", "feedback": {"length": 0.1, "complete": 1.0}, "max_new_tokens": 8}
POTENTIAL = {"length": 0.5, "distinct": 1.0, "copying": -1.0}


class Offset(Scorer):
    """Worth seven even if nothing was written."""

    def __call__(self, episodes):
        return [7.0 + len(e.text) for e in episodes]


class Silent(Scorer):
    """Always abstains."""

    def __call__(self, episodes):
        return [None for _ in episodes]


def actions(count: int, rows: int, seed: int = 0) -> np.ndarray:
    """Random tokens, of which one in ten ends the turn."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(300, 1000, (count, rows))
    return np.where(rng.random((count, rows)) < 0.1, 2, drawn)


def played(env: Any, tokens: np.ndarray, gamma: float = 1.0) -> tuple[list[float], list[np.ndarray]]:
    """Play a vector environment and return the returns of the episodes that ended, and the rewards of all steps."""
    mode = env.metadata["autoreset_mode"]
    env.reset(seed=0)
    returns, running, discount = [], np.zeros(env.num_envs), np.ones(env.num_envs)
    steps = []
    for row in tokens:
        _, rewards, terminated, truncated, _ = env.step(row)
        assert rewards.dtype == np.float64 and not truncated.any()
        steps.append(rewards)
        running += discount * rewards
        discount *= gamma
        returns += running[terminated].tolist()
        running[terminated], discount[terminated] = 0, 1
        if mode is AutoresetMode.NEXT_STEP:
            discount[terminated] = 1 / gamma  # the step that resets is none of the episode
        if mode is AutoresetMode.DISABLED and terminated.any():
            env.reset(options={"reset_mask": terminated})
    return returns, steps


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("every", ["token", "sentence"])
@pytest.mark.parametrize("env_id", ["TextSummary-v0", "Dialogue-v0"])
def test_the_return_of_every_episode_is_unchanged(env_id, every, mode):
    def made() -> Any:
        return gym.make_vec(env_id, num_envs=4, autoreset_mode=mode, **SMALL)

    tokens = actions(120, 4)
    plain, sparse = played(made(), tokens)
    shaped, dense = played(VectorPotentialShaping(made(), {f"{__name__}:Offset": 0.1, **POTENTIAL}, every), tokens)
    assert len(plain) >= 8 and shaped == pytest.approx(plain, abs=1e-9)
    assert np.count_nonzero(dense) > np.count_nonzero(sparse)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_with_a_discount_the_discounted_return_is_unchanged(mode):
    def made() -> Any:
        return gym.make_vec("TextSummary-v0", num_envs=3, autoreset_mode=mode, **SMALL)

    tokens = actions(60, 3)
    plain, _ = played(made(), tokens, 0.9)
    shaped, _ = played(VectorPotentialShaping(made(), POTENTIAL, gamma=0.9), tokens, 0.9)
    assert len(plain) > 5 and shaped == pytest.approx(plain, abs=1e-9)


def test_rewards_are_the_differences_of_the_scorers_values_worked_by_hand():
    env = PotentialShaping(gym.make("TextSummary-v0", **SMALL), f"{__name__}:Offset")
    env.reset(seed=0)
    tokenizer, written, before = env.unwrapped.tokenizer, [], 0
    for token in (500, 600, 700):
        written.append(token)
        _, reward, terminated, _, _ = env.step(token)
        now = len(tokenizer.decode(written).strip())
        assert reward == pytest.approx(now - before) and not terminated
        before = now
    _, reward, terminated, _, info = env.step(2)
    assert terminated and reward == pytest.approx(info["score"] - before)
    assert env.unwrapped.episode.reward == pytest.approx(info["score"])


def test_by_sentence_only_the_end_of_one_is_rewarded():
    env = PotentialShaping(gym.make("TextSummary-v0", **{**SMALL, "max_new_tokens": 40}), "length", every="sentence")
    env.reset(seed=0)
    ids = env.unwrapped.tokenizer("It rained all night. The road was", add_special_tokens=False)["input_ids"]
    rewards = [env.step(token)[1] for token in ids]
    assert [reward for reward in rewards if reward] == [4.0]
    assert rewards[-1] == 0 and env.step(2)[1] == pytest.approx(0.7 - 4.0)


def test_a_single_environment_is_a_row_of_the_vector_and_comes_back_from_its_spec():
    env = PotentialShaping(gym.make("TextSummary-v0", **SMALL), POTENTIAL, every="token", gamma=1.0)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    envs = VectorPotentialShaping(
        gym.make_vec("TextSummary-v0", num_envs=1, autoreset_mode="Disabled", **SMALL), POTENTIAL
    )
    for made in (env, again, envs):
        made.reset(seed=3)
    for (token,) in actions(8, 1, seed=4):
        one, other, row = env.step(token), again.step(token), envs.step(np.array([token]))
        assert one[1] == other[1] == row[1][0] and type(one[1]) is float and one[2] == row[2][0]
        if one[2]:
            break


def test_a_reset_of_some_rows_leaves_the_potential_of_the_others():
    envs = VectorPotentialShaping(
        gym.make_vec("TextSummary-v0", num_envs=2, autoreset_mode="Disabled", **SMALL), "length"
    )
    twin = VectorPotentialShaping(
        gym.make_vec("TextSummary-v0", num_envs=2, autoreset_mode="Disabled", **SMALL), "length"
    )
    for made in (envs, twin):
        made.reset(seed=0)
        made.step(np.array([500, 600]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    (_, one, *_), (_, other, *_) = envs.step(np.array([700, 700])), twin.step(np.array([700, 700]))
    assert one[1] == other[1]


def test_it_serves_stable_baselines():
    envs = gym.make_vec("TextSummary-v0", num_envs=3, autoreset_mode="Disabled", **SMALL)
    shaped = GymVecEnv(VectorPotentialShaping(envs, POTENTIAL))
    plain = GymVecEnv(gym.make_vec("TextSummary-v0", num_envs=3, autoreset_mode="Disabled", **SMALL))
    sums = {}
    for name, env in (("shaped", shaped), ("plain", plain)):
        env.seed(0)
        env.reset()
        running, ended = np.zeros(3), []
        for row in actions(30, 3):
            _, rewards, dones, _ = env.step(row)
            running += rewards
            ended += running[dones].tolist()
            running[dones] = 0
        sums[name] = ended
    assert sums["shaped"] == pytest.approx(sums["plain"], abs=1e-5) and len(sums["plain"]) > 3


def test_all_rows_are_scored_in_one_call(monkeypatch):
    envs = VectorPotentialShaping(
        gym.make_vec("TextSummary-v0", num_envs=4, autoreset_mode="Disabled", **SMALL), "length"
    )
    envs.reset(seed=0)
    calls, inner = [], envs.potential.feedback
    monkeypatch.setattr(envs.potential, "feedback", lambda episodes: calls.append(len(episodes)) or inner(episodes))
    envs.step(np.array([500, 600, 700, 2]))
    assert calls == [6]  # three texts, and what nothing would be worth


@pytest.mark.parametrize(
    ("text", "whole"),
    [("It rained", ""), ("It rained. The", "It rained."), ('"No!" she', '"No!"'), ("At 3.5 m. Up?", "At 3.5 m. Up?")],
)
def test_whole_sentences_worked_by_hand(text, whole):
    assert whole_sentences(text) == whole


def test_mistakes_are_told():
    env = gym.make("TextSummary-v0", **SMALL)
    envs = gym.make_vec("TextSummary-v0", num_envs=1, **SMALL)
    for make, message in (
        (lambda: PotentialShaping(env, "length", every="word"), "every='word' must be one of token, sentence"),
        (lambda: PotentialShaping(env, "length", gamma=0), "gamma=0 must be above 0"),
        (lambda: PotentialShaping(env, "lenght"), "did you mean 'length'"),
        (lambda: PotentialShaping(gym.make("CartPole-v1"), "length"), "is no text environment"),
        (
            lambda: VectorPotentialShaping(gym.make_vec("CartPole-v1", num_envs=1), "length"),
            "is no text vector environment",
        ),
    ):
        with pytest.raises(LLMGymError, match=message):
            make()
    silent = VectorPotentialShaping(envs, f"{__name__}:Silent")
    silent.reset(seed=0)
    with pytest.raises(LLMGymError, match="abstained from example"):
        silent.step(np.array([500]))


def test_the_potential_of_what_is_over_or_not_begun_is_nought():
    envs = gym.make_vec("TextSummary-v0", num_envs=2, autoreset_mode="Disabled", **SMALL)
    envs.reset(seed=0)
    potential = Potential(f"{__name__}:Offset", "token")
    assert potential(envs.unwrapped).tolist() == [0, 0]
    envs.step(np.array([500, 2]))
    assert potential(envs.unwrapped)[1] == 0 < potential(envs.unwrapped)[0]
    assert build(f"{__name__}:Offset").spec == potential.feedback.spec
