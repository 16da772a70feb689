"""Unmodified algorithms of other libraries learn through the wrappers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import DQN, PPO

import tiny
import tiny_task  # noqa: F401
from agents import make_vec_env
from agents.wrappers import VectorHiddenStateObservation, VectorTopKActions

ON_POLICY: dict[str, Any] = {"n_steps": 16, "gamma": 1.0, "learning_rate": 3e-3}
OFF_POLICY: dict[str, Any] = {
    "learning_rate": 2e-3,
    "learning_starts": 200,
    "gradient_steps": 4,
    "train_freq": 1,
    "exploration_fraction": 0.5,
    "target_update_interval": 100,
    "gamma": 1.0,
}
ALGORITHMS = [
    (PPO, {**ON_POLICY, "batch_size": 64, "n_epochs": 8}),
    (TRPO, {**ON_POLICY, "batch_size": 64}),
    (DQN, OFF_POLICY),
    (QRDQN, {**OFF_POLICY, "policy_kwargs": {"n_quantiles": 10}}),
]


def make(model: str, folder: Path, env_id: str = "TextSummary-v0", **changes: Any) -> Any:
    """Return six short documents, about which texts with many an e are to be written."""
    return make_vec_env(
        env_id,
        n_envs=16,
        seed=0,
        wrapper_class=lambda envs: VectorHiddenStateObservation(VectorTopKActions(envs, 6, model), model),
        **{
            "tokenizer": model,
            "data": tiny.write_data(folder),
            "split": "all",
            "feedback": {"tiny:LetterShare": 1.0},
            "instruction": "Sum up:",
            "max_prompt_tokens": 64,
            "max_new_tokens": 3,
            **changes,
        },
    )


def trained(kind: Any, env: Any, steps: int, **arguments: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return a trained agent, and how each episode that it was trained on ended."""
    agent = kind("MlpPolicy", env, seed=0, device="cpu", **arguments)
    ends: list[dict[str, Any]] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        ends.extend(info for info in local["infos"] if "episode" in info)
        return True

    agent.learn(steps, callback=note)
    return agent, ends


def quarters(ends: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean return of the first and of the last quarter of the episodes."""
    returns = [float(info["episode"]["r"]) for info in ends]
    return float(np.mean(returns[: len(returns) // 4])), float(np.mean(returns[-(len(returns) // 4) :]))


@pytest.mark.parametrize(("kind", "arguments"), ALGORITHMS, ids=[kind.__name__ for kind, _ in ALGORITHMS])
def test_an_ordinary_mlp_learns_through_the_wrappers(kind, arguments, tiny_model, tmp_path):
    env = make(tiny_model, tmp_path)
    agent, ends = trained(kind, env, 2000, **arguments)
    first, last = quarters(ends)
    assert last > 1.4 * first
    action, _ = agent.predict(env.reset(), deterministic=True)
    assert action.shape == (16,) and action.max() < 6


def test_maskable_ppo_learns_among_legal_actions(tiny_model, tmp_path):
    env = make(tiny_model, tmp_path, "Colours-v0", max_new_tokens=12)
    assert np.stack(env.env_method("action_masks")).shape == (16, 6)
    _, ends = trained(MaskablePPO, env, 2000, batch_size=64, n_epochs=8, **ON_POLICY)
    first, last = quarters(ends)
    assert last > 1.15 * first and "illegal" not in {info["finish_reason"] for info in ends}


def test_the_page_is_followed_to_the_letter(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "plug_in.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(block, "docs/plug_in.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["after"] > names["before"] + 0.3
    assert f"{names['before']:.2f} before, {names['after']:.2f} after" in printed
    assert (tmp_path / "texts" / "episodes.jsonl").exists()
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert re.search(r"^```\n(pip install.*?)\n```", page, re.M).group(1) in readme  # type: ignore[union-attr]
