"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.models
@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("gymnasium_loop.py", [], "ended by stop"),
        ("stock_ppo.py", ["--iterations", "1", "--n-envs", "2"], "total_timesteps"),
        ("steer_frozen_lm.py", ["ppo", "qr-dqn", "--steps", "768", "--model", "tiny-1k"], "likeliest: score"),
        ("own_task.py", [], "'Flooded road sends buses over the bridge' scores"),
        ("own_scorer.py", [], "own_scorer:ShortWords"),
        ("custom_task.py", [], "'right' scores 1.00"),
    ],
)
def test_an_example_runs(script: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=540, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_the_task_of_another_field_takes_less_than_50_lines() -> None:
    assert len((EXAMPLES / "custom_task.py").read_text().splitlines()) < 50


@pytest.mark.models
def test_the_task_of_another_field_trains_by_the_command_line(tiny_model: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    run = lambda *command: subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)  # noqa: E731
    assert run(sys.executable, str(EXAMPLES / "custom_task.py")).returncode == 0
    command = [sys.executable, "-m", "llm_gym.cli", "train", "custom_task:HomeworkMarking-v0", "--policy", tiny_model]
    done = run(*command, "--data", "homework.jsonl", "--steps", "1", "--out", "run")
    assert done.returncode == 0, done.stderr
    texts = {
        json.loads(line)["episode"]["text"] for line in (tmp_path / "run" / "after.jsonl").read_text().splitlines()
    }
    assert texts <= {"wrong", "half right", "right"}


@pytest.mark.parametrize("script", ["own_task.py", "own_scorer.py"])
def test_the_readme_shows_the_example_as_it_is(script: str) -> None:
    code = (EXAMPLES / script).read_text()
    assert len(code.splitlines()) < 40
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert code.partition('"""\n\n')[2].strip() in readme


def load(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_policy_of_ones_own_learns_by_ppo_in_one_file() -> None:
    example = load("cleanrl_ppo")
    curve = example.train(example.parse_args(["--total-timesteps", "13312", "--seed", "1"]))
    assert curve[0] < 0.1 and np.mean(curve[-2:]) > 0.8


@pytest.mark.filterwarnings("ignore")  # of TorchRL and what it imports
def test_torchrl_learns_through_its_own_wrapper() -> None:
    curve = load("torchrl_env").train(4096, seed=0)
    assert curve[0] < 0.1 and curve[-1] > 0.4
