"""Importing the package registers the environments and loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import pytest

import llm_gym

HEAVY = ("torch", "transformers", "tokenizers", "pandas", "pyarrow", "stable_baselines3", "peft", "agents")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["llm_gym", "llm_gym.feedback", "llm_gym.tasks.summary", "llm_gym.models"])
def test_importing_loads_nothing_heavy(module):
    assert python(f"import {module}, sys; print(*set(sys.modules) & set({HEAVY}))") == ""


def test_importing_takes_under_half_a_second_beyond_gymnasium():
    code = "import gymnasium, time; t = time.perf_counter(); import llm_gym; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_importing_twice_registers_once_and_warns_of_nothing():
    strict = "import importlib, warnings, gymnasium; warnings.simplefilter('error', UserWarning)"
    code = "import llm_gym; importlib.reload(llm_gym); print('TextSummary-v0' in gymnasium.registry)"
    assert python(f"{strict}; {code}") == "True"


@pytest.mark.parametrize("env_id", llm_gym.ENVIRONMENTS)
def test_every_id_is_registered_by_strings_and_its_task_is_documented(env_id):
    spec = gym.spec(env_id)
    assert isinstance(spec.entry_point, str) and isinstance(spec.vector_entry_point, str)
    assert spec.max_episode_steps is None  # the environment owns the cap, so that the scorer runs there
    from llm_gym.tasks import load_task

    page = type(load_task(spec.kwargs["task"])).__doc__
    for section in ("Description", "Action Space", "Observation Space", "Starting State", "Rewards", "Episode End"):
        assert f"## {section}" in page
    for section in ("Information", "Arguments", "References", "Version History"):
        assert f"## {section}" in page


def test_the_error_of_the_package_is_a_value_error():
    assert issubclass(llm_gym.LLMGymError, ValueError)
