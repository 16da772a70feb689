"""A training run: what `llm-gym train` does, from a name to a folder with an adapter and a report."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

import llm_gym
from agents.buffer import SequenceRolloutBuffer
from agents.curve import draw_curve
from agents.evaluate import (
    ADAPTER,
    CONFIG,
    RUN_FORMAT,
    TEXTS,
    Evaluation,
    PolicySource,
    environment_arguments,
    evaluate,
    find_policy,
    held_out,
    make_envs,
)
from agents.grpo import GRPO
from agents.policy import LLMPolicy
from agents.progress import Progress
from agents.recorder import MINUTES, Limit, LimitReached, Recorder
from agents.report import make_report, markdown
from agents.vec_env import make_vec_env
from llm_gym.data import load_examples
from llm_gym.data.files import write_aside
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.models.load import hub_id
from llm_gym.registration import find_task

ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"n_envs": 16, "group_size": 8, "learning_rate": 3e-4},
    "ppo": {"n_envs": 16, "gamma": 1.0, "gae_lambda": 0.95, "n_epochs": 2, "learning_rate": 1e-4},
    "a2c": {"n_envs": 16, "gamma": 1.0, "gae_lambda": 0.95, "use_rms_prop": False, "learning_rate": 1e-4},
}
"""Hyper-parameters by algorithm. PPO and A2C also take `n_steps`, the environment's `max_new_tokens`, and PPO a
quarter of the rollout as `batch_size`."""

LORA = 16
PACKAGES = ("torch", "transformers", "peft", "stable-baselines3", "gymnasium", "numpy")


@dataclass(frozen=True)
class TrainArguments:
    """What a user asks of a run.

    Attributes:
        env: Environment id.
        algo: A key of `ALGORITHMS`.
        policy: Model name, model folder, or run folder to go on from.
        data: File of examples; None for the bundled corpus.
        columns: The task's column names mapped to the file's.
        feedback: Spec of the training feedback; None for the task's.
        partner: Who answers in a conversation; None for the script.
        temperature: Of sampling; None for that of the run which `policy` goes on from, or 1.
        steps: Training updates, or None.
        minutes: Minutes of training, or None; ten if `steps` is None too.
        seed: Of everything drawn.
        out: Run folder; None for `runs/<env>-<algo>-<seed>`.
    """

    env: str
    algo: str = "grpo"
    policy: str = "smollm2-135m"
    data: str | None = None
    columns: dict[str, str] | None = None
    feedback: str | None = None
    partner: str | None = None
    temperature: float | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    out: str | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.env.rpartition(':')[2]}-{self.algo}-{self.seed}")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        report: What `report.json` holds.
        sources: The held-out documents by id.
    """

    folder: Path
    report: dict[str, Any]
    sources: dict[str, str]


def train(arguments: TrainArguments, progress: Progress | None = None) -> Run:
    """Train a policy and report on it.

    Held-out documents are summarised before and after; what is in between is written down in the run folder. A run
    that fails before its first update leaves no folder; a later one leaves whole files and the adapter it had.

    Raises:
        LLMGymError: Something the user asked for is not possible, or the feedback failed.
    """
    progress = progress or Progress()
    with _run_folder(arguments.folder) as folder:
        return _train(arguments, folder, progress)


def _train(arguments: TrainArguments, folder: Path, progress: Progress) -> Run:
    source = find_policy(arguments.policy)
    if source.reference:
        raise LLMGymError("the policy 'reference' cannot be trained; pass a model's name")
    progress.say(f"loading {source.model}" + (f" with the adapter of {arguments.policy}" if source.adapter else ""))
    if source.adapter:
        progress.kl_name = "KL to the base model"
    env_kwargs = environment_arguments(
        arguments.env, source, arguments.data, arguments.columns, arguments.feedback, arguments.partner
    )
    model, config = _make_model(arguments, source, env_kwargs)
    task = find_task(arguments.env)
    examples = load_examples(env_kwargs["data"], "test", task, env_kwargs["columns"])
    ids = held_out([example["id"] for example in examples])
    tests = make_envs(arguments.env, len(ids), "test", env_kwargs)
    judge = build(task.judge)
    write_aside(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def measure(when: str) -> Evaluation:
        with progress.stage(f"writing {TEXTS} texts for each of {len(ids)} held-out documents, {when} training"):
            return evaluate(model.policy, tests, ids, False, arguments.seed, judge, TEXTS)

    before = measure("before")
    limit = Limit(arguments.steps, arguments.minutes)
    samples = make_envs(arguments.env, config["n_envs"], "validation", env_kwargs)
    recorder = Recorder(folder, limit, progress, samples)
    _learn(model, folder, recorder, progress)
    save_adapter(model.policy, folder / ADAPTER)
    after = measure("after")

    facts = {
        "env": arguments.env,
        "algo": arguments.algo,
        "policy": config["policy"]["hub_id"],
        "seed": arguments.seed,
        "updates": len(recorder.rows),
        "train_seconds": round(recorder.rows[-1]["elapsed"], 3),
        "tokens": model.num_timesteps,
        "continued_from": source.adapter,
        "kl_to": "base model" if source.adapter else "start",
        "feedback": env_kwargs["feedback"],
        "judge": judge.spec,
    }
    weights = {name: options["weight"] for name, options in env_kwargs["feedback"].items()}
    report = make_report(facts, before, after, weights, arguments.seed)
    write_aside(folder / "curve.png", draw_curve(recorder.rows, report))
    write_aside(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_aside(folder / "report.md", markdown(report))
    return Run(folder, report, {e.example["id"]: e.source for e in after.firsts})


# -------------------------------------------------------------------- the parts of a run


def _make_model(
    arguments: TrainArguments, source: PolicySource, env_kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the algorithm, ready to learn, and the config that rebuilds it."""
    settings = dict(ALGORITHMS[arguments.algo])
    n_envs = settings.pop("n_envs")
    env = make_vec_env(arguments.env, n_envs=n_envs, split="train", **env_kwargs)
    if arguments.algo != "grpo":
        settings["n_steps"] = env.get_attr("max_new_tokens")[0]
    if arguments.algo == "ppo":
        settings["batch_size"] = n_envs * settings["n_steps"] // 4
    temperature = source.temperature if arguments.temperature is None else arguments.temperature
    policy = {"model": source.model, "lora": LORA, "adapter": source.adapter, "temperature": temperature}
    config = {
        "llm_gym_run": RUN_FORMAT,
        "env": arguments.env,
        "env_kwargs": env_kwargs,
        "algo": arguments.algo,
        "n_envs": n_envs,
        "settings": settings,
        "policy": {**policy, "hub_id": hub_id(source.model)},
        "seed": arguments.seed,
        "steps": arguments.steps,
        "minutes": arguments.minutes if arguments.steps or arguments.minutes else MINUTES,
        "versions": {
            "llm_gym": llm_gym.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }
    classes = {"grpo": GRPO, "ppo": PPO, "a2c": A2C}
    stock = {} if arguments.algo == "grpo" else {"rollout_buffer_class": SequenceRolloutBuffer}
    model = classes[arguments.algo](
        LLMPolicy, env, seed=arguments.seed, policy_kwargs=policy, verbose=0, **stock, **settings
    )
    return model, config


def _learn(model: Any, folder: Path, recorder: Recorder, progress: Progress) -> None:
    """Let the algorithm's own loop run until the limit; what it had learned when it failed is kept."""
    board = TensorBoardOutputFormat(str(folder / "tensorboard"))
    model.set_logger(Logger(str(folder), [board, recorder.latest]))
    progress.begin()
    try:
        model.learn(10**12, callback=recorder)
    except LimitReached:
        model.logger.dump(model.num_timesteps)
    except BaseException:
        if recorder.rows:
            with suppress(OSError, LLMGymError):  # the first failure is the one to tell
                save_adapter(model.policy, folder / ADAPTER)
        raise
    finally:
        progress.end()
        model.logger.close()


# -------------------------------------------------------------------- files


@contextmanager
def _run_folder(folder: Path) -> Iterator[Path]:
    """Make the folder; if the run fails before there is anything worth keeping, remove it again."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LLMGymError(f"{folder} exists already and nothing is overwritten: delete it, or pass another --out")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not (folder / ADAPTER).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def save_adapter(policy: LLMPolicy, target: Path) -> None:
    """Save the policy's adapter into a new folder, whole or not at all."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        policy.save_adapter(aside)
        aside.chmod(0o755)
        os.replace(aside, target)
    except SafetensorError as error:
        raise LLMGymError(f"{target} could not be written ({error}); free some space and run it again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
