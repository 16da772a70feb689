"""Stages one after the other, each a run of its own that begins with the policy of the one before: SFT, then GRPO."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from agents.algorithms import hyperparameters
from agents.evaluate import CONFIG
from agents.progress import Progress
from agents.training import LORA, Run, TrainArguments, finished, resume, train
from llm_gym.data.files import write_aside
from llm_gym.errors import LLMGymError

CHAIN = "chain.json"
FORMAT = 1
LENGTHS: dict[str, Any] = {"steps": int, "minutes": int | float, "tokens": int}
KEYS = ("algo", *LENGTHS, "hyperparams")


def read_chain(path: str | Path, env: str) -> list[dict[str, Any]]:
    """Return the stages of a YAML file: a list of `algo`, and optionally a length and `hyperparams`.

    A length is `steps`, `minutes` or `tokens`, as of `train`.

    Args:
        path: The file.
        env: The environment, for which the hyper-parameters are checked.

    Raises:
        LLMGymError: The file, a stage or a hyper-parameter is not what it must be.
    """
    try:
        stages = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LLMGymError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(stages, list) or not stages:
        raise LLMGymError(f"{path} must be a list of stages, such as '- algo: sft'")
    adapted = False
    for number, stage in enumerate(stages, 1):
        where = f"{path}, stage {number}"
        if not isinstance(stage, dict) or "algo" not in stage or not set(stage) <= set(KEYS):
            raise LLMGymError(f"{where} is {stage!r}; a stage has algo, and may have {', '.join(KEYS[1:])}")
        _check_length(where, stage)
        if not isinstance(stage.get("hyperparams", {}), dict):
            raise LLMGymError(f"{where}: hyperparams={stage['hyperparams']!r} must be keys and values")
        if stage["algo"].startswith("sb3-"):
            raise LLMGymError(f"{where}: {stage['algo']} leaves no checkpoints; choose an algorithm of ours")
        changes = stage.get("hyperparams") or {}
        policy = hyperparameters(stage["algo"], env, changes)["policy_kwargs"]
        if adapted and "policy_kwargs.lora" in changes:
            raise LLMGymError(f"{where}: policy_kwargs.lora does not apply: it goes on with the adapter before it")
        adapted = adapted or (policy.get("lora", LORA) is not None and policy.get("last_layers") is None)
    return stages


def _check_length(where: str, stage: dict[str, Any]) -> None:
    given = {name: stage[name] for name in LENGTHS if stage.get(name) is not None}
    if len(given) > 1:
        raise LLMGymError(f"{where} has {' and '.join(given)}; give one of them")
    for name, value in given.items():
        if not isinstance(value, LENGTHS[name]) or isinstance(value, bool) or value <= 0:
            raise LLMGymError(f"{where}: {name}={value!r} must be positive")


def train_chain(arguments: TrainArguments, path: str | Path, progress: Progress | None = None) -> list[Run]:
    """Train stage by stage in `out`, each in a folder of its own such as `1-sft`; return the finished runs.

    Args:
        arguments: What all stages share; algorithm, length and hyper-parameters are those of the stages. `policy` is
            where the first one begins, `out` the folder of them all.
        path: The file of stages, for `read_chain`.
        progress: Where to show it.

    Raises:
        LLMGymError: Something the user asked for is not possible, or a stage failed; `resume_chain` then goes on.
    """
    stages = read_chain(path, arguments.env)
    folder = Path(arguments.out or f"runs/{arguments.env.rpartition(':')[2]}-{Path(path).stem}-{arguments.seed}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LLMGymError(
            f"{folder} exists already and nothing is overwritten: delete it, pass another --out, or go on with it by "
            f"--resume {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"llm_gym_chain": FORMAT, "arguments": asdict(arguments), "stages": stages}
    write_aside(folder / CHAIN, json.dumps(stored, indent=2, ensure_ascii=False) + "\n")
    try:
        return resume_chain(folder, progress)
    except BaseException:
        if not any(place.is_dir() for place in folder.iterdir()):  # nothing was learnt that could be gone on with
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume_chain(folder: Path, progress: Progress | None = None) -> list[Run]:
    """Go on with a chain: leave finished stages alone, go on with the one that was interrupted, make the others.

    Raises:
        LLMGymError: No chain, or what `train` and `resume` raise.
    """
    progress = progress or Progress()
    shared, stages = _stored(folder)
    runs: list[Run] = []
    for number, stage in enumerate(stages, 1):
        place = folder / f"{number}-{stage['algo']}"
        progress.say(f"stage {number} of {len(stages)}: {stage['algo']}, in {place}")
        asked = replace(shared, **stage, out=str(place))
        if runs:  # what its environment is asked for is that of the run that is gone on from
            before = str(runs[-1].folder)
            asked = replace(
                asked, policy=before, data=None, columns=None, feedback=None, partner=None, instruction=None
            )
        runs.append(finished(place) or _stage(place, asked, progress))
    return runs


def _stage(place: Path, asked: TrainArguments, progress: Progress) -> Run:
    """Go on with a stage, or begin it."""
    if (place / CONFIG).exists():
        return resume(place, progress=progress)
    shutil.rmtree(place, ignore_errors=True)  # it was interrupted before it had begun
    return train(asked, progress)


def _stored(folder: Path) -> tuple[TrainArguments, list[dict[str, Any]]]:
    try:
        stored = json.loads((folder / CHAIN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LLMGymError(f"{folder} is no chain that can be gone on with: {CHAIN} cannot be read ({error})") from error
    if stored.get("llm_gym_chain") != FORMAT:
        raise LLMGymError(f"{folder} was written by another version of llm_gym; train again, or use that version")
    return TrainArguments(**stored["arguments"]), stored["stages"]
