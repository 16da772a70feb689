"""Writing without a look from the host gives what writing token by token gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from agents import LLMPolicy, rollout
from agents.rollout import play
from llm_gym.models.packing import Segment, pack


@pytest.fixture
def as_on_cuda(monkeypatch) -> None:
    """Let policies write by strides on this machine's processor: the same steps, run instead of replayed."""
    monkeypatch.setattr(LLMPolicy, "_can_stride", lambda self: True)


def policy_of(model: str, folder: Path) -> LLMPolicy:
    return tiny.make_policy(tiny.make_env(model, folder, n_envs=5, max_new_tokens=20), model, seed=3)


def records(episodes: Any) -> list[str]:
    for episode in episodes:
        episode.log_probs = np.round(episode.log_probs, 4)
    return [episode.to_json() for episode in episodes]


@pytest.mark.parametrize("stride", [2, 3, 16, 64])
def test_likeliest_tokens_are_those_of_writing_token_by_token(ragged, tmp_path, stride, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "STRIDE", stride)
    envs = tiny.text_envs(ragged, tmp_path, 4)
    examples = [*envs.example_ids, *envs.example_ids[:2]] * 2  # more than rows: others take their places
    expected = records(play(policy_of(ragged, tmp_path), envs, examples, deterministic=True))
    assert len({len(e.response_ids) for e in envs.episodes}) > 1
    monkeypatch.setattr(LLMPolicy, "_can_stride", lambda self: True)
    policy = policy_of(ragged, tmp_path)
    assert records(play(policy, envs, examples, deterministic=True)) == expected
    assert policy._strides._kept


def test_samples_are_those_of_writing_token_by_token_until_a_row_has_ended(tiny_model, tmp_path, monkeypatch) -> None:
    envs = tiny.text_envs(tiny_model, tmp_path, 5)
    envs.reset(options={"example": [envs.example_ids[i % 3] for i in range(5)]})
    rows = np.array([4, 0, 2])
    written = []
    for by_stride in (False, True):
        monkeypatch.setattr(LLMPolicy, "_can_stride", lambda self, yes=by_stride: yes)
        policy = policy_of(tiny_model, tmp_path)
        policy._stop_ids = []
        written.append(policy.write(envs.observation(), rows, 16))
    (tokens, chances), (others, their_chances) = written
    assert tokens.min() >= 0 and len(set(tokens.ravel())) > 10
    np.testing.assert_array_equal(others, tokens)
    np.testing.assert_allclose(their_chances, chances, atol=1e-5)


def test_log_probabilities_of_samples_are_those_that_training_computes(ragged, tmp_path, as_on_cuda) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 5)
    policy = policy_of(ragged, tmp_path)
    episodes = play(policy, envs, envs.example_ids * 4)
    assert len({len(e.response_ids) for e in episodes}) > 2
    packed = pack([Segment(e.prompt_ids, e.response_ids, e.agent_mask) for e in episodes])
    with torch.no_grad():
        _, expected, _ = policy.evaluate_actions(packed, packed.targets)
    found = np.concatenate([e.log_probs[e.agent_mask] for e in episodes])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rows_that_do_not_write_keep_what_was_read(ragged, tmp_path, as_on_cuda) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 5)
    envs.reset(options={"example": [envs.example_ids[i % 3] for i in range(5)]})
    policy, alone = (policy_of(ragged, tmp_path) for _ in range(2))
    for rows in ([0, 1, 2, 3, 4], [3, 1], [0, 2, 4], [4]):
        obs = envs.observation()
        tokens, log_probs = policy.write(obs, np.array(rows), 3, deterministic=True)
        for row, some, values in zip(rows, tokens, log_probs, strict=True):
            alone.forget()
            mine, chances = alone.write(obs, np.array([row]), 3, deterministic=True)
            np.testing.assert_array_equal(some, mine[0])
            np.testing.assert_allclose(values, chances[0], atol=1e-5)
        for column in range(3):
            going = tokens[:, column] >= 0
            envs.write(np.array(rows)[going], tokens[going, column])


def test_a_turn_ends_at_its_cap_and_at_a_stop_token(tiny_model, tmp_path, as_on_cuda) -> None:
    envs = tiny.text_envs(tiny_model, tmp_path, 3)
    envs.reset()
    policy = policy_of(tiny_model, tmp_path)
    policy._stop_ids = []
    caps = np.array([1, 5, 30])
    observation = {**envs.observation(), "tokens_left": caps[:, None]}
    tokens, log_probs = policy.write(observation, np.arange(3), 8, deterministic=True)
    assert (tokens >= 0).sum(1).tolist() == [1, 5, 8]
    assert ((log_probs < 0) == (tokens >= 0)).all()
    assert policy._engines["act"].tokens_run  # counted, as token by token
    policy.forget()
    policy._strides = type(policy._strides)()
    policy._stop_ids = [int(tokens[2, 3])]
    first = tokens[2].tolist().index(tokens[2, 3])
    stopped, _ = policy.write(observation, np.arange(3), 8, deterministic=True)
    assert (stopped[2] >= 0).sum() == first + 1 and stopped[2, first] == tokens[2, 3]


@pytest.mark.parametrize("change", ["in place", "moved", "adapter off", "temperature"])
def test_weights_that_change_count_at_once(ragged, tmp_path, as_on_cuda, change) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 5)
    envs.reset()
    policy = policy_of(ragged, tmp_path)
    weights = [p for name, p in policy.lm.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        for p in weights:
            p.normal_(0, 0.2)
    obs, rows = envs.observation(), np.arange(5)
    _, before = policy.write(obs, rows, 6, deterministic=True)
    kept = dict(policy._strides._kept)
    if change == "temperature":
        policy.temperature = 0.5
    for p in weights if change in ("in place", "moved") else ():
        if change == "moved":
            p.data = p.data * 3
        else:
            p.data.mul_(3)
    policy.forget()
    with policy.reference() if change == "adapter off" else torch.no_grad():
        tokens, log_probs = policy.write(obs, rows, 6, deterministic=True)
        assert (policy._strides._kept == kept) == (change == "in place")
        monkey = pytest.MonkeyPatch()
        monkey.setattr(LLMPolicy, "_can_stride", lambda self: False)
        policy.forget()
        expected, values = policy.write(obs, rows, 6, deterministic=True)
        monkey.undo()
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_probs, values, atol=1e-4)
    assert np.abs(log_probs - before).max() > 1e-2


class OnDevice(TorchDispatchMode):
    """Fails where a value would be read back to the host, or a size depend on one: no graph could hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"), name
        assert name != "where" or "Scalar" not in func._overloadname, "numbers are copied to the device"
        self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_step_reads_nothing_back_and_makes_no_tensor_from_the_host(ragged, tmp_path, as_on_cuda, greedy) -> None:
    envs = tiny.text_envs(ragged, tmp_path, 5)
    envs.reset()
    policy = policy_of(ragged, tmp_path)
    policy.write(envs.observation(), np.arange(5), 4, deterministic=greedy)
    (stride,) = policy._strides._kept.values()
    fixed = {name: value.data_ptr() for name, value in vars(stride).items() if isinstance(value, torch.Tensor)}
    cache = [tensor.data_ptr() for tensor in (*stride.engine.cache.keys, *stride.engine.cache.values)]
    stride._idle()
    with OnDevice() as mode, torch.no_grad():
        stride._step()
    assert "index_copy_" in mode.seen and "lift_fresh" not in mode.seen  # `torch.tensor(...)` copies from the host
    assert fixed == {name: value.data_ptr() for name, value in vars(stride).items() if isinstance(value, torch.Tensor)}
    assert cache == [tensor.data_ptr() for tensor in (*stride.engine.cache.keys, *stride.engine.cache.values)]
