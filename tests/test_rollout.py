"""Playing examples: whole stretches of tokens and refilled rows give what stepping one by one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from agents import rollout
from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.episode import Episode

RULES = {"brevity": -1.0, "repetition": -1.0}


def records(episodes: list[Episode] | None) -> list[str]:
    assert episodes is not None
    for episode in episodes:
        assert episode.log_probs is not None and (episode.log_probs[episode.agent_mask] < 0).all()
        episode.log_probs = np.round(episode.log_probs, 4)  # rows that decode together move the last digits
    return [episode.to_json() for episode in episodes]


def stepped(policy: Any, envs: Any, examples: list[str]) -> list[Episode]:
    """Act and step, a token at a time, as any Gymnasium loop does."""
    envs.reset(options={"example": examples})
    log_probs: list[list[float]] = [[] for _ in examples]
    while not envs.done.all():
        running = np.flatnonzero(~envs.done)
        actions = np.zeros(envs.num_envs, np.int64)
        actions[running], chosen = policy.act(envs.observation(), running)
        for row, value in zip(running, chosen, strict=True):
            log_probs[row].append(value)
        envs.step(actions)
    for episode, values in zip(envs.episodes, log_probs, strict=True):
        episode.log_probs = np.zeros(len(episode.agent_mask), np.float32)
        episode.log_probs[episode.agent_mask] = values
    return envs.episodes


@pytest.mark.parametrize("stride", [1, 3, 16, 64])
def test_stretches_of_tokens_are_what_stepping_samples(ragged: str, tmp_path: Path, stride: int, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "STRIDE", stride)
    envs = tiny.text_envs(ragged, tmp_path, 5)
    examples = [envs.example_ids[i % 3] for i in range(5)]
    env = tiny.make_env(ragged, tmp_path, n_envs=5, max_new_tokens=20)
    expected = records(stepped(tiny.make_policy(env, ragged, seed=3), envs, examples))
    assert len({len(e.response_ids) for e in envs.episodes}) > 2
    assert records(play(tiny.make_policy(env, ragged, seed=3), envs, examples)) == expected


def test_a_stretch_stops_at_the_end_of_a_turn_and_at_its_cap(ragged: str, tmp_path: Path) -> None:
    env = tiny.make_env(ragged, tmp_path, n_envs=6, max_new_tokens=9)
    policy, obs, rows = tiny.make_policy(env, ragged), env.reset(), np.array([4, 0, 2, 5])
    obs["tokens_left"][2] = 2
    stops = env.action_space.stop_ids
    for most in (1, 4, 30):
        tokens, log_probs = policy.write(obs, rows, most)
        assert tokens.shape == log_probs.shape == (4, most)
        for row, written, values in zip(rows, tokens, log_probs, strict=True):
            count = int((written >= 0).sum())
            assert 1 <= count <= min(most, obs["tokens_left"][row, 0]) and (written[count:] == -1).all()
            assert (values[:count] < 0).all() and not np.isin(written[: count - 1], stops).any()
            assert written[count - 1] in stops or count == min(most, obs["tokens_left"][row, 0])


def test_more_examples_than_rows_give_the_episodes_that_a_row_each_gives(ragged: str, tmp_path: Path) -> None:
    many, few = tiny.text_envs(ragged, tmp_path, 11), tiny.text_envs(ragged, tmp_path, 3)
    examples = [many.example_ids[i % 6] for i in range(11)]
    policy = tiny.make_policy(tiny.make_env(ragged, tmp_path, max_new_tokens=20), ragged)
    expected = records(play(policy, many, examples, deterministic=True))
    assert len({len(e.response_ids) for e in many.episodes}) > 2
    assert records(play(policy, few, examples, deterministic=True)) == expected


def test_a_free_row_takes_the_next_example_while_the_others_go_on(ragged: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "STRIDE", 2)
    envs = tiny.text_envs(ragged, tmp_path, 3)
    policy = tiny.make_policy(tiny.make_env(ragged, tmp_path, max_new_tokens=20), ragged)
    widths, write = [], policy.write
    monkeypatch.setattr(policy, "write", lambda obs, rows, *rest: widths.append(len(rows)) or write(obs, rows, *rest))
    episodes = play(policy, envs, [envs.example_ids[i % 6] for i in range(20)])
    assert [e.example["id"] for e in episodes or []] == [envs.example_ids[i % 6] for i in range(20)]
    assert np.mean(np.array(widths) == 3) > 0.7  # all rows are busy but for the end


def test_all_that_ended_is_scored_in_one_call_however_often_rows_were_refilled(ragged: str, tmp_path: Path) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 2)
    calls, feedback = [], envs.feedback
    envs.feedback = lambda episodes: calls.append(len(episodes)) or feedback(episodes)
    policy = tiny.make_policy(tiny.make_env(ragged, tmp_path, max_new_tokens=20), ragged)
    episodes = play(policy, envs, envs.example_ids[:5]) or []
    assert calls == [5] and all(e.reward is not None for e in episodes)


def test_a_callback_counts_every_token_once_and_can_stop(ragged: str, tmp_path: Path) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 3)
    policy = tiny.make_policy(tiny.make_env(ragged, tmp_path, max_new_tokens=20), ragged)
    counts: list[int] = []
    episodes = play(policy, envs, envs.example_ids[:5], on_step=lambda n: counts.append(n) or True) or []
    assert sum(counts) == sum(len(e.response_ids) for e in episodes) and max(counts) <= 3
    assert play(policy, envs, envs.example_ids[:5], on_step=lambda n: False) is None
    assert len(play(policy, envs, envs.example_ids[:2]) or []) == 2  # what was broken off is forgotten
    assert envs.score() == []


def test_a_conversation_in_few_rows_is_the_one_in_many() -> None:
    kwargs = {"tokenizer": "sp-1k", "feedback": RULES, "max_new_tokens": 60}
    many, few = make_envs("Dialogue-v0", 7, "test", kwargs), make_envs("Dialogue-v0", 2, "test", kwargs)
    examples = many.example_ids[:7]
    found = [play(ReferenceAgent(envs), envs, examples) or [] for envs in (many, few)]
    assert [e.to_json() for e in found[0]] == [e.to_json() for e in found[1]]
    assert all(len(e.turns) > 2 for e in found[0])
