"""A training run: what `llm-gym train` does, from a name to a folder with an adapter and a report."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

import llm_gym
from agents import checkpoint
from agents.algorithms import hyperparameters, make_algorithm, with_lengths
from agents.base import TextAlgorithm
from agents.curve import draw_curve
from agents.evaluate import (
    ADAPTER,
    CONFIG,
    MODEL,
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
from agents.progress import Progress
from agents.recorder import MINUTES, Limit, LimitReached, Recorder, finite
from agents.report import make_report, markdown
from agents.saving import folder_aside
from agents.vec_env import make_vec_env
from llm_gym.data import load_examples
from llm_gym.data.files import whole_path, write_aside
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.models.load import hub_id
from llm_gym.registration import find_task

PACKAGES = ("torch", "transformers", "peft", "stable-baselines3", "gymnasium", "numpy")
LORA = 16
PLACES = ("pairs", "teacher")
"""Settings that may be paths."""


@dataclass(frozen=True)
class TrainArguments:
    """What a user asks of a run.

    Attributes:
        env: Environment id.
        algo: A key of `agents.algorithms.ALGORITHMS`.
        policy: Model name, model folder, or run folder to go on from.
        data: File of examples; None for the bundled corpus.
        columns: The task's column names mapped to the file's.
        feedback: Spec of the training feedback; None for the task's.
        partner: Who answers in a conversation; None for the script.
        instruction: What the policy is asked to do; None for the task's.
        temperature: Of sampling; None for that of the run which `policy` goes on from, or 1.
        steps: Training updates, or None.
        minutes: Minutes of training, or None; ten if `steps` and `tokens` are None too.
        tokens: Tokens to write in training, or None.
        seed: Of everything drawn.
        hyperparams: Changes to the algorithm's hyper-parameters (`agents.algorithms.hyperparameters`).
        early_stop: Whether to stop once training feedback rises while the second judge falls.
        out: Run folder; None for `runs/<env>-<algo>-<seed>`.
    """

    env: str
    algo: str = "grpo"
    policy: str = "smollm2-135m"
    data: str | None = None
    columns: dict[str, str] | None = None
    feedback: str | None = None
    partner: str | None = None
    instruction: str | None = None
    temperature: float | None = None
    steps: int | None = None
    minutes: float | None = None
    tokens: int | None = None
    seed: int = 0
    hyperparams: dict[str, Any] = field(default_factory=dict)
    early_stop: bool = False
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


def train(arguments: TrainArguments, progress: Progress | None = None, start: PolicySource | None = None) -> Run:
    """Train a policy and report on it.

    Held-out documents are summarised before and after; what is in between is written down in the run folder. A run
    that fails before its first update leaves no folder; a later one leaves whole files, and the adapter it had unless
    training has diverged, where the last checkpoint is what can be used.

    Args:
        arguments: What is asked of it.
        progress: Where to show it.
        start: What to go on from, where that is not all that `arguments.policy` names: a run also stands for the data
            and feedback it was trained with.

    Raises:
        LLMGymError: Something the user asked for is not possible, or the feedback failed.
    """
    progress = progress or Progress()
    with _run_folder(arguments.folder) as folder:
        source = start or find_policy(arguments.policy)
        if source.agent:
            raise LLMGymError(f"the policy {source.agent!r} cannot be trained; pass a model's name")
        env_kwargs = environment_arguments(
            arguments.env,
            source,
            arguments.data,
            arguments.columns,
            arguments.feedback,
            arguments.partner,
            arguments.instruction,
        )
        return _train(folder, _config(arguments, source, env_kwargs), progress)


def resume(
    folder: Path,
    steps: int | None = None,
    minutes: float | None = None,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Go on with a run from its last checkpoint, exactly as if it had not been interrupted.

    Args:
        folder: The run folder.
        steps: Updates in all, another number than the run was to make; None for that.
        minutes: Minutes in all, likewise.
        tokens: Tokens in all, likewise.
        progress: Where to show it.

    Raises:
        LLMGymError: No run, or one of an algorithm that leaves no checkpoints, or of other package versions.
    """
    config = _config_of(folder)
    if (steps, minutes, tokens) != (None, None, None):
        config.update(steps=steps, minutes=minutes, tokens=tokens)
    return _train(folder, config, progress or Progress())


def finished(folder: Path) -> Run | None:
    """Return the run in a folder if it is finished, else None."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        after = Evaluation.from_jsonl((folder / "after.jsonl").read_text(encoding="utf-8"), TEXTS)
    except FileNotFoundError:
        return None
    return _run(folder, report, after)


def _run(folder: Path, report: dict[str, Any], after: Evaluation) -> Run:
    return Run(folder, report, {e.example["id"]: e.source for e in after.firsts})


def _train(folder: Path, config: dict[str, Any], progress: Progress) -> Run:
    policy, env_kwargs = config["policy"], config["env_kwargs"]
    progress.say(f"loading {policy['model']}" + (f" with the adapter {policy['adapter']}" if policy["adapter"] else ""))
    model = _make_model(config)
    examples = load_examples(env_kwargs["data"], "test", find_task(config["env"]), env_kwargs["columns"])
    ids = held_out([example["id"] for example in examples])
    tests = make_envs(config["env"], len(ids), "test", env_kwargs)
    judge = build(config["judge"])
    write_aside(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def measure(when: str) -> Evaluation:
        kept = folder / f"{when}.jsonl"
        if when == "before" and kept.exists():
            return Evaluation.from_jsonl(kept.read_text(encoding="utf-8"), TEXTS)
        with progress.stage(f"writing {TEXTS} texts for each of {len(ids)} held-out documents, {when} training"):
            found = evaluate(model.policy, tests, ids, False, config["seed"], judge, TEXTS)
        write_aside(kept, found.to_jsonl())
        return found

    before = measure("before")
    samples = make_envs(config["env"], config["n_envs"], "validation", env_kwargs)
    limit = Limit(config["steps"], config["minutes"], config.get("tokens"))
    recorder = Recorder(folder, limit, progress, samples, judge, config["early_stop"])
    if isinstance(model, TextAlgorithm):
        recorder.go_on(*checkpoint.load_checkpoint(folder, model))
        model.progress = recorder.remaining
    _learn(model, folder, recorder, progress)
    save_policy(model.policy, folder)
    after = measure("after")
    report = _report(config, model, recorder, before, after)
    write_aside(folder / "curve.png", draw_curve(recorder.rows, report))
    write_aside(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_aside(folder / "report.md", markdown(report))
    return _run(folder, report, after)


# -------------------------------------------------------------------- the parts of a run


def _config(arguments: TrainArguments, source: PolicySource, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what rebuilds the run, as JSON types."""
    settings = hyperparameters(arguments.algo, arguments.env, arguments.hyperparams)
    policy = {"lora": LORA, **settings.pop("policy_kwargs"), "model": source.model, "adapter": source.adapter}
    _check_lora(arguments.hyperparams, source, policy.get("last_layers"))
    if source.adapter is None and policy.get("last_layers") is not None:
        policy["lora"] = None
    if "temperature" not in policy or arguments.temperature is not None:
        policy["temperature"] = source.temperature if arguments.temperature is None else arguments.temperature
    return {
        "llm_gym_run": RUN_FORMAT,
        "env": arguments.env,
        "env_kwargs": env_kwargs,
        "judge": find_task(arguments.env).judge,
        "algo": arguments.algo,
        "n_envs": settings.pop("n_envs"),
        "settings": {k: whole_path(v) if v and k in PLACES else v for k, v in settings.items()},
        "policy": {**policy, "hub_id": hub_id(source.model)},
        "seed": arguments.seed,
        "steps": arguments.steps,
        "minutes": arguments.minutes if arguments.steps or arguments.minutes or arguments.tokens else MINUTES,
        "tokens": arguments.tokens,
        "early_stop": arguments.early_stop,
        "versions": versions(),
    }


def _check_lora(changes: dict[str, Any], source: PolicySource, last_layers: int | None) -> None:
    """Make sure that a rank which was asked for is one that is used."""
    lora = changes.get("policy_kwargs.lora")
    if "policy_kwargs.lora" in changes and source.adapter is not None:
        raise LLMGymError(f"policy_kwargs.lora:{lora} does not apply: the adapter gone on with has its own rank")
    if lora is not None and last_layers is not None:
        raise LLMGymError(f"policy_kwargs.lora:{lora} does not apply where last_layers={last_layers}; leave out one")


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    return {
        "llm_gym": llm_gym.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LLMGymError(
            f"{folder} is no run that can be gone on with: its {CONFIG} cannot be read ({error})"
        ) from error
    if config.get("llm_gym_run") != RUN_FORMAT:
        raise LLMGymError(f"{folder} was written by another version of llm_gym; train again, or use that version")
    if config["algo"].startswith("sb3-"):
        raise LLMGymError(f"{folder} is a run of {config['algo']}, which leaves no checkpoints; train again")
    if config["versions"] != (now := versions()):
        changed = ", ".join(
            f"{name} {old} -> {now.get(name)}" for name, old in config["versions"].items() if old != now.get(name)
        )
        raise LLMGymError(f"{folder} was begun with other versions ({changed}), with which no run goes on exactly")
    return config


def _make_model(config: dict[str, Any]) -> Any:
    """Return the algorithm, ready to learn; the config is made complete."""
    env = make_vec_env(config["env"], n_envs=config["n_envs"], split="train", **config["env_kwargs"])
    config["settings"] = with_lengths(config["algo"], config["settings"], env)
    policy_kwargs = {name: value for name, value in config["policy"].items() if name != "hub_id"}
    return make_algorithm(config["algo"], env, {**config["settings"], "policy_kwargs": policy_kwargs}, config["seed"])


def _learn(model: Any, folder: Path, recorder: Recorder, progress: Progress) -> None:
    """Let the algorithm's own loop run until the limit; what it had learned when it failed is kept."""
    board = TensorBoardOutputFormat(str(folder / "tensorboard"))
    model.set_logger(Logger(str(folder), [board, recorder.latest]))
    progress.begin()
    try:
        model.learn(_timesteps(model, recorder.limit), callback=recorder, reset_num_timesteps=not recorder.rows)
    except LimitReached:
        model.logger.dump(model.num_timesteps)
    except BaseException:
        if recorder.rows and finite(model.policy):
            with suppress(OSError, LLMGymError):  # the first failure is the one to tell
                save_policy(model.policy, folder)
        raise
    finally:
        progress.end()
        model.logger.close()


def _timesteps(model: Any, limit: Limit) -> int:
    """Return what to ask `learn` for: more than the limit allows, and what SB3's schedules fall by."""
    if isinstance(model, TextAlgorithm):
        return 10**12
    rollout = model.n_steps * model.n_envs  # one more, before which the limit ends the run
    if limit.steps is None and limit.tokens is None:
        if callable(model.learning_rate):
            raise LLMGymError("a learning rate that falls needs --steps here: SB3's schedules follow a number of steps")
        return 10**12
    return (limit.tokens or limit.steps * rollout) + rollout  # type: ignore[operator]


def _report(
    config: dict[str, Any], model: Any, recorder: Recorder, before: Evaluation, after: Evaluation
) -> dict[str, Any]:
    feedback = config["env_kwargs"]["feedback"]
    verifiable = find_task(config["env"]).verifiable
    facts = {
        "env": config["env"],
        "algo": config["algo"],
        "policy": config["policy"]["hub_id"],
        "seed": config["seed"],
        "updates": len(recorder.rows),
        "train_seconds": round(recorder.rows[-1]["elapsed"], 3),
        "tokens": model.num_timesteps,
        "continued_from": config["policy"]["adapter"],
        "feedback": feedback,
        "judge": config["judge"],
        "diverged": recorder.diverged,
        "reads_reference": [] if verifiable else recorder.samples.feedback.readers,
    }
    weights = {name: options["weight"] for name, options in feedback.items()}
    return make_report(facts, before, after, weights, config["seed"])


# -------------------------------------------------------------------- files


@contextmanager
def _run_folder(folder: Path) -> Iterator[Path]:
    """Make the folder; if the run fails before there is anything worth keeping, remove it again."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LLMGymError(
            f"{folder} exists already and nothing is overwritten: delete it, pass another --out, or go on with it by "
            f"--resume {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def save_policy(policy: Any, folder: Path) -> None:
    """Save what was trained into a run folder, whole or not at all: the adapter, or the model."""
    with folder_aside(folder / (ADAPTER if policy.adapts else MODEL)) as aside:
        policy.save_pretrained(aside)
