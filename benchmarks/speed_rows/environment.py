"""S1: the environment alone; how long things take to start; what a rollout holds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from speed_rows.common import TRIVIAL, make_envs, seconds

RL4LMS = 2256  # steps/s of RL4LMs' TextGenEnv, measured once with a trivial reward, 256-token prompt, 64 steps


def many(repeat: int) -> dict[str, Any]:
    """Token steps a second of 256 rows with a context of 256 tokens and trivial feedback."""
    rows, prompt, new = 256, 192, 64
    envs = make_envs(rows, prompt, new, template="plain")
    actions = np.random.default_rng(0).integers(3, 1000, (new, rows))  # the first ids are special, some of them stop

    def episode() -> None:
        envs.reset(seed=0)
        for step in actions:
            envs.step(step)

    return _rates(f"{rows} rows, context {prompt + new}, trivial feedback", rows * new, seconds(episode, repeat))


def single(repeat: int) -> dict[str, Any]:
    """Token steps a second of one environment through `gym.make`."""
    new, episodes = 64, 20
    env = gym.make("TextSummary-v0", max_prompt_tokens=192, max_new_tokens=new, feedback=TRIVIAL, template="plain")
    actions = np.random.default_rng(0).integers(3, 1000, new)

    def play() -> None:
        for seed in range(episodes):
            env.reset(seed=seed)
            for action in actions:
                env.step(int(action))

    return _rates("one environment through gym.make", episodes * new, seconds(play, repeat))


def _rates(what: str, steps: int, times: list[float]) -> dict[str, Any]:
    rates = [steps / value for value in times]
    return {
        "what": f"{what}: token steps/s against RL4LMs'",
        "ours": rates,
        "theirs": [RL4LMS],
        "ratio": float(np.median(rates) / RL4LMS),
    }


STARTS = {
    "import gymnasium": "import gymnasium",
    "import llm_gym": "import llm_gym",
    "gym.make": "import llm_gym, gymnasium; gymnasium.make('TextSummary-v0').reset(seed=0)",
    "llm-gym list": "from llm_gym.cli import main; main(['list'])",
}


def start(repeat: int) -> dict[str, Any]:
    """Seconds until a fresh process has done it, less what an empty one takes."""

    def run(code: str) -> list[float]:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True), repeat)

    empty = float(np.median(run("pass")))
    medians = {name: round(float(np.median(run(code))) - empty, 2) for name, code in STARTS.items()}
    return {"what": "start-up, seconds", **medians}
