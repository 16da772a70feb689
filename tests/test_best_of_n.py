"""The best of several texts, and random ones: agents that do not learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from agents.best_of_n import BestOfN, RandomAgent
from agents.rollout import play
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Score

LETTERS = {"feedback": {"tiny:LetterShare": 1.0}}


def environment(model: str, folder: Path, rows: int = 6, **kwargs: Any) -> Any:
    env = tiny.make_env(model, folder, n_envs=rows, **{**LETTERS, **kwargs})
    return env.unwrapped.envs.unwrapped, tiny.make_policy(env, model)


def test_it_says_the_best_of_what_it_wrote(ragged, tmp_path, monkeypatch) -> None:
    envs, policy = environment(ragged, tmp_path)
    agent = BestOfN(policy, envs, 5)
    seen: list[float] = []
    score = envs.feedback.__call__

    def watched(turns: Any) -> Any:
        found = score(turns)
        seen.extend(s.value for s in found)
        return found

    agent.feedback = watched
    episodes = play(agent, envs, envs.example_ids)
    candidates = np.array(seen).reshape(-1, 5)
    assert len(candidates) == 6 and np.ptp(candidates, 1).max() > 0
    assert [e.reward for e in episodes] == pytest.approx(candidates.max(1).tolist(), abs=1e-6)


def test_a_text_that_the_judge_abstained_from_is_not_the_best(ragged, tmp_path) -> None:
    envs, policy = environment(ragged, tmp_path)
    agent = BestOfN(policy, envs, 3)
    seen: list[Any] = []

    def shy(turns: Any) -> Any:
        seen.extend(turns)
        return [Score(math.nan if i % 3 == 0 else float(i % 3)) for i in range(len(turns))]

    agent.feedback = shy
    episodes = play(agent, envs, envs.example_ids)
    assert [e.text for e in episodes] == [turn.text for turn in seen[2::3]]
    agent.feedback = lambda turns: [Score(math.nan) for _ in turns]
    with pytest.raises(LLMGymError, match="abstained from all 3 texts of 6 rows"):
        play(agent, envs, envs.example_ids)


def test_its_log_probabilities_are_the_policys(ragged, tmp_path) -> None:
    envs, policy = environment(ragged, tmp_path)
    for e in play(BestOfN(policy, envs, 3), envs, envs.example_ids):
        ids = np.concatenate([e.prompt_ids, e.response_ids])
        for place, told in enumerate(e.log_probs):
            size = len(e.prompt_ids) + place
            obs = {"input_ids": ids[None], "roles": (np.arange(len(ids)) < size)[None].astype(np.int8)}
            assert tiny.naive(policy, obs)[0][0, e.response_ids[place]].item() == pytest.approx(told, abs=1e-4)


def test_more_candidates_are_worth_more_and_one_is_the_policy(ragged, tmp_path) -> None:
    means = []
    for n in (1, 4, 16):
        envs, policy = environment(ragged, tmp_path)
        episodes = play(BestOfN(policy, envs, n), envs, envs.example_ids * 4)
        means.append(np.mean([e.reward for e in episodes]))
        if n == 1:
            envs, policy = environment(ragged, tmp_path)
            plain = play(policy, envs, envs.example_ids * 4)
            assert [e.text for e in plain] == [e.text for e in episodes]
    assert means[0] < means[1] < means[2]


def test_each_turn_of_a_conversation_is_chosen(tiny_model, tmp_path) -> None:
    env = tiny.make_vec_env("Dialogue-v0", n_envs=2, seed=0, tokenizer=tiny_model, max_prompt_tokens=700,
                            max_new_tokens=4, feedback={"goals": 1.0, "brevity": -1.0})  # fmt: skip
    envs = env.unwrapped.envs.unwrapped
    policy = tiny.make_policy(env, tiny_model)
    for e in play(BestOfN(policy, envs, 3), envs, envs.example_ids[:2]):
        assert len(e.turn_rewards) > 1 and e.over


def test_a_random_agent_draws_evenly_and_the_same_by_its_seed(ragged, tmp_path) -> None:
    envs, _ = environment(ragged, tmp_path, rows=64, data=tiny.write_data(tmp_path))
    rows = [e.response_ids for e in play(RandomAgent(envs, 3), envs, (envs.example_ids * 11)[:64])]
    again = [e.response_ids for e in play(RandomAgent(envs, 3), envs, (envs.example_ids * 11)[:64])]
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    drawn = np.concatenate(rows)
    assert drawn.min() < 20 and drawn.max() > envs.single_action_space.n - 20
    for ids in rows:
        assert not np.isin(ids[:-1], envs.single_action_space.stop_ids).any() and len(ids) <= envs.max_new_tokens


def test_what_makes_no_sense_is_an_error(ragged, tmp_path) -> None:
    envs, policy = environment(ragged, tmp_path)
    with pytest.raises(LLMGymError, match="n=0 must be at least 1"):
        BestOfN(policy, envs, 0)
    with pytest.raises(LLMGymError, match="the best of several greedy texts is the greedy text"):
        play(BestOfN(policy, envs, 2), envs, envs.example_ids, deterministic=True)
