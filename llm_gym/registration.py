"""The table of environment ids, one row each."""

from __future__ import annotations

import gymnasium as gym

ENVIRONMENTS: dict[str, str] = {
    "TextSummary-v0": "llm_gym.tasks.summary:TextSummary",
}
"""Environment id to the task behind it, as `module:class`. A task's docstring is its documentation page."""


def register_environments() -> None:
    """Register every row of `ENVIRONMENTS` with Gymnasium; entry points are strings, so specs serialise."""
    for env_id, task in ENVIRONMENTS.items():
        if env_id in gym.registry:
            continue
        gym.register(
            id=env_id,
            entry_point="llm_gym.envs.text_env:TextEnv",
            vector_entry_point="llm_gym.envs.vector_env:TextVectorEnv",
            kwargs={"task": task},
        )
