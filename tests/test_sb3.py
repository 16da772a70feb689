"""Unmodified PPO and A2C: the sequence buffer must make no difference but the cost."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

import tiny
from agents import GymVecEnv, LLMPolicy, SequenceRolloutBuffer
from test_vec_env import Truncate

CAP = 6
N_ENVS = 4
BUFFERS = (SequenceRolloutBuffer, DictRolloutBuffer)


def make(kind: type, buffer: type, model: str, folder: Path, limit: int | None = None, **kwargs: Any) -> Any:
    """Return an algorithm whose minibatch is the whole rollout and whose optimizer is plain gradient descent."""
    env = tiny.make_env(model, folder, n_envs=N_ENVS, seed=1, max_new_tokens=CAP)
    if limit is not None:
        env = VecMonitor(GymVecEnv(Truncate(env.unwrapped.envs, limit)))
        env.seed(1)
    arguments = {"gamma": 0.9, "gae_lambda": 0.8, "learning_rate": 0.1, "ent_coef": 0.05, "vf_coef": 0.4, **kwargs}
    policy_kwargs = {"model": model, "lora": 4, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    if kind is PPO:
        arguments = {"batch_size": arguments["n_steps"] * N_ENVS, "n_epochs": 2, **arguments}
    algorithm = kind(
        LLMPolicy, env, seed=3, rollout_buffer_class=buffer, policy_kwargs=policy_kwargs, device="cpu", **arguments
    )
    tiny.perturb(algorithm.policy)
    return algorithm


class Watch(BaseCallback):
    """Note after each rollout what was collected, and before the next what the update logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, np.ndarray]] = []
        self.logs: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.logs.append({k: v for k, v in self.logger.name_to_value.items() if k.startswith("train/")})

    def _on_rollout_end(self) -> None:
        names = ("actions", "rewards", "values", "log_probs", "advantages", "returns", "episode_starts")
        b = self.model.rollout_buffer
        self.rollouts.append({n: getattr(b, n).reshape(b.buffer_size, b.n_envs).copy() for n in names})


def train(algorithm: Any, rollouts: int) -> Watch:
    watch = Watch()
    algorithm.learn(rollouts * algorithm.n_steps * N_ENVS, callback=watch, log_interval=10**6)
    watch.logs.append({k: v for k, v in algorithm.logger.name_to_value.items() if k.startswith("train/")})
    return watch


def assert_equal_training(left: Any, right: Any, rollouts: int = 3) -> Watch:
    """Train both and compare rollouts, losses, gradients and weights."""
    start = tiny.trained(left.policy)
    a, b = train(left, rollouts), train(right, rollouts)
    for one, two in zip(a.rollouts, b.rollouts, strict=True):
        assert np.array_equal(one["actions"], two["actions"])
        for name in one:
            np.testing.assert_allclose(one[name], two[name], atol=2e-5, rtol=1e-4, err_msg=name)
    for one, two in zip(a.logs[1:], b.logs[1:], strict=True):
        assert one.keys() == two.keys() and any("loss" in name for name in one)
        for name in one:
            assert one[name] == pytest.approx(two[name], abs=2e-5, rel=1e-4), name
    tiny.assert_same(tiny.gradients(left.policy), tiny.gradients(right.policy), 1e-5)
    end = tiny.trained(left.policy)
    tiny.assert_same(end, tiny.trained(right.policy), 1e-5)
    assert max((end[name] - start[name]).abs().max() for name in end) > 1e-3  # something was learnt
    return a


# -------------------------------------------------------------------- the same as with the stock buffer


@pytest.mark.parametrize("n_steps", [CAP, CAP + 1, 2 * CAP + 5])
def test_ppo_trains_as_with_the_stock_buffer(ragged, tmp_path, n_steps) -> None:
    watch = assert_equal_training(*[make(PPO, buffer, ragged, tmp_path, n_steps=n_steps) for buffer in BUFFERS])
    inner = np.concatenate([r["episode_starts"][1:] for r in watch.rollouts])
    assert 0.05 < inner.mean() < 0.6  # episodes ended in the middle, at different times
    assert any(not r["episode_starts"][0].all() for r in watch.rollouts[1:])  # and rollouts cut some


def test_ppo_with_one_step_more_than_full_episodes(tiny_model, tmp_path) -> None:
    """No text stops early, so that every rollout ends one token into a new episode."""
    watch = assert_equal_training(*[make(PPO, b, tiny_model, tmp_path, n_steps=CAP + 1) for b in BUFFERS])
    assert watch.rollouts[0]["episode_starts"][[0, CAP]].all()
    assert not watch.rollouts[1]["episode_starts"][0].any()


@pytest.mark.filterwarnings("ignore:n_steps=5 is shorter than an episode:UserWarning")
def test_a2c_with_cut_episodes_trains_as_with_the_stock_buffer(tiny_model, ragged, tmp_path) -> None:
    for model in (tiny_model, ragged):
        pair = [make(A2C, buffer, model, tmp_path, n_steps=5, gae_lambda=1.0) for buffer in BUFFERS]
        watch = assert_equal_training(*pair, rollouts=5)
        assert any(not r["episode_starts"][0].all() for r in watch.rollouts[1:])


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_a_time_limit_bootstraps_as_with_the_stock_buffer(ragged, tmp_path, kind) -> None:
    pair = [make(kind, buffer, ragged, tmp_path, limit=3, n_steps=8) for buffer in BUFFERS]
    plain = make(kind, SequenceRolloutBuffer, ragged, tmp_path, limit=3, n_steps=8, gamma=1e-9)
    watch = assert_equal_training(*pair)
    raw = train(plain, 1)
    assert np.array_equal(watch.rollouts[0]["actions"], raw.rollouts[0]["actions"])
    added = watch.rollouts[0]["rewards"] - raw.rollouts[0]["rewards"]
    assert (np.abs(added) > 1e-4).any()  # values of cut texts were added to rewards


def test_the_bootstrap_is_the_value_of_the_last_observation(ragged, tmp_path) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, ragged, tmp_path, limit=3, n_steps=8)
    seen: list[tuple[int, int, float]] = []

    class Check(BaseCallback):
        def _on_step(self) -> bool:
            for row, info in enumerate(self.locals["infos"]):
                if info.get("TimeLimit.truncated"):
                    one = {key: value[None] for key, value in info["terminal_observation"].items()}
                    with torch.no_grad():
                        value = tiny.naive(self.model.policy, one)[1].item()
                    seen.append((self.locals["n_steps"], row, 0.9 * value + float(self.locals["rewards"][row])))
            return True

        def _on_rollout_end(self) -> None:
            for step, row, reward in seen:
                assert self.model.rollout_buffer.rewards[step, row] == pytest.approx(reward, abs=1e-5)

    algorithm.learn(8 * N_ENVS, callback=Check())
    assert len(seen) >= 4


# -------------------------------------------------------------------- ratios, minibatches and cost


@pytest.mark.parametrize("n_steps", [4, CAP + 1, 16])
@pytest.mark.filterwarnings("ignore:n_steps=4 is shorter than an episode:UserWarning")
def test_the_ratio_is_one_in_the_first_minibatches(ragged, tmp_path, n_steps) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, ragged, tmp_path, n_steps=n_steps)
    checked = []

    class Check(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            policy = self.model.policy
            for samples in self.model.rollout_buffer.get(7):
                values, log_probs, _ = policy.evaluate_actions(samples.observations, samples.actions.long().flatten())
                torch.testing.assert_close(log_probs, samples.old_log_prob, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(values.flatten(), samples.old_values, atol=1e-5, rtol=1e-5)
                checked.append(len(log_probs))

    algorithm.learn(3 * n_steps * N_ENVS, callback=Check())
    assert sum(checked) == 3 * n_steps * N_ENVS


def test_minibatches_smaller_than_the_rollout_train(ragged, tmp_path) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, ragged, tmp_path, n_steps=12, batch_size=16)
    before = tiny.trained(algorithm.policy)
    train(algorithm, 2)
    after = tiny.trained(algorithm.policy)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_an_update_runs_far_fewer_tokens(tiny_model, tmp_path) -> None:
    tokens = {}
    for buffer in BUFFERS:
        algorithm = make(PPO, buffer, tiny_model, tmp_path, n_steps=2 * CAP, n_epochs=1)
        counted: list[int] = []

        def count(module: Any, args: Any, kwargs: Any, counted: list[int] = counted) -> None:
            if torch.is_grad_enabled():
                counted.append(kwargs["input_ids"].numel())

        algorithm.policy.backbone.register_forward_pre_hook(count, with_kwargs=True)
        train(algorithm, 1)
        tokens[buffer] = sum(counted)
    assert 0 < tokens[SequenceRolloutBuffer] < tokens[DictRolloutBuffer] / 4


def test_a_rollout_runs_one_token_a_step_and_row(tiny_model, tmp_path) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, tiny_model, tmp_path, n_steps=CAP)
    steps: list[int] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(self.model.policy._engines["rollout"].tokens_run)
            return True

    algorithm.learn(CAP * N_ENVS, callback=Count())
    assert np.diff(steps).tolist() == [N_ENVS] * (CAP - 1)


def test_short_rollouts_warn_once(tiny_model, tmp_path) -> None:
    with pytest.warns(UserWarning) as caught:
        algorithm = make(A2C, SequenceRolloutBuffer, tiny_model, tmp_path, n_steps=4)
        train(algorithm, 3)
    assert len([w for w in caught if "shorter than an episode" in str(w.message)]) == len(caught) == 1


# -------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_the_same_seed_gives_the_same_weights_to_the_bit(ragged, tmp_path, kind) -> None:
    runs = []
    for seed_of_others in (0, 1):
        torch.manual_seed(seed_of_others)
        np.random.seed(seed_of_others)
        algorithm = make(kind, SequenceRolloutBuffer, ragged, tmp_path, n_steps=8, **small_batches(kind))
        train(algorithm, 2)
        runs.append(tiny.trained(algorithm.policy))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def small_batches(kind: type) -> dict[str, int]:
    return {"batch_size": 8} if kind is PPO else {}


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_learning_saving_and_loading_keeps_what_was_learnt(ragged, tmp_path, kind) -> None:
    env = tiny.make_env(ragged, tmp_path, n_envs=N_ENVS)
    algorithm = kind(
        LLMPolicy,
        env,
        n_steps=8,
        seed=0,
        learning_rate=1e-2,
        rollout_buffer_class=SequenceRolloutBuffer,
        policy_kwargs={"model": ragged, "lora": 4, "temperature": 0.7},
        **small_batches(kind),
    )
    algorithm.learn(2 * 8 * N_ENVS)
    algorithm.save(tmp_path / "model.zip")
    loaded = kind.load(tmp_path / "model.zip", env=env)
    alone = kind.load(tmp_path / "model.zip")  # without an environment, to predict only
    obs = env.reset()
    for _ in range(8):
        expected, _ = algorithm.predict(obs, deterministic=True)
        for other in (loaded, alone):
            assert np.array_equal(other.predict(obs, deterministic=True)[0], expected)
        obs, *_ = env.step(expected)
    for name, value in algorithm.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], value)
    assert loaded.policy.temperature == 0.7
    loaded.learn(8 * N_ENVS)  # and it goes on


def test_the_saved_file_holds_no_model(tiny_model, tmp_path) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, tiny_model, tmp_path, n_steps=CAP)
    train(algorithm, 1)
    algorithm.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        saved = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
        other = sum(info.file_size for info in archive.infolist() if not info.filename.endswith(".pth"))
        weights = archive.getinfo("policy.pth").file_size
    assert set(saved) == {name for name, p in algorithm.policy.named_parameters() if p.requires_grad}
    trainable = sum(4 * value.numel() for value in saved.values())
    model = sum(4 * p.numel() for p in algorithm.policy.parameters())
    assert weights < trainable + 30_000 < model  # names and headers of 29 tensors
    assert other < 60_000


def test_a_policy_can_be_saved_and_loaded_by_itself(ragged, tmp_path) -> None:
    algorithm = make(PPO, SequenceRolloutBuffer, ragged, tmp_path, n_steps=CAP)
    algorithm.policy.save(tmp_path / "policy.pth")
    loaded = LLMPolicy.load(tmp_path / "policy.pth", device="cpu")
    obs = algorithm.env.reset()
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], algorithm.predict(obs, deterministic=True)[0])


def test_sb3s_own_make_vec_env_works_too(tiny_model, tmp_path) -> None:
    from stable_baselines3.common.env_util import make_vec_env as stock_make_vec_env

    kwargs = {"tokenizer": tiny_model, "feedback": {"brevity": -1.0}, "max_new_tokens": 4}
    with pytest.warns(UserWarning, match="render_mode"):  # it asks for rgb_array before it goes without
        env = stock_make_vec_env("TextSummary-v0", n_envs=2, seed=0, env_kwargs=kwargs)
    algorithm = PPO(
        LLMPolicy,
        env,
        rollout_buffer_class=SequenceRolloutBuffer,
        n_steps=8,
        batch_size=8,
        n_epochs=1,
        policy_kwargs={"model": tiny_model, "lora": 4},
    )
    assert algorithm.learn(16).num_timesteps == 16
