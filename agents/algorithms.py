"""Algorithms by name, and their hyper-parameters: a YAML file each, by environment, in rl-zoo's manner."""

from __future__ import annotations

import inspect
from importlib.resources import files
from typing import Any

import stable_baselines3 as sb3
import yaml

from agents.a2c import A2C
from agents.base import TextAlgorithm
from agents.buffer import SequenceRolloutBuffer
from agents.distillation import Distillation
from agents.dpo import DPO
from agents.dqn import DQN
from agents.grpo import GRPO
from agents.policy import LLMPolicy
from agents.ppo import PPO
from agents.reinforce import REINFORCE
from agents.rloo import RLOO
from agents.sft import SFT
from llm_gym.errors import LLMGymError, number

ALGORITHMS: dict[str, Any] = {
    "grpo": GRPO,
    "rloo": RLOO,
    "reinforce": REINFORCE,
    "ppo": PPO,
    "a2c": A2C,
    "sft": SFT,
    "dpo": DPO,
    "distillation": Distillation,
    "dqn": DQN,
    "sb3-ppo": sb3.PPO,
    "sb3-a2c": sb3.A2C,
}
"""What `llm-gym train --algo` takes; the last two are Stable-Baselines3's own, unmodified."""

OF_THE_RUN = {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log", "rollout_buffer_class",
              "_init_setup_model", "kwargs"}  # fmt: skip
OF_THE_POLICY = {"lora", "last_layers", "temperature", "gradient_checkpointing", "optimizer_class", "optimizer_kwargs"}


def hyperparameters(algo: str, env_id: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the hyper-parameters of an algorithm in an environment.

    `n_envs` and `policy_kwargs` are among them; all else are arguments of the algorithm. A learning rate `lin_3e-4`
    falls to 0 by the end of training.

    Args:
        algo: A key of `ALGORITHMS`.
        env_id: The environment, with or without a module in front.
        changes: What to set otherwise; a key `policy_kwargs.lora` is an argument of the policy.

    Raises:
        LLMGymError: An unknown algorithm, or a key that does not apply to it.
    """
    if algo not in ALGORITHMS:
        raise LLMGymError(f"algorithm {algo!r} is unknown; expected one of {', '.join(ALGORITHMS)}")
    table = yaml.safe_load(files("agents").joinpath("hyperparams", f"{algo}.yml").read_text(encoding="utf-8"))
    found = dict(table.get(env_id.rpartition(":")[2], table["default"]))
    found["policy_kwargs"] = dict(found.get("policy_kwargs") or {})
    for key, value in (changes or {}).items():
        group, _, name = key.rpartition(".")
        if group == "policy_kwargs":
            found["policy_kwargs"][name] = value
        else:
            found[key] = value
    _check(algo, found)
    return found


def _check(algo: str, found: dict[str, Any]) -> None:
    cls = ALGORITHMS[algo]
    own = {"n_envs", *_arguments(cls)} - OF_THE_RUN
    for key in found:
        if key not in own:
            raise LLMGymError(f"hyper-parameter {key!r} does not apply to {algo}; it takes {', '.join(sorted(own))}")
    for key in found["policy_kwargs"]:
        if key not in OF_THE_POLICY:
            raise LLMGymError(
                f"hyper-parameter 'policy_kwargs.{key}' is unknown; the policy takes {', '.join(sorted(OF_THE_POLICY))}"
            )


def _arguments(cls: Any) -> set[str]:
    return cls.options() if issubclass(cls, TextAlgorithm) else set(inspect.signature(cls.__init__).parameters)


def learning_rate(value: Any) -> Any:
    """Return what an algorithm takes for a learning rate: a number, or the schedule that `lin_...` stands for.

    >>> learning_rate("lin_0.5")(0.5)
    0.25

    Raises:
        LLMGymError: Neither a positive number nor `lin_` and one.
    """
    falls = isinstance(value, str) and value.startswith("lin_")
    try:
        start = float(value.removeprefix("lin_") if falls else value)
    except (TypeError, ValueError) as error:
        raise LLMGymError(f"learning_rate={value!r} is neither a number nor of the form lin_3e-4") from error
    number("learning_rate", start, above_zero=True)
    return (lambda remaining: remaining * start) if falls else start


def with_lengths(algo: str, settings: dict[str, Any], env: Any) -> dict[str, Any]:
    """Return settings in which Stable-Baselines3's own algorithms know how long a rollout and a minibatch are.

    Where it is not set, `n_steps` is the environment's longest text, in a conversation of all turns, and `batch_size` a
    quarter of what one turn of all rows can have: a conversation's segments are long, and a minibatch holds them whole.
    """
    if issubclass(ALGORITHMS[algo], TextAlgorithm):
        return settings
    turn = env.get_attr("max_new_tokens")[0]
    found = {"n_steps": turn * env.get_attr("task")[0].max_turns, **settings}
    return {"batch_size": env.num_envs * turn // 4, **found} if algo == "sb3-ppo" else found


def make_algorithm(algo: str, env: Any, settings: dict[str, Any], seed: int) -> Any:
    """Return an algorithm, ready to learn.

    Args:
        algo: A key of `ALGORITHMS`.
        env: From `make_vec_env`.
        settings: From `hyperparameters`, without `n_envs`, complete by `with_lengths`, its `policy_kwargs` too.
        seed: Of everything drawn.
    """
    cls = ALGORITHMS[algo]
    stock = {} if issubclass(cls, TextAlgorithm) else {"rollout_buffer_class": SequenceRolloutBuffer}
    settings = {**settings, **stock, "learning_rate": learning_rate(settings["learning_rate"])}
    return cls(LLMPolicy, env, seed=seed, verbose=0, **settings)
