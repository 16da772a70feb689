from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import tiny
from agents import GymVecEnv, make_vec_env
from llm_gym.errors import LLMGymError


class Truncate(gym.vector.VectorWrapper):
    """A time limit for vector environments."""

    def __init__(self, env: Any, limit: int) -> None:
        super().__init__(env)
        self.limit, self.steps = limit, np.zeros(env.num_envs, int)

    def reset(self, *, seed=None, options=None):
        self.steps[(options or {}).get("reset_mask", np.ones(self.num_envs, bool))] = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        self.steps += 1
        return obs, rewards, terminated, truncated | (self.steps >= self.limit), infos


@pytest.fixture
def env(tiny_model: str, tmp_path: Path) -> VecMonitor:
    return tiny.make_env(tiny_model, tmp_path, n_envs=3, max_new_tokens=4)


def stop(env: Any) -> int:
    return env.unwrapped.envs.tokenizer.eos_token_id


def prompts(obs: dict[str, np.ndarray]) -> list[list[int]]:
    return [ids[roles == 1].tolist() for ids, roles in zip(obs["input_ids"], obs["roles"], strict=True)]


# -------------------------------------------------------------------- stepping


def test_a_row_that_ends_is_reset_in_the_same_step_and_the_others_go_on(env) -> None:
    before = env.reset()
    obs, rewards, dones, infos = env.step(np.array([20, stop(env), 21]))
    assert dones.tolist() == [False, True, False]
    assert (obs["roles"][1] == 2).sum() == 0  # a new prompt, nothing written yet
    assert obs["tokens_left"][:, 0].tolist() == [3, 4, 3]
    for row in (0, 2):
        assert (obs["roles"][row] == 2).sum() == 1
        length = int((before["roles"][row] > 0).sum())
        assert obs["input_ids"][row, length] == [20, None, 21][row]
    assert rewards.dtype == np.float32
    assert rewards[[0, 2]].tolist() == [0, 0] and rewards[1] < 0


def test_the_last_observation_of_an_episode_is_in_the_info(env) -> None:
    before = env.reset()
    _, _, _, infos = env.step(np.array([20, stop(env), 21]))
    last = infos[1]["terminal_observation"]
    length = int((before["roles"][1] > 0).sum())
    assert last["input_ids"].shape == (68,)
    assert last["input_ids"][:length].tolist() == before["input_ids"][1, :length].tolist()
    assert last["input_ids"][length] == stop(env) and last["roles"][length] == 2
    assert last["tokens_left"].tolist() == [3]
    assert "terminal_observation" not in infos[0]


def test_the_last_observation_is_not_overwritten_by_later_steps(env) -> None:
    env.reset()
    _, _, _, infos = env.step(np.array([stop(env)] * 3))
    kept = infos[0]["terminal_observation"]
    copies = {key: value.copy() for key, value in kept.items()}
    for _ in range(5):
        env.step(np.array([30, 31, 32]))
    assert all(np.array_equal(kept[key], copies[key]) for key in kept)


def test_the_cap_terminates_and_does_not_truncate(env) -> None:
    env.reset()
    for _ in range(4):
        _, _, dones, infos = env.step(np.array([20, 21, 22]))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 3
    assert [info["finish_reason"] for info in infos] == ["length"] * 3


def test_an_outer_time_limit_truncates(env) -> None:
    limited = GymVecEnv(Truncate(env.unwrapped.envs, 2))
    limited.seed(0)
    before = limited.reset()
    limited.step(np.array([20, stop(env), 21]))
    obs, _, dones, infos = limited.step(np.array([20, 22, stop(env)]))
    assert dones.tolist() == [True, False, True]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[2]["TimeLimit.truncated"] is False  # it ended by itself in the last step
    assert (infos[0]["terminal_observation"]["roles"] == 2).sum() == 2
    assert (obs["roles"][[0, 2]] == 2).sum() == 0 and (obs["roles"][1] == 2).sum() == 1
    assert prompts(before)[0] != []


def test_infos_are_a_list_of_plain_dicts_a_row_each(env) -> None:
    env.reset()
    _, rewards, _, infos = env.step(np.array([20, stop(env), 21]))
    assert isinstance(infos, list) and [type(info) for info in infos] == [dict] * 3
    assert infos[0] == {} and infos[2] == {}
    info = infos[1]
    assert info["finish_reason"] == "stop" and isinstance(info["text"], str)
    assert info["score"] == pytest.approx(rewards[1])
    assert isinstance(info["parts"], dict) and set(info["parts"]) == {"brevity", "repetition"}
    assert info["example"].startswith("doc-")
    assert not any(key.startswith("_") for key in [*info, *info["parts"]])


def test_the_monitor_reports_return_and_length(env) -> None:
    env.reset()
    env.step(np.array([20, 21, 22]))
    _, rewards, _, infos = env.step(np.array([23, stop(env), 24]))
    assert infos[1]["episode"]["l"] == 2
    assert infos[1]["episode"]["r"] == pytest.approx(rewards[1], abs=1e-6)
    assert "episode" not in infos[0]


# -------------------------------------------------------------------- resetting


def test_seeds_are_used_once_and_forgotten(env) -> None:
    def fresh() -> list[list[int]]:
        return [p for _ in range(6) for p in prompts(env.reset())]

    env.seed(11)
    first = prompts(env.reset())
    after = fresh()
    assert len({tuple(p) for p in after}) > 1  # the seed is not set again at every reset
    env.seed(11)
    assert prompts(env.reset()) == first
    assert fresh() == after
    env.seed(12)
    env.reset()
    assert fresh() != after


def test_row_i_is_seeded_with_seed_plus_i(env, tiny_model, tmp_path) -> None:
    env.seed(40)
    env.reset()
    rows = [prompts(env.reset()) for _ in range(5)]
    alone = tiny.make_env(tiny_model, tmp_path, n_envs=1, max_new_tokens=4, seed=42)
    alone.reset()
    assert [p[2] for p in rows] == [prompts(alone.reset())[0] for _ in range(5)]


def test_the_seed_of_make_vec_env_counts(tiny_model, tmp_path) -> None:
    seen = []
    for seed in (5, 5, 6):
        env = tiny.make_env(tiny_model, tmp_path, n_envs=4, seed=seed)
        seen.append([prompts(env.reset()) for _ in range(4)])
    assert seen[0] == seen[1] != seen[2]


def test_options_choose_the_examples_once_and_are_forgotten(env) -> None:
    env.seed(0)
    env.set_options([{"example": "doc-3"}, {"example": "doc-0"}, {"example": "doc-3"}])
    obs = env.reset()
    assert [info["example"] for info in env.unwrapped.reset_infos] == ["doc-3", "doc-0", "doc-3"]
    assert prompts(obs)[0] == prompts(obs)[2] != prompts(obs)[1]
    drawn = set()
    for _ in range(8):
        env.reset()
        drawn.add(tuple(info["example"] for info in env.unwrapped.reset_infos))
    assert len(drawn) > 1


def test_one_option_counts_for_all_rows_and_a_row_may_have_none(env) -> None:
    env.set_options({"example": "doc-1"})
    env.reset()
    assert [info["example"] for info in env.unwrapped.reset_infos] == ["doc-1"] * 3
    env.set_options([{}, {"example": "doc-2"}, {}])
    env.reset()
    assert env.unwrapped.reset_infos[1]["example"] == "doc-2"


def test_reset_infos_follow_the_rows_that_were_reset(env) -> None:
    env.set_options({"example": "doc-1"})
    env.reset()
    seen = set()
    for _ in range(12):
        env.step(np.array([20, stop(env), 21]))
        seen.add(env.unwrapped.reset_infos[1]["example"])
    assert len(seen) > 1


# -------------------------------------------------------------------- SB3's other wishes


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_another_autoreset_mode_is_an_error(tiny_model, tmp_path, mode) -> None:
    envs = gym.make_vec(
        "TextSummary-v0",
        num_envs=2,
        autoreset_mode=mode,
        tokenizer=tiny_model,
        data=tiny.write_data(tmp_path),
        split="all",
        feedback=tiny.RULES,
    )
    with pytest.raises(LLMGymError, match="autoreset_mode='Disabled'"):
        GymVecEnv(envs)


def test_attributes_and_methods_are_reached_a_row_each(env) -> None:
    assert env.get_attr("max_new_tokens") == [4, 4, 4]
    assert env.get_attr("max_new_tokens", indices=[0, 2]) == [4, 4]
    assert env.get_attr("max_new_tokens", indices=1) == [4]
    env.set_attr("remark", "kept")
    assert env.get_attr("remark") == ["kept"] * 3
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    env.reset()
    assert len(env.env_method("observation", indices=[1])) == 1
    assert env.get_attr("metadata")[0]["autoreset_mode"] is AutoresetMode.DISABLED


def test_spaces_are_those_of_one_row(env) -> None:
    assert env.num_envs == 3
    assert env.observation_space["input_ids"].shape == (68,)
    assert env.action_space.n == len(env.unwrapped.envs.tokenizer)
    obs = env.reset()
    for row in range(3):
        assert env.observation_space.contains({key: value[row] for key, value in obs.items()})


def test_sb3s_evaluation_works_on_it(env, tiny_model) -> None:
    policy = tiny.make_policy(env, tiny_model)
    returns, lengths = evaluate_policy(
        policy, env, n_eval_episodes=7, deterministic=True, return_episode_rewards=True, warn=True
    )
    assert len(returns) == 7 and all(r <= 0 for r in returns)
    assert all(1 <= length <= 4 for length in lengths)


def test_closing_it_closes_the_environment_inside(env) -> None:
    env.close()
    assert env.unwrapped.envs.closed


def test_an_unknown_argument_is_an_error(tiny_model) -> None:
    with pytest.raises(TypeError, match="colour"):
        make_vec_env("TextSummary-v0", tokenizer=tiny_model, colour="red")
