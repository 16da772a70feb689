"""Gymnasium's vector environments as SB3's, which are not the same thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from llm_gym.errors import LLMGymError


class GymVecEnv(VecEnv):
    """An SB3 `VecEnv` around a Gymnasium `VectorEnv` with autoreset DISABLED.

    SB3 expects a finished row to be reset within the same step; this adapter does so through `reset_mask`, and
    algorithms that need groups (`GRPO`) use the environment inside, `envs`, directly.

    Args:
        envs: The vector environment.

    Raises:
        LLMGymError: Another autoreset mode.
    """

    def __init__(self, envs: VectorEnv) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise LLMGymError("the vector environment must be made with autoreset_mode='Disabled' to serve SB3")
        self.envs = envs  # before super().__init__, which asks for render_mode
        self.actions = np.zeros(envs.num_envs, np.int64)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Reset all rows with the seeds and options that were set, and forget these."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        options: dict[str, Any] = {}
        if any(self._options):
            options["example"] = [row.get("example") for row in self._options]
        observation, infos = self.envs.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> Any:
        """Step all rows and reset those that ended."""
        observation, rewards, terminated, truncated, infos = self.envs.step(self.actions)
        dones = terminated | truncated
        rows = _split(infos, self.num_envs)
        if dones.any():
            for row in np.flatnonzero(dones).tolist():
                rows[row]["terminal_observation"] = _row(observation, row)
                rows[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            observation, fresh = self.envs.reset(options={"reset_mask": dones})
            fresh_rows = _split(fresh, self.num_envs)
            for row in np.flatnonzero(dones).tolist():
                self.reset_infos[row] = fresh_rows[row]
        return observation, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the environment inside."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the environment inside, once a row."""
        return [_attribute(self.envs, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment inside."""
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environment inside, once for all rows; `action_masks` returns each row's own."""
        if method_name == "action_masks":
            masks = _attribute(self.envs, method_name)()
            return [masks[row] for row in self._rows(indices)]
        return [_attribute(self.envs, method_name)(*args, **kwargs)] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False a row: no single environment stands behind a row."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> Sequence[int]:
        return range(self.num_envs) if indices is None else np.atleast_1d(indices).tolist()


def _attribute(envs: Any, name: str) -> Any:
    """Return an attribute of the outermost wrapper that has it; Gymnasium's vector wrappers pass none on."""
    while not hasattr(envs, name) and isinstance(envs, VectorWrapper):
        envs = envs.env
    return getattr(envs, name)


def _row(observation: Any, row: int) -> Any:
    """Return one row of what a dict space or a box observes."""
    if isinstance(observation, dict):
        return {key: value[row] for key, value in observation.items()}
    return observation[row]


def _split(infos: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Turn Gymnasium's dict of arrays into SB3's list of dicts."""
    rows: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, value in infos.items():
        if key.startswith("_") or f"_{key}" not in infos:
            continue
        columns = _split(value, n) if isinstance(value, dict) else value
        for row in np.flatnonzero(infos[f"_{key}"]):
            rows[row][key] = columns[row]
    return rows


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    wrapper_class: Callable[[VectorEnv], VectorEnv] | None = None,
    **env_kwargs: Any,
) -> VecMonitor:
    """Return SB3's view of `n_envs` rows of a registered text environment.

    Args:
        env_id: Such as `TextSummary-v0`.
        n_envs: Number of rows.
        seed: Row i is seeded with `seed + i` at the next reset.
        wrapper_class: Wraps the vector environment, such as `lambda envs: VectorTopKActions(envs, k=8)`.
        env_kwargs: Arguments of the environment.
    """
    envs = gym.make_vec(env_id, num_envs=n_envs, autoreset_mode=AutoresetMode.DISABLED.value, **env_kwargs)
    adapter = GymVecEnv(envs if wrapper_class is None else wrapper_class(envs))
    if seed is not None:
        adapter.seed(seed)
    return VecMonitor(adapter)
