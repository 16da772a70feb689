"""Constrained tokens: the trie, what environments make of illegal ones, and a policy that knows what is legal."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO

import tiny
import tiny_task  # noqa: F401  registers Colours-v0
from agents import GRPO, LLMPolicy, SequenceRolloutBuffer, make_vec_env
from agents.head import constrained_stats
from agents.mask import along
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.choices import Choices, Constraint, Grammar
from llm_gym.errors import LLMGymError
from llm_gym.models.load import load_tokenizer
from llm_gym.models.packing import Segment, pack
from tiny_task import COLOURS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DOCUMENTS = ["red sky at night", "grey was the morning", "the sea rose", "free to say anything", "green hills"]


def data(folder: Path) -> str:
    path = folder / "colours.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "document": d}) + "\n" for i, d in enumerate(DOCUMENTS)))
    return str(path)


def arguments(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {"tokenizer": model, "data": data(folder), "split": "all", "feedback": tiny.RULES, **more}


def write(env: Any, tokens: list[int]) -> list[Any]:
    """Write tokens until the episode ends; return the last step."""
    for token in tokens:
        last = env.step(token)
        if last[2]:
            break
    return last


# --- the trie -----------------------------------------------------------------------------------------------


def grammar(texts: tuple[str, ...] = COLOURS) -> Any:
    tokenizer = load_tokenizer("sp-1k")
    return tokenizer, Grammar(texts, "\n", tokenizer, (tokenizer.eos_token_id,))


@settings(max_examples=30)
@given(st.data())
def test_whatever_legal_tokens_are_drawn_the_text_keeps_to_the_choices(draw: st.DataObject) -> None:
    texts = tuple(draw.draw(st.lists(st.text("abc ", min_size=1, max_size=6).map(str.strip), min_size=1, unique=True)))
    texts = tuple(" ".join(text.split()) for text in texts if text) or ("a",)
    choices = Choices(texts, draw.draw(st.integers(1, 4)), frozenset(draw.draw(st.sets(st.sampled_from(texts)))))
    if len(choices.without) == len(set(texts)):
        return
    tokenizer, made = grammar(texts)
    state, ids = made.start(choices), []
    while len(allowed := state.allowed()):
        assert all(state.after(token) is None for token in set(range(1000)) - set(allowed.tolist()))
        ids.append(draw.draw(st.sampled_from(allowed.tolist())))
        state = state.after(ids[-1])
    assert ids[-1] == tokenizer.eos_token_id
    said = choices.pieces(tokenizer.decode(ids, skip_special_tokens=True))
    assert len(said) == len(set(said)) <= choices.most and set(said) <= set(texts) - choices.without
    assert made.encode(said) == ids[:-1]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(COLOURS), min_size=1, max_size=3, unique=True))
def test_whatever_keeps_to_the_choices_is_legal(said: list[str]) -> None:
    tokenizer, made = grammar()
    state = made.start(Choices(COLOURS, 3))
    for token in [*made.encode(said), tokenizer.eos_token_id]:
        state = state.after(token)
        assert state is not None
    assert made.encode([*said, "no colour"]) is None


def test_texts_that_cannot_be_written_and_no_texts_are_errors() -> None:
    with pytest.raises(LLMGymError, match="cannot write"):
        grammar(("red", "two\nlines"))
    with pytest.raises(LLMGymError, match="at least one text"):
        grammar(())
    with pytest.raises(LLMGymError, match="all 6 texts of a constraint are excluded"):
        grammar()[1].start(Choices(COLOURS, without=frozenset(COLOURS)))


# --- the environment ----------------------------------------------------------------------------------------


def test_masks_of_the_single_environment_are_those_of_the_vector(tiny_model: str, tmp_path: Path) -> None:
    made = arguments(tiny_model, tmp_path, max_new_tokens=24)
    envs = gym.make_vec("Colours-v0", num_envs=5, autoreset_mode="Disabled", **made)
    single = [gym.make("Colours-v0", **made).unwrapped for _ in range(5)]
    names = [f"d{i}" for i in range(5)]
    _, infos = envs.reset(options={"example": names})
    own = [env.reset(options={"example": name})[1] for env, name in zip(single, names, strict=True)]
    rng, ended = np.random.default_rng(0), np.zeros(5, bool)
    while not ended.all():
        masks = envs.unwrapped.action_masks()
        assert masks.dtype == np.int8 and envs.single_action_space.contains(envs.single_action_space.sample(masks[0]))
        for i in np.flatnonzero(~ended):
            assert infos["_action_mask"][i] and (infos["action_mask"][i] == masks[i]).all()
            assert (own[i]["action_mask"] == masks[i]).all() and (single[i].action_masks() == masks[i]).all()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        _, _, terminated, _, infos = envs.step(actions)
        for i in np.flatnonzero(~ended):
            *_, own[i] = single[i].step(actions[i])
        for i in np.flatnonzero(terminated & ~ended):
            assert not infos.get("_action_mask", terminated * False)[i] and "action_mask" not in own[i]
        ended = terminated
    episodes = envs.unwrapped.episodes
    assert all(e.finish_reason in ("stop", "length") for e in episodes)
    for episode, first in zip(episodes, ("red", "grey", "", "", "green"), strict=True):
        said = Choices(()).pieces(episode.text)
        if episode.finish_reason == "stop" and episode.example["id"] != "d3":
            assert set(said) <= set(COLOURS) - {first} and 1 <= len(said) == len(set(said)) <= 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_an_illegal_token_ends_the_episode_with_the_worst_score(mode: str, tiny_model: str, tmp_path: Path) -> None:
    envs = gym.make_vec("Colours-v0", num_envs=2, autoreset_mode=mode, **arguments(tiny_model, tmp_path))
    envs.reset(options={"example": ["d2", "d3"]})  # the second one is free
    before = envs.unwrapped.action_masks()
    assert before[1].all() and not before[0].all()
    token = int(np.flatnonzero(before[0] == 0)[-1])
    _, rewards, terminated, _, infos = envs.step(np.array([token, token]))
    assert terminated.tolist() == [True, False] and rewards.tolist() == [-9.0, 0.0]
    info = infos["final_info"] if mode == "SameStep" else infos
    assert info["finish_reason"][0] == "illegal" and info["score"][0] == -9.0
    assert set(info["parts"]) >= set(tiny.RULES)
    masks = infos.get("_action_mask")
    assert masks.tolist() == [mode == "SameStep", True]


def test_stopping_too_early_is_illegal_and_a_worse_feedback_counts(tiny_model: str, tmp_path: Path) -> None:
    env = gym.make("Colours-v0", **arguments(tiny_model, tmp_path, feedback={"brevity": -100.0})).unwrapped
    env.reset(options={"example": "d2"})
    _, reward, terminated, _, info = env.step(env.tokenizer.eos_token_id)
    assert terminated and info["finish_reason"] == "illegal" and reward == info["score"] == -100.0


def test_without_a_constraint_there_is_no_mask(tiny_model: str, tmp_path: Path) -> None:
    env = gym.make("TinySummary-v0", **arguments(tiny_model, tmp_path)).unwrapped
    _, info = env.reset(seed=0)
    assert "action_mask" not in info and "action_mask" not in env.step(7)[-1]
    assert env.action_masks().all() and env.action_space.constraint is None and env.vector._limits is None


def test_each_turn_of_a_conversation_has_its_own_choices(tiny_model: str, tmp_path: Path) -> None:
    env = gym.make("ColourTalk-v0", **arguments(tiny_model, tmp_path, max_new_tokens=20)).unwrapped
    env.reset(options={"example": "d0"})
    ids = env.vector.encode(0, "dark red") + [env.tokenizer.eos_token_id]
    *_, terminated, _, info = write(env, ids)
    assert not terminated and info["reply"] == "And another one?" and info["action_mask"].sum() > 1
    said = env.vector.encode(0, "dark red")
    *_, terminated, _, info = write(env, [*said, env.tokenizer.eos_token_id])
    assert terminated and info["finish_reason"] == "illegal" and "reply" not in info
    assert env.episode.finish_reason == "illegal" and len(env.episode.turns) == 3 and env.episode.reward <= -4.5


def test_an_agent_that_plans_beyond_an_illegal_token_is_stopped_there(tiny_model: str, tmp_path: Path) -> None:
    class Says(ReferenceAgent):
        def turn(self, row: int) -> str:
            return ("dark red\ngreen", "red\nred and so on", "the sea")[row]

    envs = gym.make_vec("Colours-v0", num_envs=3, autoreset_mode="Disabled", **arguments(tiny_model, tmp_path))
    envs = envs.unwrapped
    episodes = play(Says(envs), envs, ["d2", "d2", "d2"])
    assert [e.finish_reason for e in episodes][1:] == ["illegal", "illegal"]
    assert episodes[0].text == "dark red\ngreen" or episodes[0].finish_reason == "length"
    assert all(len(e.log_probs) == len(e.response_ids) for e in episodes)


# --- the policy ---------------------------------------------------------------------------------------------


@pytest.fixture
def env(tiny_model: str, tmp_path: Path) -> Any:
    return make_vec_env("Colours-v0", n_envs=5, seed=0, **arguments(tiny_model, tmp_path, max_new_tokens=14))


@pytest.fixture
def policy(env: Any, tiny_model: str) -> LLMPolicy:
    return tiny.make_policy(env, tiny_model)


def naive(policy: LLMPolicy, obs: dict[str, np.ndarray], masks: np.ndarray) -> torch.Tensor:
    """Log-probabilities `(N, V)`: the whole model's, renormalised over what is legal."""
    log_probs, _ = tiny.naive(policy, obs)
    legal = torch.from_numpy(masks).bool()
    return torch.log_softmax(log_probs.masked_fill(~legal, -torch.inf), -1)


def test_every_question_is_answered_as_by_the_naive_softmax_over_legal_tokens(env: Any, policy: LLMPolicy) -> None:
    obs, bound = env.reset(), 0
    for _ in range(20):
        masks = np.stack(env.env_method("action_masks"))
        t, rows = tiny.tensors(obs), np.arange(5)
        with torch.no_grad():
            wanted = naive(policy, obs, masks)
            actions, _, chosen = policy(t)
            assert masks[rows, actions].all()
            torch.testing.assert_close(chosen, wanted[rows, actions], **CLOSE)
            assert torch.equal(policy(t, deterministic=True)[0], wanted.argmax(-1))
            assert torch.equal(policy._predict(t, deterministic=True), wanted.argmax(-1))
            _, chosen, entropies = policy.evaluate_actions(t, actions)
            torch.testing.assert_close(chosen, wanted[rows, actions], **CLOSE)
            expected = -torch.where(wanted.isinf(), 0.0, wanted.exp() * wanted).sum(-1)
            torch.testing.assert_close(entropies, expected, **CLOSE)
            distribution = policy.get_distribution(t).distribution
            torch.testing.assert_close(distribution.probs, wanted.exp(), **CLOSE)
            taken, chosen = policy.act(obs, rows, deterministic=True)
            assert taken.tolist() == wanted.argmax(-1).tolist()
            np.testing.assert_allclose(chosen, wanted.max(-1).values, **CLOSE)
        bound += int((masks.sum(1) < 5).sum())
        obs, _, _, infos = env.step(actions.numpy())
        assert not any(info.get("finish_reason") == "illegal" for info in infos)
    assert bound > 10


def test_gradients_equal_those_of_the_naive_softmax() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 8), torch.randn(50)
    allowed = [np.array([3]), None, np.array([0, 7, 49]), np.array([5, 4])]
    tokens, found = torch.tensor([3, 20, 49, 4]), []
    hidden = torch.randn(4, 8)
    for fast in (True, False):
        h = hidden.clone().requires_grad_()
        if fast:
            log_probs, entropies = constrained_stats(h, weight, bias, tokens, allowed)
        else:
            logits = h @ weight.T + bias
            legal = torch.stack(
                [torch.isin(torch.arange(50), torch.tensor(range(50) if a is None else a)) for a in allowed]
            )
            logs = torch.log_softmax(logits.masked_fill(~legal, -1e9), -1)
            log_probs, entropies = logs.gather(1, tokens[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
        (log_probs.sum() + 0.3 * entropies.square().sum()).backward()
        found.append((log_probs.detach(), entropies.detach(), h.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    with pytest.raises(LLMGymError, match="token 6 is illegal"):
        constrained_stats(hidden, weight, bias, torch.tensor([3, 20, 6, 4]), allowed)


@pytest.mark.parametrize("env_id", ["Colours-v0", "ColourTalk-v0"])
def test_grpo_starts_from_ratio_one_and_writes_nothing_illegal(env_id: str, tiny_model: str, tmp_path: Path) -> None:
    env = make_vec_env(env_id, n_envs=8, seed=0, **arguments(tiny_model, tmp_path, max_new_tokens=14))
    model = GRPO(LLMPolicy, env, group_size=4, seed=0, policy_kwargs={"model": tiny_model, "lora": 4})
    ratios: list[float] = []
    record = model.train

    def train() -> None:
        record()
        ratios.append(model.logger.name_to_value["train/ratio_error"])
        assert all(e.finish_reason in ("stop", "length") for e in model.episodes)

    model.train = train  # type: ignore[method-assign]
    model.learn(200)
    assert len(ratios) > 2 and max(ratios) < 1e-4


@pytest.mark.parametrize("steps", [5, 16])
def test_stock_ppo_evaluates_what_it_sampled_also_of_texts_cut_by_the_rollout(
    env: Any, tiny_model: str, steps: int
) -> None:
    with pytest.warns(UserWarning, match="n_steps=5") if steps == 5 else nullcontext():
        model = PPO(
            LLMPolicy,
            env,
            rollout_buffer_class=SequenceRolloutBuffer,
            n_steps=steps,
            batch_size=20,
            n_epochs=1,
            policy_kwargs={"model": tiny_model, "lora": 4},
        )
    tiny.perturb(model.policy)
    seen: list[float] = []
    evaluate = model.policy.evaluate_actions
    buffer = model.rollout_buffer

    def check() -> None:
        with torch.no_grad():
            for batch in buffer.get(20):
                _, log_probs, _ = evaluate(batch.observations, batch.actions)
                torch.testing.assert_close(log_probs, batch.old_log_prob, **CLOSE)
                seen.append(float((log_probs == 0).float().mean()))

    train = model.train
    model.train = lambda: (check(), train())[1]  # type: ignore[method-assign]
    model.learn(steps * 5 * 3)
    assert len(seen) > 3 and max(seen) > 0  # some tokens were the only legal one


def test_legal_tokens_of_a_segment_are_found_from_its_ids(env: Any, policy: LLMPolicy) -> None:
    envs = env.unwrapped.envs.unwrapped
    episode = play(policy, envs, ["d2"])[0]
    whole = Segment(episode.prompt_ids, episode.response_ids, episode.agent_mask)
    allowed = list(along(policy._constraint, whole))
    assert all(token in ids for token, ids in zip(episode.response_ids, allowed, strict=True))
    cut = Segment(np.r_[episode.prompt_ids, episode.response_ids[:2]], episode.response_ids[2:], episode.agent_mask[2:])
    assert [ids.tolist() for ids in along(policy._constraint, cut)] == [ids.tolist() for ids in allowed[2:]]
    with torch.no_grad():
        packed = pack([whole, whole])
        _, log_probs, _ = policy.evaluate_actions(packed, packed.targets)
    np.testing.assert_allclose(log_probs, np.tile(episode.log_probs, 2), **CLOSE)


def test_a_copied_space_knows_and_unknown_or_illegal_ids_are_errors(env: Any, tmp_path: Path) -> None:
    constraint = env.action_space.constraint
    obs = env.reset()
    ids = obs["input_ids"][0][obs["roles"][0] > 0]
    for other in (copy.deepcopy(env.action_space), pickle.loads(pickle.dumps(env.action_space))):
        assert other == env.action_space and isinstance(other.constraint, Constraint)
        known, again = constraint.state(ids), other.constraint.state(ids)
        assert (known is None) == (again is None)
    with pytest.raises(LLMGymError, match="not known here"):
        constraint.state(np.array([1, 2, 3]))
    env.seed(0)
    env.set_options({"example": "d2"})
    obs = env.reset()
    ids = obs["input_ids"][0][obs["roles"][0] > 0]
    with pytest.raises(LLMGymError, match="illegal where it stands"):
        constraint.state(np.r_[ids, 0])


def test_a_saved_model_goes_on_in_the_environment(env: Any, tiny_model: str, tmp_path: Path) -> None:
    kwargs = {"model": tiny_model, "lora": 4}
    made = PPO(LLMPolicy, env, n_steps=14, batch_size=70, policy_kwargs=kwargs)
    made.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=env)
    obs = env.reset()
    masks = np.stack(env.env_method("action_masks"))
    actions, _ = again.predict(obs)
    assert masks[np.arange(5), actions].all()


def test_each_row_of_sb3s_view_has_its_own_mask(env: Any) -> None:
    env.set_options([{"example": f"d{i}"} for i in range(5)])
    env.reset()
    masks = env.env_method("action_masks")
    assert len(masks) == 5 and masks[3].all() and not masks[0].all() and (masks[0] != masks[1]).any()
    assert (env.env_method("action_masks", indices=[1])[0] == masks[1]).all()


def test_maskable_ppo_runs(env: Any) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    model = contrib.MaskablePPO("MultiInputPolicy", env, n_steps=16, batch_size=40, n_epochs=2, seed=0)
    reasons: list[str] = []

    def on_step(local: dict[str, Any], _: Any) -> bool:
        reasons.extend(info["finish_reason"] for info in local["infos"] if "finish_reason" in info)
        return True

    model.learn(320, callback=on_step)
    assert len(reasons) > 20 and "illegal" not in reasons and "stop" in reasons
