from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import tiny
from agents import GRPO, LLMPolicy
from llm_gym.errors import LLMGymError

GROUP = 4


def make(
    model: str,
    folder: Path,
    n_envs: int = 12,
    env_kwargs: dict[str, Any] | None = None,
    moved: bool = True,
    **kwargs: Any,
) -> GRPO:
    """Return GRPO with plain gradient descent, so that weights compare as gradients do."""
    env = tiny.make_env(model, folder, n_envs=n_envs, **(env_kwargs or {"feedback": {"tiny:LetterShare": 1.0}}))
    policy_kwargs = {"model": model, "lora": 4, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    policy_kwargs.update(kwargs.pop("policy_kwargs", {}))
    arguments = {"group_size": GROUP, "seed": 0, "device": "cpu", "learning_rate": 0.1, **kwargs}
    algorithm = GRPO(LLMPolicy, env, policy_kwargs=policy_kwargs, **arguments)
    if moved:
        tiny.perturb(algorithm.policy)
    return algorithm


class Collect(BaseCallback):
    """Keep the episodes of every iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.batches.append(list(self.model.episodes))


def collect(algorithm: GRPO) -> Collect:
    """Collect one batch of episodes without learning from it."""
    _, callback = algorithm._setup_learn(10**6, Collect())
    assert algorithm.collect(callback)
    return callback


def logged(algorithm: GRPO) -> dict[str, float]:
    return {k.removeprefix("train/"): v for k, v in algorithm.logger.name_to_value.items() if k.startswith("train/")}


def naive_log_probs(policy: LLMPolicy, episode: Any) -> torch.Tensor:
    """Return the log-probabilities of what the agent wrote, by one plain forward of this episode."""
    ids = torch.from_numpy(np.concatenate([episode.prompt_ids, episode.response_ids]).astype(np.int64))
    logits = policy.lm(input_ids=ids[None], use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1]
    log_probs = (logits[:, : policy.actions] / policy.temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, ids[len(episode.prompt_ids) :, None])[:, 0]
    return chosen[torch.from_numpy(episode.agent_mask)]


def naive_loss(algorithm: GRPO) -> torch.Tensor:
    """The loss of `algorithm.episodes` by the book: Shao et al. 2024, averaged over tokens."""
    policy, episodes = algorithm.policy, algorithm.episodes
    rewards = np.array([e.reward for e in episodes]).reshape(-1, GROUP)
    advantages = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    total, count = torch.zeros(()), 0
    for episode, advantage in zip(episodes, advantages.flatten(), strict=True):
        now = naive_log_probs(policy, episode)
        with torch.no_grad(), policy.lm.disable_adapter():
            reference = naive_log_probs(policy, episode)
        old = torch.from_numpy(episode.log_probs[episode.agent_mask])
        ratio = (now - old).exp()
        clipped = ratio.clamp(1 - algorithm.clip_range, 1 + algorithm.clip_range)
        surrogate = torch.min(ratio * float(advantage), clipped * float(advantage))
        kl = (reference - now).exp() - (reference - now) - 1
        total = total + (algorithm.kl_coef * kl - surrogate).sum()
        count += len(now)
    return total / count


# -------------------------------------------------------------------- fast equals naive


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_loss_and_gradient_are_those_of_one_episode_at_a_time(ragged, tmp_path, temperature) -> None:
    algorithm = make(ragged, tmp_path, kl_coef=0.3, max_grad_norm=1e9, policy_kwargs={"temperature": temperature})
    collect(algorithm)
    assert len({len(e.response_ids) for e in algorithm.episodes}) > 1
    assert len({len(e.prompt_ids) for e in algorithm.episodes}) > 1
    loss = naive_loss(algorithm)
    loss.backward()
    expected = tiny.gradients(algorithm.policy)
    assert not any(value.any() for name, value in expected.items() if "value_head" in name)
    before = tiny.trained(algorithm.policy)
    algorithm.train()
    tiny.assert_same(expected, {name: value for name, value in tiny.gradients(algorithm.policy).items()})
    assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for name, value in algorithm.policy.state_dict().items():
        if name in expected:
            torch.testing.assert_close(value, before[name] - 0.1 * expected[name], atol=1e-5, rtol=1e-4)


def test_later_epochs_are_those_of_one_episode_at_a_time(ragged, tmp_path) -> None:
    """From the second epoch on ratios differ from 1 and clipping counts."""
    options = {"kl_coef": 0.1, "max_grad_norm": 1e9, "clip_range": 0.05, "learning_rate": 2.0}
    fast, slow = make(ragged, tmp_path, n_epochs=3, **options), make(ragged, tmp_path, n_epochs=3, **options)
    for algorithm in (fast, slow):
        collect(algorithm)
    fast.train()
    for _ in range(3):
        slow.policy.optimizer.zero_grad()
        slow.policy.optimizer.param_groups[0]["lr"] = 2.0
        naive_loss(slow).backward()
        slow.policy.optimizer.step()
    assert logged(fast)["clip_fraction"] > 0.02
    tiny.assert_same(tiny.trained(fast.policy), tiny.trained(slow.policy), 5e-5)


@pytest.mark.parametrize("tokens", [1, 120, 200])
def test_tokens_per_pass_does_not_change_the_gradient(ragged, tmp_path, tokens) -> None:
    found, passes = [], []
    for limit in (tokens, 10**9):
        algorithm = make(ragged, tmp_path, n_envs=24, tokens_per_pass=limit, max_grad_norm=1e9)
        collect(algorithm)
        counted: list[int] = []
        algorithm.policy.backbone.register_forward_pre_hook(
            lambda module, args, kwargs, counted=counted: counted.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        algorithm.train()
        passes.append(counted)
        found.append((tiny.gradients(algorithm.policy), logged(algorithm)))
    tiny.assert_same(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    assert len(passes[0]) > len(passes[1])
    assert tokens == 1 or max(passes[0]) <= tokens  # a group is never split


def test_recorded_log_probabilities_are_those_of_a_naive_forward(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path)
    collect(algorithm)
    for episode in algorithm.episodes:
        assert episode.log_probs.dtype == np.float32 and len(episode.log_probs) == len(episode.response_ids)
        with torch.no_grad():
            expected = naive_log_probs(algorithm.policy, episode)
        np.testing.assert_allclose(episode.log_probs[episode.agent_mask], expected, atol=1e-5)


def test_the_ratio_is_one_before_the_first_step(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, n_epochs=3, learning_rate=1.0)
    errors = []

    class Check(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            errors.append(self.logger.name_to_value.get("train/ratio_error"))

    algorithm.learn(300, callback=Check(), log_interval=10**6)
    errors.append(algorithm.logger.name_to_value["train/ratio_error"])
    assert len(errors) >= 4
    assert all(error < 1e-4 for error in errors[1:])


# -------------------------------------------------------------------- what is collected


def test_the_members_of_a_group_share_a_prompt(ragged, tmp_path) -> None:
    callback = collect(make(ragged, tmp_path))
    (episodes,) = callback.batches
    assert len(episodes) == 12
    for start in range(0, 12, GROUP):
        group = episodes[start : start + GROUP]
        assert len({e.example["id"] for e in group}) == 1
        assert len({e.prompt_ids.tobytes() for e in group}) == 1
        assert len({e.response_ids.tobytes() for e in group}) > 1  # but not what they wrote


def test_every_example_comes_once_in_an_epoch_in_random_order(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, n_envs=8)  # 2 of 6 examples an iteration
    _, callback = algorithm._setup_learn(10**6, Collect())
    for _ in range(9):
        assert algorithm.collect(callback)
    seen = [e.example["id"] for batch in callback.batches for e in batch[::GROUP]]
    epochs = [seen[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(epoch) == [f"doc-{i}" for i in range(6)] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_more_groups_than_examples_take_examples_again(ragged, tmp_path) -> None:
    (episodes,) = collect(make(ragged, tmp_path, n_envs=8 * GROUP)).batches
    ids = [e.example["id"] for e in episodes[::GROUP]]
    assert len(ids) == 8 and len(set(ids)) == 6


def test_timesteps_are_the_tokens_written(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path)
    callback = Collect()
    algorithm.learn(60, callback=callback)
    written = sum(int(e.agent_mask.sum()) for batch in callback.batches for e in batch)
    assert algorithm.num_timesteps == written >= 60
    assert sum(int(e.agent_mask.sum()) for batch in callback.batches[:-1] for e in batch) < 60


def test_a_callback_can_stop_in_the_middle(ragged, tmp_path) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    algorithm = make(ragged, tmp_path)
    before = tiny.trained(algorithm.policy)
    algorithm.learn(10**6, callback=Stop())
    assert all(torch.equal(value, before[name]) for name, value in algorithm.policy.state_dict().items())
    assert algorithm.episodes == []


# -------------------------------------------------------------------- learning


def test_it_learns_what_anything_can_learn(tiny_model, tmp_path) -> None:
    """Share of the letter e, from under 10 % of what a random model writes to over 25 % in 20 small iterations."""
    algorithm = make(
        tiny_model,
        tmp_path,
        n_envs=32,
        moved=False,
        group_size=8,
        learning_rate=2e-2,
        kl_coef=0.0,
        # The frozen output layer is small; only a low temperature lets a token become likely at all.
        policy_kwargs={"optimizer_class": torch.optim.AdamW, "temperature": 0.25},
    )
    callback = Collect()
    algorithm.learn(20 * 32 * 6, callback=callback)
    means = [np.mean([e.reward for e in batch]) for batch in callback.batches]
    assert means[0] < 0.1
    assert np.mean(means[-3:]) > 0.25


def test_equal_rewards_teach_nothing(tiny_model, tmp_path) -> None:
    algorithm = make(tiny_model, tmp_path, env_kwargs={"feedback": {"repetition": -1.0}}, kl_coef=0.0)
    before = tiny.trained(algorithm.policy)
    collect(algorithm)
    for episode in algorithm.episodes:
        episode.reward = -0.25
    algorithm.train()
    assert all(torch.equal(value, before[name]) for name, value in algorithm.policy.state_dict().items())


def test_the_kl_to_the_reference_is_zero_at_the_start_and_then_grows(tiny_model, tmp_path) -> None:
    algorithm = make(tiny_model, tmp_path, moved=False, learning_rate=1.0)
    collect(algorithm)
    algorithm.train()
    assert logged(algorithm)["kl"] == 0
    collect(algorithm)
    algorithm.train()
    assert logged(algorithm)["kl"] > 0


def test_the_penalty_pulls_back_to_the_reference(ragged, tmp_path) -> None:
    nothing = {"feedback": {"tiny:LetterShare": 0.0}}
    adam = {"optimizer_class": torch.optim.AdamW}
    algorithm = make(ragged, tmp_path, 64, nothing, kl_coef=1.0, learning_rate=1e-2, policy_kwargs=adam)
    kls = []
    for _ in range(16):
        collect(algorithm)
        algorithm.train()
        kls.append(logged(algorithm)["kl"])
    assert kls[-1] < kls[0] / 2


def test_without_a_penalty_there_is_no_reference_pass(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, kl_coef=0.0, policy_kwargs={"lora": None})
    algorithm.learn(20, log_interval=10**6)
    assert "kl" not in logged(algorithm)


def test_gradients_are_clipped(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, max_grad_norm=1e-3, learning_rate=1.0)
    before = tiny.trained(algorithm.policy)
    collect(algorithm)
    algorithm.train()
    moved = sum(((value - before[name]) ** 2).sum() for name, value in algorithm.policy.state_dict().items()).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)
    assert logged(algorithm)["grad_norm"] > 1e-3


@pytest.mark.parametrize("n_epochs", [1, 2])
def test_the_same_seed_gives_the_same_weights_to_the_bit(ragged, tmp_path, n_epochs) -> None:
    def run(seed: int, others: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(others)
        np.random.seed(others)
        algorithm = make(ragged, tmp_path, seed=seed, n_epochs=n_epochs)
        algorithm.learn(120)
        return tiny.trained(algorithm.policy)

    first, second, other = run(5, others=1), run(5, others=2), run(6, others=1)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_an_evaluation_in_between_leaves_training_as_it_was(ragged, tmp_path) -> None:
    runs = []
    for rows in (None, 2, 12):
        algorithm = make(ragged, tmp_path)
        other = None if rows is None else tiny.make_env(ragged, tmp_path, n_envs=rows, seed=9)
        callback = other and EvalCallback(other, eval_freq=4, n_eval_episodes=3, deterministic=True, verbose=0)
        algorithm.learn(120, callback=callback)
        runs.append(tiny.trained(algorithm.policy))
        assert callback is None or np.isfinite(callback.last_mean_reward)
    assert all(torch.equal(value, run[name]) for run in runs[1:] for name, value in runs[0].items())


def test_what_is_logged_agrees_with_the_episodes(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, env_kwargs={"feedback": {"brevity": -1.0, "tiny:LetterShare": 2.0}})
    seen: dict[str, float] = {}
    algorithm.learn(1, log_interval=10**6)
    algorithm.logger.dump = lambda step: seen.update(algorithm.logger.name_to_value)
    algorithm._log(1)
    episodes = algorithm.episodes
    assert seen["rollout/ep_rew_mean"] == pytest.approx(np.mean([e.reward for e in episodes]))
    assert seen["rollout/ep_len_mean"] == pytest.approx(np.mean([len(e.response_ids) for e in episodes]))
    assert seen["parts/brevity"] == pytest.approx(np.mean([e.parts["brevity"] for e in episodes]))
    assert seen["time/total_timesteps"] == sum(len(e.response_ids) for e in episodes)


# -------------------------------------------------------------------- saving


def test_a_folder_brings_back_the_policy_and_the_arguments(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path, kl_coef=0.07, n_epochs=2, clip_range=0.3, policy_kwargs={"temperature": 0.8})
    algorithm.learn(60)
    folder = tmp_path / "runs" / "one"
    algorithm.save(folder)
    assert not list(folder.glob("*.zip")) + list(folder.glob("*.p*"))  # nothing pickled
    assert not list(folder.parent.glob(".*"))  # nothing left aside
    assert json.loads((folder / "algorithm.json").read_text())["kl_coef"] == 0.07
    env = tiny.make_env(ragged, tmp_path, n_envs=8)
    loaded = GRPO.load(folder, env, device="cpu")
    for name in ("group_size", "n_epochs", "clip_range", "kl_coef", "max_grad_norm", "tokens_per_pass", "seed"):
        assert getattr(loaded, name) == getattr(algorithm, name), name
    assert loaded.policy.temperature == 0.8 and loaded.lr_schedule(1) == 0.1
    obs = env.reset()
    with torch.no_grad():
        expected, _ = tiny.naive(algorithm.policy, obs)
        torch.testing.assert_close(tiny.naive(loaded.policy, obs)[0], expected, atol=1e-6, rtol=1e-6)
        with loaded.policy.reference():  # the policy as it was when training began again
            torch.testing.assert_close(tiny.naive(loaded.policy, obs)[0], expected, atol=1e-6, rtol=1e-6)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], algorithm.predict(obs, deterministic=True)[0])
    before = tiny.trained(loaded.policy)
    loaded.learn(40)  # and it goes on
    assert any(not torch.equal(value, before[name]) for name, value in loaded.policy.state_dict().items())
    assert GRPO.load(folder, env, device="cpu", kl_coef=0.0).kl_coef == 0


def test_saving_again_replaces_the_folder(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path)
    algorithm.save(tmp_path / "one")
    (tmp_path / "one" / "stray").write_text("x")
    algorithm.save(tmp_path / "one")
    assert not (tmp_path / "one" / "stray").exists() and (tmp_path / "one" / "algorithm.json").exists()


def test_the_saved_adapter_weighs_what_is_trained(ragged, tmp_path) -> None:
    algorithm = make(ragged, tmp_path)
    algorithm.save(tmp_path / "one")
    weights = sum(4 * v.numel() for name, v in algorithm.policy.state_dict().items() if "lora" in name)
    assert sum(file.stat().st_size for file in (tmp_path / "one").iterdir()) < weights + 30_000


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(("n_envs", "group_size"), [(6, 4), (4, 8), (4, 1), (4, 0)])
def test_rows_that_do_not_divide_into_groups_are_an_error(tiny_model, tmp_path, n_envs, group_size) -> None:
    with pytest.raises(
        LLMGymError, match=f"{n_envs} environments do not divide into groups of group_size={group_size}"
    ):
        make(tiny_model, tmp_path, n_envs=n_envs, group_size=group_size)


def test_an_environment_whose_examples_cannot_be_chosen_is_an_error(tiny_model, tmp_path) -> None:
    arguments = {"tokenizer": tiny_model, "data": tiny.write_data(tmp_path), "split": "all", "feedback": tiny.RULES}
    other = DummyVecEnv([lambda: gym.make("TextSummary-v0", **arguments)] * 4)
    algorithm = GRPO(LLMPolicy, other, group_size=4, device="cpu", policy_kwargs={"model": tiny_model, "lora": 2})
    with pytest.raises(LLMGymError, match="needs an environment from agents.make_vec_env"):
        algorithm.learn(10)


@pytest.mark.parametrize("text", [None, "{not json"])
def test_a_folder_that_save_did_not_write_is_an_error(tmp_path, text) -> None:
    if text is not None:
        (tmp_path / "algorithm.json").write_text(text)
    with pytest.raises(LLMGymError, match="is not a folder that GRPO.save wrote"):
        GRPO.load(tmp_path)


def test_sb3s_arguments_of_save_do_not_apply(tiny_model, tmp_path) -> None:
    with pytest.raises(LLMGymError, match="exclude and include do not apply"):
        make(tiny_model, tmp_path).save(tmp_path / "one", exclude=["policy"])
