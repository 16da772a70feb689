"""Wrappers that make a vocabulary tractable: a vector is its rows, a spec comes back, a pass is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

import tiny
import tiny_task  # noqa: F401
from agents import wrappers
from agents.wrappers import (
    HiddenStateObservation,
    KLPenalty,
    RecordTexts,
    TextActions,
    TopKActions,
    VectorHiddenStateObservation,
    VectorKLPenalty,
    VectorRecordTexts,
    VectorTextActions,
    VectorTopKActions,
)
from agents.wrappers.frozen_lm import FrozenLM
from llm_gym.data.files import read_rows
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.models.load import shared_causal_lm

PIECES = ("red", "green", "dark blue", "blue sky")


@pytest.fixture
def settings(tiny_model: str, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small summary environment."""
    return {
        "tokenizer": tiny_model,
        "data": tiny.write_data(tmp_path),
        "split": "all",
        "feedback": tiny.RULES,
        "instruction": "Sum up:",
        "max_prompt_tokens": 64,
        "max_new_tokens": 6,
    }


def single(settings: dict[str, Any], env_id: str = "TextSummary-v0", **changes: Any) -> Any:
    return gym.make(env_id, **{**settings, **changes})


def vector(settings: dict[str, Any], n: int, env_id: str = "TextSummary-v0", mode: str = "Disabled", **kw: Any) -> Any:
    return gym.make_vec(env_id, num_envs=n, autoreset_mode=mode, **{**settings, **kw})


def naive(envs: Any, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Return last hidden states and log-probabilities, row by row, without a cache."""
    causal, seen = shared_causal_lm(model), envs.observation()
    hidden, log_probs = [], []
    for ids, roles in zip(seen["input_ids"], seen["roles"], strict=True):
        with torch.no_grad():
            row = torch.as_tensor(ids[: (roles > 0).sum()])[None].long()
            out = causal(input_ids=row, output_hidden_states=True)
        hidden.append(out.hidden_states[-1][0, -1])
        log_probs.append(out.logits[0, -1, : int(envs.single_action_space.n)].log_softmax(-1))
    return torch.stack(hidden).numpy(), torch.stack(log_probs).numpy()


# -------------------------------------------------------------------- a frozen model's view


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_observations_and_actions_are_those_of_the_model_run_anew_at_each_step(settings, tiny_model, mode):
    model = tiny.ragged_model(tiny_model, Path(settings["data"]).parent, share=3)
    envs = vector({**settings, "tokenizer": model}, 3, mode=mode)
    wrapped = VectorHiddenStateObservation(VectorTopKActions(envs, 8, model), model)
    observation, _ = wrapped.reset(seed=0)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(25):
        hidden, log_probs = naive(envs, model)
        scaled = hidden / np.sqrt((hidden**2).mean(1, keepdims=True))
        left = envs.observation()["tokens_left"] / 6
        np.testing.assert_allclose(observation, np.concatenate([scaled, left], 1), atol=1e-4)
        assert observation.dtype == np.float32 and wrapped.observation_space.contains(observation)
        actions, resting, lengths = rng.integers(8, size=3), envs.done, [envs.length(row) for row in range(3)]
        expected = (-log_probs).argsort(1, kind="stable")[np.arange(3), actions]
        observation, _, terminated, _, _ = wrapped.step(actions)
        for row in np.flatnonzero(~resting):
            assert envs.observation()["input_ids"][row, lengths[row]] == expected[row]
        ended += terminated.sum()
        if mode == "Disabled" and terminated.any():
            observation, _ = wrapped.reset(options={"reset_mask": terminated})
    assert ended > 5


def test_wrappers_of_one_environment_share_a_pass_of_a_token_a_row(settings, tiny_model):
    envs = vector({**settings, "max_new_tokens": 40}, 2)
    penalised = VectorKLPenalty(envs, 0.1, tiny_model)
    wrapped = VectorHiddenStateObservation(VectorTopKActions(penalised, 4, tiny_model), tiny_model)
    assert wrapped.lm is wrapped.env.lm is penalised.lm
    wrapped.reset(seed=0)
    costs = []
    for _ in range(12):
        before = wrapped.lm._engine.tokens_run
        wrapped.step(np.array([1, 2]))
        costs.append(wrapped.lm._engine.tokens_run - before)
    assert costs == [2] * 12


@pytest.mark.parametrize("env_id", ["TextSummary-v0", "Colours-v0", "ColourTalk-v0"])
def test_a_single_environment_is_a_row_of_the_vector_and_comes_back_from_its_spec(env_id, settings, tiny_model):
    def one() -> Any:
        inner = KLPenalty(single(settings, env_id), 0.1, tiny_model)
        return HiddenStateObservation(TopKActions(inner, 5, tiny_model), tiny_model)

    env = one()
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    inner = VectorKLPenalty(vector(settings, 1, env_id), 0.1, tiny_model)
    envs = VectorHiddenStateObservation(VectorTopKActions(inner, 5, tiny_model), tiny_model)
    first = env.reset(seed=1)[0]
    assert again.observation_space == env.observation_space == envs.single_observation_space
    assert again.action_space == env.action_space == envs.single_action_space == gym.spaces.Discrete(5)
    np.testing.assert_allclose(first, again.reset(seed=1)[0], atol=1e-5)
    np.testing.assert_allclose(first, envs.reset(seed=1)[0][0], atol=1e-5)
    for action in 3 * (0, 2, 1, 4, 3):
        left, middle, right = env.step(action), again.step(action), envs.step(np.array([action]))
        np.testing.assert_allclose(left[0], right[0][0], atol=1e-5)
        np.testing.assert_allclose(left[0], middle[0], atol=1e-5)
        assert left[1] == pytest.approx(right[1][0], abs=1e-5) == pytest.approx(middle[1], abs=1e-5)
        assert type(left[1]) is float and left[2] == right[2][0]
        if left[2]:
            break
    assert left[2] and left[4]["finish_reason"] != "illegal"


def test_a_constrained_task_is_never_left(settings, tiny_model):
    envs = vector({**settings, "max_new_tokens": 40}, 4, "Colours-v0")
    wrapped = VectorTopKActions(envs, 6, tiny_model)
    _, infos = wrapped.reset(seed=0)
    rng, reasons, fewer = np.random.default_rng(0), [], 0
    for _ in range(120):
        assert (infos["action_mask"] == wrapped.action_masks()).all() and infos["action_mask"].shape == (4, 6)
        fewer += (wrapped.action_masks().sum(1) < 6).sum()
        _, _, terminated, _, infos = wrapped.step(rng.integers(6, size=4))
        if terminated.any():
            reasons += [reason for reason in infos["finish_reason"][terminated]]
            infos = wrapped.reset(options={"reset_mask": terminated})[1] | {"action_mask": wrapped.action_masks()}
    assert fewer > 100 and len(reasons) > 5 and "illegal" not in reasons


def test_the_penalty_is_what_the_reference_thinks_of_the_token(settings, tiny_model):
    plain, penalised = vector(settings, 2), VectorKLPenalty(vector(settings, 2), 0.5, tiny_model)
    plain.reset(seed=0), penalised.reset(seed=0)
    for tokens in np.random.default_rng(0).integers(10, 300, (8, 2)):
        running, log_probs = ~plain.done, naive(plain, tiny_model)[1]
        _, before, *_ = plain.step(tokens)
        _, after, _, _, infos = penalised.step(tokens)
        expected = np.where(running, log_probs[np.arange(2), tokens], 0)
        np.testing.assert_allclose(after - before, 0.5 * expected, atol=1e-4)
        np.testing.assert_allclose(infos["reference_log_prob"], expected, atol=1e-4)
    assert not running.any()  # and what rests pays nothing


def test_a_forbidden_token_costs_a_finite_penalty(settings, tiny_model):
    env = KLPenalty(single(settings, "ColourTalk-v0"), 1.0, tiny_model)
    env.reset(seed=0)
    illegal = int(np.flatnonzero(env.unwrapped.action_masks() == 0)[0])
    _, reward, terminated, _, info = env.step(illegal)
    assert terminated and info["finish_reason"] == "illegal" and np.isfinite(reward) and reward < info["score"] < 0


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_gymnasiums_checker_passes(settings, tiny_model):
    env = HiddenStateObservation(TopKActions(single(settings, max_new_tokens=1), 5, tiny_model), tiny_model)
    check_env(env, skip_render_check=True)
    check_env(TextActions(single(settings)), skip_render_check=True)


def test_no_bit_of_an_observation_depends_on_the_episodes_before(settings, tiny_model):
    used = HiddenStateObservation(single(settings), tiny_model)
    for seed in range(6):  # another document each time, behind the same beginning
        fresh = HiddenStateObservation(single(settings), tiny_model)
        np.testing.assert_array_equal(used.reset(seed=seed)[0], fresh.reset(seed=seed)[0])
        for action in (5, 6, 7):
            np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])


# -------------------------------------------------------------------- whole replies


@pytest.mark.parametrize("env_id", ["TextSummary-v0", "ColourTalk-v0"])
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_a_reply_is_worth_what_its_tokens_are(settings, env_id, mode):
    settings = {**settings, "max_new_tokens": 12}
    text, tokens = VectorTextActions(vector(settings, 3, env_id, mode)), single(settings, env_id)
    one = TextActions(single(settings, env_id))
    seen, infos = text.reset(seed=[5, 6, 7])
    assert seen[0] == one.reset(seed=5)[0] and tokens.reset(seed=5)
    assert seen in text.observation_space and seen[0].startswith("<|user|>") and seen[0].endswith("<|assistant|>")
    for reply in ("dark blue", "red"):
        ids = [*tokens.unwrapped.vector.encode(0, reply), tokens.unwrapped.tokenizer.eos_token_id]
        rewards = []
        for token in ids:
            _, reward, terminated, _, info = tokens.step(token)
            rewards.append(reward)
        _, many, ends, _, infos = text.step((reply, "red", "grey"))
        observation, alone, end, truncated, own = one.step(reply)
        assert many[0] == alone == sum(rewards) and ends[0] == end == terminated and not truncated
        assert infos["text"][0] == own["text"] == info["text"] == reply and own["parts"] == info["parts"]
        assert reply in observation
        if terminated:
            break
    assert terminated
    left, right = text.envs.episodes[0], tokens.unwrapped.episode
    assert left.to_json() == right.to_json() == one.unwrapped.episode.to_json()


def test_a_reply_that_is_too_long_is_cut_off_and_an_empty_one_is_one(settings):
    env = TextActions(single(settings))
    env.reset(seed=0)
    assert env.step("the council met to talk about a new bridge over it")[4]["finish_reason"] == "length"
    assert env.unwrapped.episode.agent_mask.sum() == 6
    env.reset(seed=0)
    _, _, terminated, _, info = env.step("")
    assert terminated and info["text"] == "" and info["finish_reason"] == "stop"
    assert "Grüße, 東京" in env.action_space and env.action_space.sample() in env.action_space
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space and again.reset(seed=3)[0] == env.reset(seed=3)[0]


# -------------------------------------------------------------------- records


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_every_episode_is_recorded_once(settings, tmp_path, mode):
    folder = tmp_path / "new" / "texts"
    envs = VectorRecordTexts(vector(settings, 3, mode=mode), str(folder))
    envs.reset(seed=0)
    expected = []
    for tokens in np.random.default_rng(0).integers(10, 300, (20, 3)):
        before = list(envs.unwrapped.episodes)
        _, _, terminated, _, _ = envs.step(tokens)
        expected += [e.to_json() for e, old in zip(envs.unwrapped.episodes, before, strict=True) if e is not old]
        if mode == "Disabled" and terminated.any():
            envs.step(tokens)  # rests, and is not written again
            envs.reset(options={"reset_mask": terminated})
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    assert lines == expected and len(lines) >= 6
    episode = Episode.from_json(lines[0])
    assert episode.text and episode.reward is not None and set(episode.parts) == set(tiny.RULES)


def test_environments_share_a_folder_and_what_is_cut_off_has_no_record(settings, tmp_path):
    env = RecordTexts(single(settings), str(tmp_path))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for made in (env, again):
        made.reset(seed=0)
        while not made.step(50)[2]:
            pass
    cut = TimeLimit(RecordTexts(single(settings), str(tmp_path)), 2)
    cut.reset(seed=0)
    cut.step(50)
    assert cut.step(50)[3]
    cut.reset(seed=0)
    rows = [row for _, row in read_rows(tmp_path / "episodes.jsonl")]
    assert len(rows) == 2 and rows[0] == rows[1] == json.loads(env.unwrapped.episode.to_json())


def test_what_the_feedback_abstains_from_has_no_record(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.Picky, "refused", {"doc-0"})
    env = RecordTexts(single(settings, feedback={"tiny:Picky": 1.0}), str(tmp_path))
    env.reset(options={"example": "doc-0"})
    with pytest.raises(LLMGymError, match="abstained from example 'doc-0'"):
        for _ in range(6):
            env.step(50)
    env.reset(options={"example": "doc-1"})
    while not env.step(50)[2]:
        pass
    rows = [row for _, row in read_rows(tmp_path / "episodes.jsonl")]
    assert [(row["example"]["id"], row["reward"] is None) for row in rows] == [("doc-1", False)]


def test_records_are_of_whole_replies_too(settings, tmp_path):
    env = RecordTexts(TextActions(single(settings)), str(tmp_path))
    env.reset(seed=0)
    env.step("rain fell")
    assert next(read_rows(tmp_path / "episodes.jsonl"))[1]["text"] == "rain fell"


# -------------------------------------------------------------------- mistakes


def test_mistakes_are_told(settings, tiny_model, tmp_path):
    env, other = single(settings), gym.make("CartPole-v1")
    envs, same = vector(settings, 2), vector(settings, 2, mode="SameStep")
    top = TopKActions(env, 3, tiny_model)
    (tmp_path / "file").write_text("")
    for make, message in (
        (lambda: TopKActions(other, 3, tiny_model), "is no text environment"),
        (lambda: TopKActions(env, 0, tiny_model), "k=0 must be a positive integer"),
        (lambda: TopKActions(env, 10**6, tiny_model), "k=1000000 is more than the"),
        (lambda: TopKActions(env, 3, "tiny-1k"), "number tokens differently"),
        (lambda: TopKActions(top, 3, tiny_model), "put TopKActions nearer to the environment"),
        (lambda: KLPenalty(top, 0.1, tiny_model), "put KLPenalty nearer to the environment"),
        (lambda: VectorKLPenalty(envs, 0, tiny_model), "coef=0 must be a positive number"),
        (lambda: VectorHiddenStateObservation(same, tiny_model), "not 'SameStep'"),
        (lambda: TextActions(top), "put TextActions inside of all other wrappers"),
        (lambda: VectorTextActions(same), "autoreset_mode 'NextStep' or 'Disabled'"),
        (lambda: VectorTextActions(envs).step(["one"]), "takes 2 texts"),
        (lambda: VectorTextActions(envs).step(["one", "two"]), "before reset"),
        (lambda: RecordTexts(other, str(tmp_path)), "is no text environment"),
        (lambda: VectorRecordTexts(envs, str(tmp_path / "file")), "cannot be made"),
    ):
        with pytest.raises(LLMGymError, match=message):
            make()
    top.reset(seed=0)
    with pytest.raises(LLMGymError, match="action 3 is not one of 0 to 2"):
        top.step(3)


def test_all_wrappers_are_in_one_place_and_record_their_arguments():
    for name in wrappers.__all__:
        assert issubclass(getattr(wrappers, name), gym.utils.RecordConstructorArgs), name
    assert FrozenLM.__name__ not in wrappers.__all__
