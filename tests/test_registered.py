"""What every registered environment keeps, over the project's own small tokenizer."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import llm_gym
from agents import make_vec_env
from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.registration import find_task
from llm_gym.tasks import load_task

IDS = list(llm_gym.ENVIRONMENTS)
SMALL: dict[str, Any] = {"tokenizer": "sp-1k", "feedback": {"length": 0.1, "complete": 1.0, "repetition": -1.0}}


@pytest.mark.parametrize("cap", [1, 4])
@pytest.mark.parametrize("env_id", IDS)
def test_both_checkers_pass_without_a_warning(env_id: str, cap: int) -> None:
    check_env(gym.make(env_id, max_new_tokens=cap, **SMALL).unwrapped)
    sb3_check_env(gym.make(env_id, max_new_tokens=cap, **SMALL))


@pytest.mark.parametrize("env_id", IDS)
def test_a_spec_survives_json(env_id: str) -> None:
    env = gym.make(env_id, **SMALL)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    one, other = env.reset(seed=5), again.reset(seed=5)
    assert data_equivalence(one, other)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("env_id", IDS)
def test_ten_thousand_random_steps(env_id: str, mode: str) -> None:
    envs = gym.make_vec(env_id, num_envs=20, autoreset_mode=mode, max_new_tokens=8, **SMALL)
    rng = np.random.default_rng(0)
    observation, _ = envs.reset(seed=0)
    ended = 0
    for _ in range(500):
        actions = np.where(rng.random(20) < 0.1, 2, rng.integers(0, 1000, 20))
        observation, rewards, terminated, truncated, _ = envs.step(actions)
        assert rewards.dtype == np.float64 and np.isfinite(rewards).all() and not truncated.any()
        assert (observation["roles"] > 0).sum(1).max() <= envs.unwrapped.context
        ended += int(terminated.sum())
        if mode == "Disabled" and terminated.any():
            envs.reset(options={"reset_mask": terminated})
    assert ended > 100 and envs.observation_space.contains(observation)


@pytest.mark.parametrize("env_id", IDS)
def test_a_group_shares_its_prompt(env_id: str) -> None:
    envs = make_envs(env_id, 4, "train", SMALL)
    chosen = envs.example_ids[2]
    observation, infos = envs.reset(options={"example": chosen})
    assert infos["example"].tolist() == [chosen] * 4 and (observation["input_ids"] == observation["input_ids"][0]).all()


@pytest.mark.parametrize("env_id", IDS)
def test_splits_share_no_example_and_the_corpus_has_references(env_id: str) -> None:
    names = [set(make_envs(env_id, 1, split, SMALL).example_ids) for split in ("train", "validation", "test")]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2]) and min(map(len, names)) >= 8
    envs = make_envs(env_id, 8, "test", {**SMALL, "max_new_tokens": 400, "max_prompt_tokens": 700})
    episodes = play(ReferenceAgent(envs), envs, envs.example_ids)
    assert episodes is not None
    for episode in episodes:
        said, wanted = "".join(episode.text.split()), "".join(str(episode.reference).split())
        assert wanted.startswith(said[:100]) and (said == wanted or episode.finish_reason == "length")


@pytest.mark.parametrize("env_id", IDS)
def test_the_second_judge_rates_a_reference_highest_and_training_reads_it_only_where_it_can_be_checked(
    env_id: str,
) -> None:
    task = find_task(env_id)
    envs = make_envs(env_id, 1, "test", SMALL)
    example = envs.examples[0]
    judge = build({name: part for name, part in task.judge.items() if not name.endswith("similarity")})
    texts = [task.reference(example), "Something else altogether was said.", ""]
    scores = [judge([task.episode(example, text)])[0].value for text in texts]
    assert scores[0] > scores[1] >= scores[2]
    assert build(task.judge).reads_reference
    assert task.verifiable or not build(task.feedback).reads_reference
    assert not set(task.feedback) & set(task.judge)
    json.dumps([task.feedback, task.judge])


def test_a_path_instead_of_a_module_is_told() -> None:
    with pytest.raises(LLMGymError, match=r"unknown environment './my_task:Mine-v0' .*expected 'module:Name-v0'"):
        find_task("./my_task:Mine-v0")
    with pytest.raises(LLMGymError, match=r"task './my_task:Mine' cannot be loaded .*expected 'package.module:TaskC"):
        load_task("./my_task:Mine")


@pytest.mark.parametrize("env_id", IDS)
def test_its_docstring_is_its_page(env_id: str) -> None:
    page = type(find_task(env_id)).__doc__ or ""
    sections = ("Description", "Action Space", "Observation Space", "Starting State", "Rewards", "Episode End")
    for section in (*sections, "Information", "Arguments", "References", "Version History"):
        assert f"## {section}\n" in page, section


@pytest.mark.parametrize("env_id", IDS)
def test_it_serves_sb3(env_id: str) -> None:
    env = make_vec_env(env_id, n_envs=2, seed=0, max_new_tokens=2, **SMALL)
    env.reset()
    dones = np.zeros(2, bool)
    for _ in range(12):
        _, _, now, infos = env.step(np.array([50, 60]))
        dones |= now
        assert all("terminal_observation" in info for info, done in zip(infos, now, strict=True) if done)
    assert dones.all()
