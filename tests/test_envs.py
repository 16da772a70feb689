"""The environment: registration, checkers, autoreset modes, vector against single, resets, errors, views."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from llm_gym.errors import LLMGymError
from llm_gym.feedback.rules import copied_words

ID = "TextSummary-v0"
RULES = {"complete": 0.5, "copying": -1.0, "repetition": -1.0, "brevity": {"weight": -1.0, "words": 5}}
MODES = list(AutoresetMode)
DOCUMENTS = [
    "Rain fell all night.",
    "The council met on Tuesday to talk about the new bridge over the river, and went home late.",
    "Cut the onions small, add salt, and let them rest for ten minutes.",
    "Snow.",
    "She asked the team to send the figures before the end of the week. Nobody did.",
]


@pytest.fixture(scope="module")
def kwargs(tiny_model, tmp_path_factory) -> dict[str, Any]:
    """Arguments of a small environment: tiny tokenizer, five documents, rules as feedback."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"id": f"d{i}", "document": text} for i, text in enumerate(DOCUMENTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(
        tokenizer=tiny_model,
        data=str(path),
        split="all",
        feedback=RULES,
        instruction="Sum up.",
        max_prompt_tokens=60,
        max_new_tokens=6,
    )


@pytest.fixture(scope="module")
def tokenizer(kwargs):
    from llm_gym.models.load import load_tokenizer

    return load_tokenizer(kwargs["tokenizer"])


@pytest.fixture
def scorers(tmp_path, monkeypatch) -> str:
    """Name of an importable module with scorers of a user."""
    (tmp_path / "user_scorers.py").write_text(
        "from llm_gym.feedback import Scorer\n"
        "class Broken(Scorer):\n"
        "    def __call__(self, episodes):\n"
        "        return [float('nan') for e in episodes]\n"
        "class Batches(Scorer):\n"
        "    sizes = []\n"
        "    def __call__(self, episodes):\n"
        "        self.sizes.append(len(episodes))\n"
        "        return [1.0 for e in episodes]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_scorers", raising=False)
    return "user_scorers"


def actions_for(env: Any, rng: np.random.Generator, n: int, stop: float = 0.15) -> np.ndarray:
    """Random tokens, the stop token with probability `stop`."""
    space = getattr(env, "single_action_space", None) or env.action_space
    tokens = rng.integers(0, space.n, n)
    tokens[rng.random(n) < stop] = space.stop_ids[0]
    return tokens


def same(a: Any, b: Any) -> bool:
    """Whether two observations or infos are equal: keys, types, dtypes, shapes and values."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return isinstance(b, np.ndarray) and b.dtype == object and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


def row(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """What a vector environment's infos say of row i, as a single environment would."""
    found = {}
    for key, value in infos.items():
        if not key.startswith("_") and infos[f"_{key}"][i]:
            value = row(value, i) if isinstance(value, dict) else value[i]
            found[key] = value.item() if isinstance(value, np.generic) else value
    return found


def pick(observation: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {key: value[i] for key, value in observation.items()}


def play(env: gym.Env, seed: int, steps: int = 20) -> list[Any]:
    """Everything that a single environment returns for a seed."""
    rng = np.random.default_rng(seed)
    trace: list[Any] = [env.reset(seed=seed)]
    for action in actions_for(env.unwrapped, rng, steps):
        trace.append(env.step(action))
        if trace[-1][2]:
            trace.append(env.reset())
    return trace


def same_traces(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(all(map(same, a, b)) for a, b in zip(one, other, strict=True))


# --- making -------------------------------------------------------------------------------------------------


def test_a_vector_environment_has_the_batched_spaces_of_the_single_one(kwargs):
    env, envs = gym.make(ID, **kwargs), gym.make_vec(ID, num_envs=3, **kwargs)
    assert envs.num_envs == 3
    assert envs.single_observation_space == env.observation_space and envs.single_action_space == env.action_space
    assert envs.action_space == gym.spaces.MultiDiscrete([env.action_space.n] * 3)
    assert envs.observation_space["input_ids"].shape == (3, 66)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_the_observation_space_is_what_the_page_says(kwargs, tokenizer):
    space = gym.make(ID, **kwargs).observation_space
    v = len(tokenizer)
    assert space == gym.spaces.Dict(
        {
            "input_ids": gym.spaces.Box(0, v - 1, (66,), np.int32),
            "roles": gym.spaces.Box(0, 2, (66,), np.int8),
            "tokens_left": gym.spaces.Box(0, 6, (1,), np.int32),
        }
    )


@pytest.mark.parametrize("vector", [False, True])
def test_a_name_with_the_module_registers_by_itself(kwargs, vector):
    make = "make_vec" if vector else "make"
    code = (
        "import sys, json, gymnasium as gym\n"
        "assert 'llm_gym' not in sys.modules\n"
        f"env = gym.{make}('llm_gym:TextSummary-v0', **json.loads(sys.argv[1]))\n"
        "env.reset(seed=1); print(env.unwrapped.spec.id)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(kwargs)], capture_output=True, text=True)
    assert done.stdout.strip() == ID, done.stderr


def test_a_spec_survives_json_and_makes_the_same_environment(kwargs):
    env = gym.make(ID, **kwargs)
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec
    assert same_traces(play(env, 5), play(gym.make(spec), 5))


def test_a_vector_spec_survives_json_and_makes_the_same_environment(kwargs):
    envs = gym.make_vec(ID, num_envs=3, autoreset_mode="SameStep", **kwargs)
    again = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert again.num_envs == 3 and again.unwrapped.autoreset_mode is AutoresetMode.SAME_STEP
    assert same(envs.reset(seed=9)[0], again.reset(seed=9)[0])
    rng = np.random.default_rng(0)
    for _ in range(15):
        actions = actions_for(envs, rng, 3)
        assert all(map(same, envs.step(actions), again.step(actions)))


@pytest.mark.parametrize("mode", MODES)
def test_the_autoreset_mode_is_an_enum_or_its_value(kwargs, mode):
    for given_mode in (mode, mode.value):
        envs = gym.make_vec(ID, num_envs=2, autoreset_mode=given_mode, **kwargs)
        assert envs.metadata["autoreset_mode"] is mode
    assert gym.make_vec(ID, num_envs=2, **kwargs).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("vectorization_mode", ["sync", "async"])
def test_gymnasiums_own_vectorisation_also_works(kwargs, vectorization_mode):
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode=vectorization_mode, **kwargs)
    ours = gym.make_vec(ID, num_envs=2, **kwargs)
    try:
        assert same(envs.reset(seed=4)[0], ours.reset(seed=4)[0])
        assert same(envs.step(np.array([7, 8]))[0], ours.step(np.array([7, 8]))[0])
    finally:
        envs.close()


# --- checkers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_new_tokens", [1, 6])
@pytest.mark.parametrize("check", [check_env, sb3_check_env])
def test_the_checkers_pass_without_a_warning(kwargs, check, max_new_tokens):
    env = gym.make(ID, **{**kwargs, "max_new_tokens": max_new_tokens}).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(env)


@pytest.mark.models
@pytest.mark.parametrize("max_new_tokens", [1, None])
@pytest.mark.parametrize("check", [check_env, sb3_check_env])
def test_the_checkers_pass_with_all_defaults(check, max_new_tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(gym.make(ID, max_new_tokens=max_new_tokens).unwrapped)


def test_gymnasiums_wrappers_count_episodes_under_every_mode(kwargs):
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(ID, num_envs=2, autoreset_mode=mode, **kwargs))
        envs.reset(seed=0)
        for _ in range(6):
            *_, terminations, _, infos = envs.step(np.array([9, 9]))
        assert terminations.all()
        infos = infos.get("final_info", infos) if mode is AutoresetMode.SAME_STEP and "episode" not in infos else infos
        assert infos["episode"]["l"].tolist() == [6, 6]


def test_a_mask_passes_through_a_wrapper_that_reads_it_too(kwargs):
    envs = gym.make_vec(ID, num_envs=2, autoreset_mode="Disabled", **kwargs)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    wrapped.reset(seed=0)
    wrapped.step(np.array([envs.single_action_space.stop_ids[0], 9]))
    wrapped.reset(options={"reset_mask": np.array([True, False])})  # SyncVectorEnv takes it out, which breaks this
    assert wrapped.step(np.array([9, 9]))[2].tolist() == [False, False]
    assert wrapped.episode_lengths.tolist() == [1, 2]


# --- autoreset modes, against gymnasium's own vector environment --------------------------------------------


def pair(kwargs: dict[str, Any], n: int, mode: AutoresetMode) -> tuple[Any, SyncVectorEnv]:
    ours = gym.make_vec(ID, num_envs=n, autoreset_mode=mode, **kwargs)
    return ours, SyncVectorEnv([lambda: gym.make(ID, **kwargs)] * n, autoreset_mode=mode)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 5), mode=st.sampled_from(MODES), cap=st.integers(1, 6))
def test_every_mode_equals_gymnasiums_vector_environment_of_single_ones(kwargs, seed, n, mode, cap):
    ours, theirs = pair({**kwargs, "max_new_tokens": cap}, n, mode)
    rng = np.random.default_rng(seed)
    assert all(map(same, ours.reset(seed=seed), theirs.reset(seed=seed)))
    ended = 0
    for _ in range(25):
        actions = actions_for(ours, rng, n, stop=0.3)
        mine, other = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine, other, strict=True):
            assert same(a, b)
        ended += mine[2].sum()
        if mode is AutoresetMode.DISABLED and mine[2].any():
            masks = [{"reset_mask": mine[2].copy()} for _ in range(2)]
            assert all(map(same, ours.reset(options=masks[0]), theirs.reset(options=masks[1])))
    assert ended


def test_next_step_begins_anew_on_the_step_after_the_end_and_ignores_that_action(kwargs):
    envs = gym.make_vec(ID, num_envs=2, **kwargs)
    envs.reset(seed=0)
    stop = envs.single_action_space.stop_ids[0]
    observation, rewards, terminations, _, infos = envs.step(np.array([stop, 9]))
    assert terminations.tolist() == [True, False] and rewards[0] != 0 and rewards[1] == 0
    assert infos["_text"].tolist() == [True, False] and infos["finish_reason"][0] == "stop"
    observation, rewards, terminations, _, infos = envs.step(np.array([stop, 10]))
    assert terminations.tolist() == [False, False] and rewards.tolist() == [0.0, 0.0]
    assert (observation["roles"][0] != 2).all() and observation["tokens_left"].tolist() == [[6], [4]]
    assert infos["_words_cut"].tolist() == [True, False] and "text" not in infos


def test_same_step_puts_the_end_aside_and_shows_the_new_episode(kwargs):
    envs = gym.make_vec(ID, num_envs=2, autoreset_mode="SameStep", **kwargs)
    envs.reset(seed=0)
    stop = envs.single_action_space.stop_ids[0]
    observation, rewards, terminations, _, infos = envs.step(np.array([9, stop]))
    assert terminations.tolist() == [False, True] and rewards[1] != 0
    assert observation["tokens_left"].tolist() == [[5], [6]]
    final = infos["final_obs"][1]
    assert infos["final_obs"][0] is None and envs.single_observation_space.contains(final)
    assert final["input_ids"][final["roles"] == 2].tolist() == [stop] and final["tokens_left"] == [5]
    assert infos["final_info"]["score"][1] == rewards[1] and "text" not in infos
    assert row(infos, 1)["example"] is not None


def test_a_disabled_row_rests_until_it_is_reset_by_mask(kwargs):
    envs = gym.make_vec(ID, num_envs=3, autoreset_mode="Disabled", **kwargs)
    envs.reset(seed=0)
    stop = envs.single_action_space.stop_ids[0]
    before = envs.step(np.array([9, stop, 9]))
    assert before[2].tolist() == [False, True, False]
    for i, token in enumerate([9, stop, 300]):
        observation, rewards, terminations, truncations, infos = envs.step(np.array([8, token, 8]))
        assert same(pick(observation, 1), pick(before[0], 1))
        assert rewards.tolist() == [0, 0, 0] and terminations.tolist() == [False, True, False]
        assert not truncations.any() and infos == {}
        assert observation["tokens_left"][:, 0].tolist() == [4 - i, 5, 4 - i]
    mask = np.array([False, True, False])
    after, infos = envs.reset(options={"reset_mask": mask, "example": "d3"})
    assert all(same(pick(after, i), pick(observation, i)) for i in (0, 2))
    assert after["tokens_left"][1] == 6 and row(infos, 1)["example"] == "d3" and row(infos, 0) == {}
    assert envs.step(np.array([9, 9, 9]))[2].tolist() == [False, False, False]
    assert envs.step(np.array([9, 9, 9]))[2].tolist() == [True, False, True]


def test_episodes_of_a_group_may_end_raggedly_and_each_is_scored_once(kwargs, scorers):
    envs = gym.make_vec(ID, num_envs=4, autoreset_mode="Disabled", **{**kwargs, "feedback": f"{scorers}:Batches"})
    envs.reset(options={"example": "d1"})
    stop = envs.single_action_space.stop_ids[0]
    rewards = [envs.step(np.array([stop if t == i else 10 + i for i in range(4)]))[1] for t in range(6)]
    assert np.array(rewards).sum(0).tolist() == [1, 1, 1, 1]
    assert [int(np.flatnonzero(column)[0]) for column in np.array(rewards).T] == [0, 1, 2, 3]


def test_episodes_that_end_together_are_scored_in_one_call(kwargs, scorers):
    envs = gym.make_vec(ID, num_envs=4, **{**kwargs, "feedback": f"{scorers}:Batches"})
    envs.reset(seed=0)
    for _ in range(6):
        rewards = envs.step(np.array([9, 10, 11, 12]))[1]
    assert rewards.tolist() == [1, 1, 1, 1]
    assert sys.modules[scorers].Batches.sizes == [4]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), cap=st.integers(1, 6))
def test_writing_whole_texts_and_scoring_them_together_gives_what_stepping_gives(kwargs, seed, n, cap):
    arguments = {**kwargs, "max_new_tokens": cap, "autoreset_mode": "Disabled"}
    stepped, written = (gym.make_vec(ID, num_envs=n, **arguments).unwrapped for _ in range(2))
    stepped.reset(seed=seed)
    written.reset(seed=seed)
    rng = np.random.default_rng(seed)
    running = np.ones(n, bool)
    while running.any():
        actions = actions_for(stepped, rng, n, stop=0.3)
        observation, _, terminations, _, _ = stepped.step(actions)
        rows = np.flatnonzero(running)
        written.end_turns(written.write(rows, actions[rows]))
        running = ~written.done
        assert same(observation, written.observation()) and same(terminations, ~running)
    assert [e.reward for e in written.episodes] == [None] * n
    written.score()
    assert [e.to_json() for e in written.episodes] == [e.to_json() for e in stepped.episodes]


def test_texts_written_one_after_the_other_are_scored_in_one_call_when_asked(kwargs, scorers):
    envs = gym.make_vec(ID, num_envs=3, **{**kwargs, "feedback": f"{scorers}:Batches"}).unwrapped
    envs.reset(seed=0)
    envs.write(np.arange(3), np.array([9, 10, 11]))
    for row in (2, 0, 1):
        ended = envs.write(np.array([row]), np.array([envs.single_action_space.stop_ids[0]]))
        assert ended.tolist() == [row]
        envs.end_turns(ended)
    assert [(row, turn.reward) for row, turn in envs.score()] == [(2, 1), (0, 1), (1, 1)]
    assert envs.score() == []
    assert sys.modules[scorers].Batches.sizes == [3]


def test_what_ended_before_a_masked_reset_is_still_scored_and_a_whole_reset_drops_it(kwargs):
    envs = gym.make_vec(ID, num_envs=3, **kwargs).unwrapped
    envs.reset(seed=0)
    stop = envs.single_action_space.stop_ids[0]
    envs.end_turns(envs.write(np.array([0, 2]), np.array([stop, stop])))
    first = envs.episodes[2]
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    envs.end_turns(envs.write(np.array([2]), np.array([stop])))
    assert [row for row, _ in envs.score()] == [0, 2, 2]
    assert first.reward is not None and envs.episodes[2].reward is not None and envs.episodes[2] is not first
    envs.reset()
    envs.end_turns(envs.write(np.array([1]), np.array([stop])))
    envs.reset()
    assert envs.score() == []


# --- vector and single --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 6), cap=st.integers(1, 6))
def test_a_row_of_the_vector_environment_is_the_single_environment(kwargs, seed, n, cap):
    arguments = {**kwargs, "max_new_tokens": cap}
    envs = gym.make_vec(ID, num_envs=n, autoreset_mode="Disabled", **arguments)
    singles = [gym.make(ID, **arguments) for _ in range(n)]
    rng = np.random.default_rng(seed)
    observation, infos = envs.reset(seed=seed)
    for i, env in enumerate(singles):
        assert all(map(same, env.reset(seed=seed + i), (pick(observation, i), row(infos, i))))
    done = np.zeros(n, bool)
    for _ in range(15):
        actions = actions_for(envs, rng, n)
        observation, rewards, terminations, _, infos = envs.step(actions)
        for i, env in enumerate(singles):
            if not done[i]:
                mine = (pick(observation, i), float(rewards[i]), bool(terminations[i]), False, row(infos, i))
                assert all(map(same, env.step(actions[i]), mine))
        done = terminations
        if done.any():
            observation, infos = envs.reset(options={"reset_mask": done})
            for i in np.flatnonzero(done):
                assert all(map(same, singles[i].reset(), (pick(observation, i), row(infos, i))))
            done = np.zeros(n, bool)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_same_seed_and_actions_give_the_same_everything(kwargs, seed):
    env = gym.make(ID, **kwargs)
    first = play(env, seed)
    assert same_traces(first, play(env, seed)) and same_traces(first, play(gym.make(ID, **kwargs), seed))


def test_ten_thousand_steps_keep_every_invariant(kwargs, tokenizer):
    n, steps = 100, 100
    envs = gym.make_vec(ID, num_envs=n, **kwargs)
    stops = set(envs.single_action_space.stop_ids)
    rng = np.random.default_rng(0)
    old, infos = envs.reset(seed=0)
    length = (old["roles"] > 0).sum(1)
    prompt, done, reasons = length.copy(), np.zeros(n, bool), set()
    for _ in range(steps):
        actions = actions_for(envs, rng, n, stop=0.1)
        new, rewards, terminations, truncations, infos = envs.step(actions)
        assert envs.observation_space.contains(new) and not truncations.any()
        assert rewards.dtype == np.float64 and terminations.dtype == bool and np.isfinite(rewards).all()
        assert (rewards[~terminations] == 0).all()
        for i in np.flatnonzero(done):  # a new episode: a prompt alone
            prompt[i] = length[i] = (new["roles"][i] > 0).sum()
            assert not terminations[i] and new["tokens_left"][i] == 6 and (new["roles"][i] != 2).all()
        for i in np.flatnonzero(~done):
            assert (new["input_ids"][i, : length[i]] == old["input_ids"][i, : length[i]]).all()
            assert new["input_ids"][i, length[i]] == actions[i]
            length[i] += 1
            assert new["tokens_left"][i] == old["tokens_left"][i] - 1 == 6 - (length[i] - prompt[i])
            assert terminations[i] == (actions[i] in stops or new["tokens_left"][i, 0] == 0)
        for i in range(n):
            roles = [1] * prompt[i] + [2] * (length[i] - prompt[i])
            assert new["roles"][i, : length[i]].tolist() == roles and not new["roles"][i, length[i] :].any()
            assert not new["input_ids"][i, length[i] :].any()
        for i in np.flatnonzero(terminations):
            info, episode = row(infos, i), envs.unwrapped.episodes[i]
            written = new["input_ids"][i, prompt[i] : length[i]]
            assert info["text"] == tokenizer.decode(written, skip_special_tokens=True).strip() == episode.text
            assert (episode.response_ids == written).all() and episode.agent_mask.tolist() == [True] * len(written)
            assert (episode.prompt_ids == new["input_ids"][i, : prompt[i]]).all()
            assert info["score"] == rewards[i] == episode.reward and type(episode.reward) is float
            assert info["finish_reason"] == ("stop" if actions[i] in stops else "length") == episode.finish_reason
            assert info["example"] == episode.example["id"] and set(info["parts"]) == set(RULES)
            reasons.add((info["finish_reason"], len(written)))
        old, done = new, terminations
    assert {("stop", 1), ("stop", 6), ("length", 6)} <= reasons


def test_what_a_copied_run_costs_stands_at_the_token_that_makes_it_one(kwargs):
    envs = gym.make_vec(
        ID, num_envs=1, **{**kwargs, "max_new_tokens": 80, "feedback": {"copying": -2.0, "brevity": -1.0}}
    )
    inner = envs.unwrapped
    envs.reset(options={"example": "d1"})
    source = " ".join(DOCUMENTS[1].split()[:5])
    ids = inner.tokenizer(f"Well, {source}", add_special_tokens=False)["input_ids"]
    assert len(ids) < inner.max_new_tokens
    for token in [*ids, inner.single_action_space.stop_ids[0]]:
        _, rewards, *_ = envs.step(np.array([token]))
    episode = inner.episodes[0]
    placed = np.flatnonzero(episode.token_rewards)
    texts = [inner.tokenizer.decode(episode.response_ids[: i + 1], skip_special_tokens=True) for i in placed]
    assert [copied_words(text, episode.source) for text in texts] == [4, 5]
    assert episode.token_rewards[placed] == pytest.approx([-4, -2 * (5**0.5 - 2)], abs=1e-5)
    assert rewards[0] == pytest.approx(episode.token_rewards.sum() - episode.parts["brevity"], abs=1e-5)


def test_a_single_environment_gives_python_values(kwargs):
    env = gym.make(ID, **kwargs)
    _, info = env.reset(seed=0)
    assert type(info["example"]) is str and type(info["words_cut"]) is int
    ended = 0
    for action in actions_for(env.unwrapped, np.random.default_rng(0), 200):
        observation, reward, terminated, truncated, info = env.step(int(action))
        assert type(reward) is float and type(terminated) is bool and truncated is False
        assert env.observation_space.contains(observation)
        assert terminated or (info == {} and reward == 0.0)
        if terminated:
            ended += 1
            assert type(info["score"]) is float and {type(part) for part in info["parts"].values()} == {float}
            assert info.keys() == {"example", "text", "finish_reason", "score", "parts"}
            env.reset()
    assert ended > 10


def test_what_was_returned_is_the_callers_own(kwargs):
    for make in (lambda: gym.make(ID, **kwargs), lambda: gym.make_vec(ID, num_envs=2, **kwargs)):
        touched, clean = make(), make()
        action = np.array([9, 10]) if touched.unwrapped.action_space.shape else 9
        for env in (touched, clean):
            env.reset(seed=3)
        for _ in range(15):
            mine, other = touched.step(action), clean.step(action)
            assert all(map(same, mine, other))
            for array in mine[0].values():
                array[...] = 1
            if isinstance(mine[4].get("parts"), dict):
                mine[4]["parts"].clear()
            if np.any(mine[2]) and touched.unwrapped.action_space.shape == ():
                assert touched.unwrapped.episode.parts.keys() == set(RULES)
                mine, other = touched.reset(), clean.reset()
                assert all(map(same, mine, other))
                mine[0]["input_ids"][...] = 5


# --- ends ---------------------------------------------------------------------------------------------------


def run(env: gym.Env, tokens: list[int]) -> tuple[Any, ...]:
    env.reset(seed=0)
    for i, token in enumerate(tokens):
        result = env.step(token)
        assert result[2] == (i == len(tokens) - 1)
    return result


def test_a_stop_token_ends_the_text_and_belongs_to_it(kwargs, tokenizer):
    env = gym.make(ID, **kwargs)
    info = run(env, [40, 41, tokenizer.eos_token_id])[4]
    episode = env.unwrapped.episode
    assert info["finish_reason"] == "stop" and episode.response_ids.tolist() == [40, 41, tokenizer.eos_token_id]
    assert info["text"] == tokenizer.decode([40, 41]).strip()
    assert episode.turns == [{"role": "agent", "text": info["text"]}] and episode.log_probs is None


def test_the_cap_ends_the_text_with_length(kwargs):
    env = gym.make(ID, **kwargs)
    assert run(env, [40] * 6)[4]["finish_reason"] == "length"
    assert env.unwrapped.episode.response_ids.tolist() == [40] * 6


def test_a_stop_token_on_the_last_place_is_a_stop(kwargs, tokenizer):
    assert run(gym.make(ID, **kwargs), [40] * 5 + [tokenizer.eos_token_id])[4]["finish_reason"] == "stop"


def test_padding_and_other_special_tokens_end_nothing_and_leave_no_text(kwargs, tokenizer):
    others = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    assert len(others) >= 2
    info = run(gym.make(ID, **kwargs), [*others[:2], *others[:2], 40, tokenizer.eos_token_id])[4]
    assert info["text"] == tokenizer.decode([40]).strip()


def test_every_stop_token_of_the_model_ends_the_text(kwargs, tiny_model, tmp_path):
    """Chat models often name more stop tokens in their generation config than the tokenizer does."""
    import shutil

    folder = tmp_path / "more_stops"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 77]}))
    env = gym.make(ID, **{**kwargs, "tokenizer": str(folder)})
    assert {1, 77} <= set(env.unwrapped.action_space.stop_ids)
    assert run(env, [40, 77])[4]["finish_reason"] == "stop"


def test_a_step_after_the_end_changes_nothing(kwargs, tokenizer):
    env = gym.make(ID, **kwargs).unwrapped
    final = run(env, [40, tokenizer.eos_token_id])
    observation, reward, terminated, truncated, info = env.step(40)
    assert same(observation, final[0]) and (reward, terminated, truncated, info) == (0.0, True, False, {})


def test_closing_twice_is_safe(kwargs):
    for env in (gym.make(ID, **kwargs), gym.make_vec(ID, num_envs=2, **kwargs)):
        env.reset(seed=0)
        env.close()
        env.close()


# --- resets that choose -------------------------------------------------------------------------------------


def prompt_text(env: Any, observation: dict[str, np.ndarray]) -> str:
    return env.unwrapped.tokenizer.decode(observation["input_ids"][observation["roles"] == 1])


def test_a_reset_can_choose_the_example(kwargs):
    env = gym.make(ID, **kwargs)
    for name, document in zip(["d3", "d0"], ["Snow.", DOCUMENTS[0]], strict=True):
        observation, info = env.reset(options={"example": name})
        assert info == {"example": name, "words_cut": 0} and f"Sum up.\n\n{document}<" in prompt_text(env, observation)


def test_a_vector_reset_chooses_one_example_for_all_rows_or_one_a_row(kwargs):
    envs = gym.make_vec(ID, num_envs=3, **kwargs)
    observation, infos = envs.reset(options={"example": "d2"})
    assert infos["example"].tolist() == ["d2"] * 3
    assert (observation["input_ids"] == observation["input_ids"][0]).all()
    _, infos = envs.reset(options={"example": ["d0", "d3", "d1"]})
    assert infos["example"].tolist() == ["d0", "d3", "d1"]
    names = [envs.reset(seed=seed, options={"example": [None, "d3", None]})[1]["example"] for seed in range(20)]
    assert {name[1] for name in names} == {"d3"} and len({name[0] for name in names}) > 2
    assert envs.unwrapped.example_ids == [f"d{i}" for i in range(5)]


def test_rows_draw_from_their_own_seeds(kwargs):
    envs = gym.make_vec(ID, num_envs=3, **kwargs)
    by_list = envs.reset(seed=[11, 12, 13])[1]["example"].tolist()
    assert envs.reset(seed=11)[1]["example"].tolist() == by_list
    assert envs.reset(seed=np.array([11, 12, 13]))[1]["example"].tolist() == by_list
    again = envs.reset(seed=[11, None, 13])[1]["example"].tolist()
    assert again[0] == by_list[0] and again[2] == by_list[2]


def test_every_example_is_drawn(kwargs):
    envs = gym.make_vec(ID, num_envs=100, **kwargs)
    assert set(envs.reset(seed=0)[1]["example"]) == {f"d{i}" for i in range(5)}


def test_a_long_document_is_cut_and_info_says_by_how_many_words(kwargs):
    env = gym.make(ID, **{**kwargs, "max_prompt_tokens": 40})
    observation, info = env.reset(options={"example": "d1"})
    kept = len(DOCUMENTS[1].split()) - info["words_cut"]
    assert info["words_cut"] > 0 and (observation["roles"] == 1).sum() <= 40
    assert prompt_text(env, observation).count(" ".join(DOCUMENTS[1].split()[:kept]) + "<|end|>") == 1
    assert env.reset(options={"example": "d3"})[1]["words_cut"] == 0


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "jinja"}, "template='jinja' is unknown; expected 'chat' or 'plain'"),
        ({"render_mode": "rgb_array"}, "render_mode='rgb_array' is unknown; expected 'ansi', 'human' or None"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a positive integer"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must be a positive integer"),
        ({"max_prompt_tokens": 2.5}, "max_prompt_tokens=2.5 must be a positive integer"),
        ({"max_prompt_tokens": True}, "max_prompt_tokens=True must be a positive integer"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"feedback": "similarty"}, "unknown scorer 'similarty'; did you mean 'similarity'?"),
        ({"data": "/nowhere/rows.jsonl"}, "/nowhere/rows.jsonl"),
        ({"task": "llm_gym.tasks.summary:Missing"}, "task 'llm_gym.tasks.summary:Missing' cannot be loaded"),
        ({"task": "llm_gym.episode:Episode"}, "is not a subclass of llm_gym.tasks.Task"),
    ],
)
def test_a_bad_argument_is_one_line_that_names_it(kwargs, change, message):
    arguments = {"task": "llm_gym.tasks.summary:TextSummary", **kwargs, **change}
    task = arguments.pop("task")
    from llm_gym.envs.text_env import TextEnv
    from llm_gym.envs.vector_env import TextVectorEnv

    for make in (lambda: TextEnv(task, **arguments), lambda: TextVectorEnv(task, 2, **arguments)):
        with pytest.raises(LLMGymError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_autoreset_mode_and_no_rows_are_errors(kwargs):
    with pytest.raises(LLMGymError, match="autoreset_mode='Never' is unknown; expected one of 'NextStep'"):
        gym.make_vec(ID, num_envs=2, autoreset_mode="Never", **kwargs)
    with pytest.raises(LLMGymError, match="num_envs=0 must be a positive integer"):
        gym.make_vec(ID, num_envs=0, **kwargs)


def test_too_small_a_prompt_is_an_error_that_says_what_it_takes(kwargs):
    env = gym.make(ID, **{**kwargs, "max_prompt_tokens": 3})
    with pytest.raises(LLMGymError, match="max_prompt_tokens=3 is too small: the prompt takes"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([1.0, 2.0], "actions must be 2 integers, got float64"),
        ([True, False], "actions must be 2 integers, got bool"),
        ([1], r"got int64 of shape \(1,\)"),
        ([[1, 2]], r"got int64 of shape \(1, 2\)"),
        (3, r"got int64 of shape \(\)"),
        ([0, -1], "action -1 is outside the vocabulary"),
        ([0, 10**6], "action 1000000 is outside the vocabulary"),
    ],
)
def test_a_bad_action_is_an_error_and_changes_nothing(kwargs, actions, message):
    envs = gym.make_vec(ID, num_envs=2, **kwargs)
    envs.reset(seed=0)
    before = envs.step(np.array([9, 9]))[0]["tokens_left"].copy()
    with pytest.raises(LLMGymError, match=message):
        envs.step(actions)
    assert (envs.step(np.array([9, 9]))[0]["tokens_left"] == before - 1).all()


@pytest.mark.parametrize("action", [1.5, "a", None, [3, 4], -1, 10**6])
def test_a_bad_action_of_the_single_environment_is_an_error(kwargs, action):
    env = gym.make(ID, **kwargs).unwrapped
    env.reset(seed=0)
    with pytest.raises(LLMGymError):
        env.step(action)


def test_a_step_before_reset_is_an_error(kwargs):
    with pytest.raises(LLMGymError, match="call reset"):
        gym.make_vec(ID, num_envs=2, **kwargs).step(np.array([1, 1]))
    with pytest.raises(LLMGymError, match="call reset"):
        gym.make(ID, **kwargs).unwrapped.step(1)
    with pytest.raises(gym.error.ResetNeeded):
        gym.make(ID, **kwargs).step(1)


def test_an_unknown_example_is_an_error_that_names_some(kwargs):
    with pytest.raises(LLMGymError, match="example 'x9' is not in this split; it has d0, d1, d2"):
        gym.make(ID, **kwargs).reset(options={"example": "x9"})
    envs = gym.make_vec(ID, num_envs=2, **kwargs)
    with pytest.raises(LLMGymError, match="'x9' is not in this split"):
        envs.reset(options={"example": ["d0", "x9"]})
    with pytest.raises(LLMGymError, match="has 3 ids for 2 environments"):
        envs.reset(options={"example": ["d0", "d1", "d2"]})
    with pytest.raises(LLMGymError, match="example 3 is not in this split"):
        envs.reset(options={"example": 3})


@pytest.mark.parametrize(
    "mask", [[True], [False, False], [1, 0], np.array([[True, False]]), np.array([True, False, True])]
)
def test_a_bad_mask_is_an_error(kwargs, mask):
    envs = gym.make_vec(ID, num_envs=2, autoreset_mode="Disabled", **kwargs)
    envs.reset(seed=0)
    with pytest.raises(LLMGymError, match=r"reset_mask must be bool of shape \(2,\) with a True"):
        envs.reset(options={"reset_mask": mask})


def test_the_first_reset_must_reach_every_row(kwargs):
    envs = gym.make_vec(ID, num_envs=2, autoreset_mode="Disabled", **kwargs)
    with pytest.raises(LLMGymError, match="first reset must reset every row"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(options={"reset_mask": np.array([True, True])})


def test_the_wrong_number_of_seeds_is_an_error(kwargs):
    with pytest.raises(LLMGymError, match="3 seeds for 2 environments"):
        gym.make_vec(ID, num_envs=2, **kwargs).reset(seed=[1, 2, 3])


def test_a_reward_that_is_not_finite_is_an_error_naming_the_scorer(kwargs, scorers):
    env = gym.make(ID, **{**kwargs, "feedback": {"length": 1.0, f"{scorers}:Broken": 0.5}})
    with pytest.raises(LLMGymError, match=f"scorer '{scorers}:Broken' gave nan for example 'd[0-4]'"):
        run(env, [40] * 6)


# --- views --------------------------------------------------------------------------------------------------


def test_ansi_shows_prompt_text_and_at_the_end_the_scored_parts(kwargs, capsys):
    env = gym.make(ID, render_mode="ansi", **kwargs)
    env.reset(options={"example": "d0"})
    view = env.render()
    assert isinstance(view, str) and DOCUMENTS[0] in view and "6 tokens left" in view and "<|" not in view
    env.step(40)
    assert "5 tokens left" in env.render() and "score" not in env.render()
    for _ in range(5):
        _, reward, *_ = env.step(40)
    view = env.render()
    assert f"score {reward:+.3f}" in view and "length" in view
    assert all(name in view for name in RULES) and "tokens left" not in view
    env.reset(options={"example": "d3"})
    assert "Snow." in env.render() and "score" not in env.render()
    assert capsys.readouterr().out == ""


def test_human_prints_the_view(kwargs, capsys):
    env = gym.make(ID, render_mode="human", **kwargs)
    env.reset(options={"example": "d0"})
    assert DOCUMENTS[0] in capsys.readouterr().out
    for _ in range(env.unwrapped.vector.max_new_tokens):
        env.step(5)
    assert "score" in capsys.readouterr().out
    assert env.render() is None


def test_a_vector_environment_renders_every_row(kwargs, capsys):
    envs = gym.make_vec(ID, num_envs=2, render_mode="ansi", **kwargs)
    envs.reset(options={"example": ["d0", "d3"]})
    views = envs.render()
    assert isinstance(views, tuple) and DOCUMENTS[0] in views[0] and "Snow." in views[1]
    envs = gym.make_vec(ID, num_envs=2, render_mode="human", **kwargs)
    envs.reset(options={"example": ["d0", "d3"]})
    assert envs.render() is None
    printed = capsys.readouterr().out
    assert DOCUMENTS[0] in printed and "Snow." in printed


def test_rendering_without_a_mode_is_an_error(kwargs):
    env = gym.make(ID, **kwargs).unwrapped
    env.reset(seed=0)
    with pytest.raises(LLMGymError, match="render_mode='ansi' or 'human'"):
        env.render()


def test_a_view_is_as_wide_as_a_terminal(kwargs):
    env = gym.make(ID, render_mode="ansi", **kwargs)
    env.reset(options={"example": "d1"})
    assert max(map(len, env.render().splitlines())) <= 88


# --- the single environment's generator ---------------------------------------------------------------------


def test_an_environment_copied_in_the_middle_goes_on_alike(kwargs):
    env = gym.make(ID, **kwargs).unwrapped
    env.reset(seed=0)
    env.step(40)
    other = copy.deepcopy(env)
    for _ in range(5):
        assert all(map(same, env.step(41), other.step(41)))
    assert all(map(same, env.reset(), other.reset()))


def test_draws_come_from_np_random(kwargs):
    env = gym.make(ID, **kwargs).unwrapped
    env.reset(seed=0)
    state = env.np_random.bit_generator.state
    names = [env.reset()[1]["example"] for _ in range(5)]
    env.np_random.bit_generator.state = state
    assert [env.reset()[1]["example"] for _ in range(5)] == names
