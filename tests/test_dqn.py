"""Q-learning of tokens: what it acts by, what it learns from, and that nothing depends on how that is batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch

import tiny
from agents import DQN, LLMPolicy, QPolicy, losses
from agents.evaluate import find_policy, load_policy, make_envs
from agents.policy_gradient import token_rewards
from agents.replay import Experience, Replay, experience
from agents.rollout import play
from agents.training import TrainArguments, train
from agents.vec_env import make_vec_env
from llm_gym.errors import LLMGymError
from llm_gym.models.packing import Segment, pack
from test_algorithms import SGD
from test_grpo import collect, logged
from test_training import ENV, documents

LETTERS = {"feedback": {"tiny:LetterShare": 1.0}}


def make(model: str, folder: Path, n_envs: int = 8, env_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> DQN:
    """Return an algorithm with plain gradient descent, so that weights compare as gradients do."""
    env = tiny.make_env(model, folder, n_envs=n_envs, **(env_kwargs or LETTERS))
    policy_kwargs = {"model": model, "lora": 4, **SGD, **kwargs.pop("policy_kwargs", {})}
    arguments = {"seed": 0, "device": "cpu", "learning_rate": 0.1, "max_grad_norm": 1e9, "gradient_steps": 1}
    algorithm = DQN(LLMPolicy, env, policy_kwargs=policy_kwargs, **{**arguments, "top_k": 5, **kwargs})
    tiny.perturb(algorithm.policy)
    return algorithm


def naive_logits(lm: Any, experience: Experience, actions: int) -> torch.Tensor:
    """Return the logits `(T, V)` that decided what the agent wrote, by one plain forward of this episode."""
    segment = experience.segment
    ids = torch.from_numpy(np.concatenate([segment.context, segment.ids]).astype(np.int64))
    places = len(segment.context) - 1 + np.flatnonzero(segment.trained)
    return lm(input_ids=ids[None], use_cache=False, output_hidden_states=True).logits[0, places, :actions]


def naive_q(policy: QPolicy, experience: Experience) -> torch.Tensor:
    """Return the values `(T, V)` of all tokens, -inf for what the reference does not propose."""
    segment = experience.segment
    ids = torch.from_numpy(np.concatenate([segment.context, segment.ids]).astype(np.int64))
    places = len(segment.context) - 1 + np.flatnonzero(segment.trained)
    out = policy.lm(input_ids=ids[None], use_cache=False, output_hidden_states=True)
    logits = out.logits[0, places, : policy.actions]
    values = policy.value_head(out.hidden_states[-1][0, places])
    with torch.no_grad(), policy.lm.disable_adapter():
        best = naive_logits(policy.lm, experience, policy.actions).topk(policy.top_k, -1).indices  # type: ignore[arg-type]
    mean = logits.gather(-1, best).mean(-1, keepdim=True)
    proposed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
    return (values + policy.scale * (logits - mean)).masked_fill(~proposed, -torch.inf)


# -------------------------------------------------------------------- losses


def test_targets_are_those_worked_out_by_hand() -> None:
    rewards, ahead = torch.tensor([1.0, 0.0, 0.0, 4.0]), torch.tensor([7.0, 6.0, 5.0, 3.0])
    assert losses.q_targets(rewards, ahead, 0.5, 2).tolist() == [1 + 0.25 * 5, 0.25 * 3, 2.0, 4.0]
    assert losses.q_targets(rewards, ahead, 1.0, 9).tolist() == losses.q_targets(rewards, ahead, 1.0, None).tolist()
    assert losses.q_targets(rewards, ahead, 1.0, None).tolist() == losses.rewards_to_go(rewards).tolist()
    online, target = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[9.0, 4.0, -torch.inf]])
    assert losses.double_q(online, target).tolist() == [4.0]
    assert losses.huber(torch.tensor([0.5, 3.0]), torch.zeros(2)).tolist() == [0.125, 2.5]


def test_the_one_step_loss_is_that_of_stable_baselines3(monkeypatch) -> None:
    """On the same transitions of whole episodes, the target network being another one."""
    other = sb3.DQN("MlpPolicy", "CartPole-v1", learning_starts=1000, buffer_size=300, seed=0, device="cpu")
    other.learn(200)
    buffer = other.replay_buffer
    last = int(np.flatnonzero(buffer.dones[:, 0])[-1])
    places = np.arange(last + 1)
    tiny.perturb(other.q_net, scale=0.3)
    with torch.no_grad():
        batch = buffer._get_samples(places)
        online, target = other.q_net(batch.observations), other.q_net_target(batch.observations)
    values = online.gather(-1, batch.actions)[:, 0]
    ends = np.diff(np.flatnonzero(buffer.dones[: last + 1, 0]), prepend=-1).tolist()
    parts = zip(batch.rewards[:, 0].split(ends), target.amax(-1).split(ends), strict=True)
    targets = torch.cat([losses.q_targets(rewards, ahead, other.gamma, 1) for rewards, ahead in parts])
    monkeypatch.setattr(buffer, "sample", lambda *args, **kwargs: batch)
    other.train(gradient_steps=1)
    assert len(ends) > 1
    assert losses.huber(values, targets).mean().item() == pytest.approx(
        other.logger.name_to_value["train/loss"], abs=1e-5
    )


# -------------------------------------------------------------------- acting


def test_the_untrained_policy_writes_what_the_reference_would_greedily(ragged, tmp_path) -> None:  # noqa: F811
    env = tiny.make_env(ragged, tmp_path, n_envs=4)
    ids = env.unwrapped.envs.unwrapped.example_ids[:4]
    envs = env.unwrapped.envs.unwrapped
    arguments = (env.observation_space, env.action_space, lambda _: 0.1)
    texts = []
    for policy in (QPolicy(*arguments, model=ragged, lora=4), LLMPolicy(*arguments, model=ragged, lora=None)):
        texts.append([e.response_ids.tolist() for e in play(policy, envs, ids, deterministic=True) or []])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("top_k", [3, None])
def test_what_is_written_is_greedy_by_the_values_but_for_exploration(ragged, tmp_path, top_k) -> None:  # noqa: F811
    """Stepwise through caches and in one packed pass, the values are the same."""
    algorithm = make(ragged, tmp_path, top_k=top_k, exploration_initial_eps=0.3)
    policy, explored, tokens = algorithm.policy, 0, 0
    for _ in range(4):
        collect(algorithm)
        for episode in algorithm.episodes:
            packed = pack([experience(episode).segment])
            candidates = policy.candidates(packed)
            with torch.no_grad():
                chosen, values = policy.q_values(packed, candidates)
            written = torch.from_numpy(episode.response_ids[episode.agent_mask]).long()
            if candidates is not None:
                assert (candidates == written[:, None]).any(-1).all() and candidates.shape[1] == 3
            greedy = chosen >= values.amax(-1) - 1e-4
            size = values.shape[1]
            chances = torch.where(greedy, 0.7 + 0.3 / size, torch.tensor(0.3 / size)).log()
            torch.testing.assert_close(
                torch.from_numpy(episode.log_probs[episode.agent_mask]), chances, atol=1e-5, rtol=0
            )
            explored, tokens = explored + int((~greedy).sum()), tokens + len(greedy)
    assert 0.1 < explored / tokens < 0.4
    assert policy.epsilon == algorithm.exploration_final_eps


def test_predict_and_write_act_alike(ragged, tmp_path) -> None:  # noqa: F811
    algorithm = make(ragged, tmp_path)
    obs = algorithm.env.reset()
    written, _ = algorithm.policy.act(obs, np.arange(8), deterministic=True)
    assert algorithm.predict(obs, deterministic=True)[0].tolist() == written.tolist()
    with torch.no_grad(), algorithm.policy.exploring(0.0):
        actions, _, log_probs = algorithm.policy(tiny.tensors(obs))
    assert actions.tolist() == written.tolist() and log_probs.abs().max() < 1e-6


def test_exploring_takes_every_candidate_as_often(ragged, tmp_path) -> None:  # noqa: F811
    algorithm = make(ragged, tmp_path, n_envs=1, top_k=4)
    obs = {key: np.repeat(value, 400, 0) for key, value in algorithm.env.reset().items()}
    with torch.no_grad(), algorithm.policy.exploring(1.0):
        actions, _, _ = algorithm.policy(tiny.tensors(obs))
    _, counts = actions.unique(return_counts=True)
    assert len(counts) == 4 and counts.min() > 60


@pytest.mark.parametrize("top_k", [4, None])
def test_only_legal_tokens_are_candidates(tiny_model, tmp_path, top_k) -> None:
    data = documents(tmp_path / "docs.jsonl", references=True)
    env = make_vec_env("tiny_task:Colours-v0", n_envs=6, seed=0, tokenizer=tiny_model, data=data, split="all")
    algorithm = DQN(
        LLMPolicy, env, 0.1, top_k=top_k, exploration_initial_eps=1.0, seed=0, device="cpu",
        policy_kwargs={"model": tiny_model, "lora": 4},
    )  # fmt: skip
    for _ in range(2):
        collect(algorithm)
        assert all(e.finish_reason != "illegal" for e in algorithm.episodes)
        algorithm.train()
    assert np.isfinite(logged(algorithm)["loss"])
    if top_k is not None:
        assert any((e.candidates < 0).any() for e in algorithm.replay.kept)


# -------------------------------------------------------------------- learning


@pytest.mark.parametrize("n_step", [2, None])
def test_the_loss_and_gradient_are_those_of_the_book(ragged, tmp_path, n_step) -> None:  # noqa: F811
    algorithm = make(ragged, tmp_path, n_step=n_step, gamma=0.9, exploration_initial_eps=0.5)
    collect(algorithm)
    policy = algorithm.policy
    policy.follow()
    tiny.perturb(policy, seed=3, scale=0.05)
    algorithm.n_updates = 1  # the target network stays where it was
    episodes = [experience(e) for e in algorithm.episodes]
    total = []
    for e, episode in zip(episodes, algorithm.episodes, strict=True):
        with torch.no_grad():
            best = naive_q(policy, e).argmax(-1)
            with policy.as_target():
                ahead = naive_q(policy, e).gather(-1, best[:, None])[:, 0]
        rewards = token_rewards(episode)
        values = naive_q(policy, e)[
            torch.arange(len(rewards)), torch.from_numpy(e.segment.ids[e.segment.trained]).long()
        ]
        for t in range(len(rewards)):
            end = len(rewards) if n_step is None else min(t + n_step, len(rewards))
            target = sum(0.9 ** (i - t) * float(rewards[i]) for i in range(t, end))
            target += 0.9 ** (end - t) * float(ahead[end]) if end < len(rewards) else 0.0
            total.append(torch.nn.functional.smooth_l1_loss(values[t], torch.tensor(target)))
    loss = torch.stack(total).mean()
    policy.zero_grad()
    loss.backward()
    expected = tiny.gradients(policy)
    algorithm.train()
    assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    tiny.assert_same(expected, tiny.gradients(policy))


def test_how_episodes_are_packed_and_in_which_order_does_not_matter(ragged, tmp_path) -> None:  # noqa: F811
    found = []
    for tokens, reverse in ((1, False), (10**9, False), (10**9, True)):
        algorithm = make(ragged, tmp_path, tokens_per_pass=tokens, n_step=2)
        collect(algorithm)
        algorithm.episodes = algorithm.episodes[:: -1 if reverse else 1]
        algorithm.train()
        found.append((tiny.gradients(algorithm.policy), logged(algorithm)))
    for gradients, values in found[1:]:
        tiny.assert_same(found[0][0], gradients)
        assert values == pytest.approx(found[0][1], abs=1e-5)


def test_what_stands_in_the_prompts_padding_does_not_matter(ragged, tmp_path) -> None:  # noqa: F811
    found = []
    for longest in (64, 96):
        algorithm = make(ragged, tmp_path, env_kwargs={**LETTERS, "max_prompt_tokens": longest})
        collect(algorithm)
        algorithm.train()
        found.append(([e.response_ids.tolist() for e in algorithm.episodes], tiny.gradients(algorithm.policy)))
    assert found[0][0] == found[1][0]
    tiny.assert_same(found[0][1], found[1][1])


def test_the_target_network_follows_by_copies_or_a_little_at_a_time(ragged, tmp_path) -> None:  # noqa: F811
    algorithm = make(ragged, tmp_path, n_step=1, target_update_interval=2, gradient_steps=3)
    collect(algorithm)
    before = tiny.trained(algorithm.policy)
    algorithm.train()  # it was copied before the first step and before the third
    kept = {name: value.clone() for name, value in algorithm.policy.target_tensors.items()}
    now = tiny.trained(algorithm.policy)
    assert kept.keys() == now.keys()
    moved = [
        name for name in now if not torch.equal(kept[name], now[name]) and not torch.equal(kept[name], before[name])
    ]
    assert moved
    algorithm.policy.follow(0.25)
    for name, value in algorithm.policy.target_tensors.items():
        torch.testing.assert_close(value, kept[name] + 0.25 * (now[name] - kept[name]))


def test_exploration_falls_in_a_line_and_then_stays(ragged, tmp_path) -> None:  # noqa: F811
    algorithm = make(ragged, tmp_path, exploration_initial_eps=0.9, exploration_final_eps=0.1, learning_starts=20)
    rates: list[float] = []
    start = tiny.trained(algorithm.policy)
    moved: list[bool] = []

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        rates.append(algorithm.logger.name_to_value["rollout/exploration_rate"])
        moved.append(any(not torch.equal(value, start[name]) for name, value in tiny.trained(algorithm.policy).items()))
        return True

    algorithm.learn(200, callback=watch)
    assert rates[0] == 0.9 and rates[-1] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)
    assert len(set(rates)) > 2
    assert not moved[0] and moved[-1] and algorithm.n_updates > 0


# -------------------------------------------------------------------- keeping


def test_the_replay_drops_the_oldest_and_comes_back_to_the_bit() -> None:
    def kept(i: int, candidates: bool) -> Experience:
        trained = np.array([True, False, True])
        segment = Segment(np.arange(i + 1, dtype=np.int32), np.full(3, i, np.int32), trained)
        return Experience(
            segment, torch.tensor([0.1 * i, -1.0]), torch.full((2, 4), i, dtype=torch.int32) if candidates else None
        )

    for candidates in (True, False):
        replay, other = Replay(3), Replay(3)
        replay.add([kept(i, candidates) for i in range(2)])
        replay.add([kept(i, candidates) for i in range(2, 5)])
        assert [int(e.segment.ids[0]) for e in replay.kept] == [2, 3, 4]
        other.set_tensors(replay.tensors())
        for mine, theirs in zip(replay.kept, other.kept, strict=True):
            for name in ("context", "ids", "trained"):
                left, right = getattr(mine.segment, name), getattr(theirs.segment, name)
                assert np.array_equal(left, right) and left.dtype == right.dtype
            assert torch.equal(mine.rewards, theirs.rewards)
            assert (mine.candidates is None and theirs.candidates is None) or torch.equal(
                mine.candidates, theirs.candidates
            )
        drawn = [[int(e.segment.ids[0]) for e in r.sample(2, np.random.default_rng(1))] for r in (replay, other)]
        assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2
        assert len(replay.sample(9, np.random.default_rng(1))) == 3
    other.set_tensors(Replay(3).tensors())
    assert len(other) == 0


@pytest.mark.parametrize("trained", [{"lora": 4}, {"lora": None}])
def test_what_was_saved_acts_the_same(ragged, tmp_path, trained) -> None:  # noqa: F811
    """Its candidates are still those of the model before training."""
    algorithm = make(ragged, tmp_path, policy_kwargs=trained)
    algorithm.learn(60)
    algorithm.save(tmp_path / "saved")
    loaded = DQN.load(tmp_path / "saved", algorithm.env, device="cpu")
    obs = algorithm.env.reset()
    with torch.no_grad():
        one, other = (a.policy.get_distribution(tiny.tensors(obs)).distribution.probs for a in (algorithm, loaded))
    torch.testing.assert_close(one, other)
    assert loaded.top_k == 5 and (one > 0).sum(-1).tolist() == [5] * 8


def test_a_run_is_evaluated_as_it_was_trained(tmp_path, tiny_model) -> None:
    data = documents(tmp_path / "docs.jsonl", references=True)
    changes = {"top_k": 3, "exploration_final_eps": 0.25, "learning_rate": 1e-2}
    train(
        TrainArguments(
            env=ENV, algo="dqn", policy=tiny_model, data=data, steps=2, out=str(tmp_path / "run"), hyperparams=changes
        )
    )
    source = find_policy(str(tmp_path / "run"))
    assert source.config is not None
    policy: Any = load_policy(source, make_envs(ENV, 2, "test", source.config["env_kwargs"]))
    assert isinstance(policy, QPolicy)
    assert (policy.top_k, policy.epsilon, policy.guide.adapter) == (3, 0.25, None)


def test_what_cannot_be_is_an_error(tiny_model, tmp_path) -> None:
    for option, message in (
        ({"top_k": 1}, "top_k=1 leaves nothing to choose from"),
        ({"exploration_final_eps": 1.5}, "exploration_final_eps=1.5 must be from 0 to 1"),
        ({"exploration_initial_eps": 2}, "exploration_initial_eps=2 must be from 0 to 1"),
        ({"gradient_steps": 0}, "gradient_steps=0 must be a positive integer"),
        ({"batch_size": 0}, "batch_size=0 must be a positive integer"),
        ({"learning_starts": 9, "buffer_size": 8}, "learning_starts=9 is more than buffer_size=8 holds"),
        ({"advantage_scale": 0.0}, "scale=0.0 must be positive"),
        ({"n_step": 0}, "n_step=0 must be at least 1"),
        ({"tau": 0.0}, "tau=0.0 must be above 0"),
        ({"buffer_size": 0}, "buffer_size=0 holds no episode"),
    ):
        with pytest.raises(LLMGymError, match=message):
            make(tiny_model, tmp_path, **option)
