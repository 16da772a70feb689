"""One cell of a benchmark: an agent is trained if it can be, writes about the held-out documents, and is judged."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import checkpoint
from agents.benchmark.matrix import UNTRAINED, Cell, Contestant, Plan, find_contestant
from agents.benchmark.own import BudgetEnv, Predicting, learn, make_agent
from agents.comparison import bound, divergences, measures
from agents.evaluate import (
    CONFIG,
    TEXTS,
    Evaluation,
    PolicySource,
    evaluate,
    find_policy,
    held_out,
    load_policy,
    make_envs,
)
from agents.progress import Progress
from agents.recorder import Limit
from agents.rollout import Agent
from agents.speaker import EndpointAgent
from agents.training import TrainArguments, resume, train, versions
from agents.vec_env import make_vec_env
from llm_gym.data import load_examples
from llm_gym.data.files import write_aside
from llm_gym.feedback import build
from llm_gym.models.load import pick_device
from llm_gym.registration import find_task

RESULT, ERROR, TEXTS_FILE = "result.json", "error.json", "after.jsonl"
ROWS = 16  # of the environment that a class of the user's learns in


def state(cell: Cell) -> str:
    """Return `done`, `failed` or `open`."""
    if (cell.folder / RESULT).exists():
        return "done"
    return "failed" if (cell.folder / ERROR).exists() else "open"


def run_cell(cell: Cell, plan: Plan, progress: Progress) -> None:
    """Run a cell, or go on with it, and leave its result in its folder.

    A cell that is trained is an ordinary run folder, without its checkpoints once it is done.

    Raises:
        LLMGymError: The agent cannot do what it is asked for.
    """
    started = time.monotonic()
    (cell.folder / ERROR).unlink(missing_ok=True)
    contestant = find_contestant(cell.agent, plan.policy)
    run = {"trained": _train, "own": _train_own}.get(contestant.kind, _play)
    evaluation, facts = run(cell, plan, contestant, progress)
    result = {
        "env": cell.env,
        "agent": cell.agent,
        "seed": cell.seed,
        "texts": evaluation.texts,
        "measures": measures(evaluation),
        **facts,
        "seconds": round(time.monotonic() - started, 3),
        "device": _device(),
        "versions": versions(),
    }
    write_aside(cell.folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    shutil.rmtree(cell.folder / checkpoint.FOLDER, ignore_errors=True)


def read_evaluation(cell: Cell, texts: int) -> Evaluation:
    """Return what an agent wrote in a cell, `texts` for each document."""
    return Evaluation.from_jsonl((cell.folder / TEXTS_FILE).read_text(encoding="utf-8"), texts)


def read_error(cell: Cell) -> str | None:
    """Return why a cell failed, or None."""
    return json.loads((cell.folder / ERROR).read_text())["error"] if state(cell) == "failed" else None


# -------------------------------------------------------------------- the three kinds of cells


def _train(cell: Cell, plan: Plan, contestant: Contestant, progress: Progress) -> tuple[Evaluation, dict[str, Any]]:
    """Train an algorithm of ours; one that was interrupted goes on from its last checkpoint."""
    if checkpoint.checkpoints(cell.folder):
        report = resume(cell.folder, progress=progress).report
    else:
        shutil.rmtree(cell.folder, ignore_errors=True)
        asked = TrainArguments(
            env=cell.env,
            algo=cell.agent,
            policy=plan.policy,
            minutes=plan.minutes,
            tokens=plan.tokens,
            seed=cell.seed,
            out=str(cell.folder),
        )
        report = train(asked, progress, contestant.model).report
    evaluation = read_evaluation(cell, TEXTS)
    temperature = json.loads((cell.folder / CONFIG).read_text(encoding="utf-8"))["policy"]["temperature"]
    with progress.stage("measuring how far the policy has gone"):
        kl = _divergence(cell, plan, contestant, evaluation, temperature)
    learned = {"updates": report["updates"], "tokens": report["tokens"], "seconds": report["train_seconds"]}
    speed = report["tokens"] / report["train_seconds"]
    return evaluation, {"kl": kl, "tokens_per_second": round(speed, 2), "training": learned}


def _train_own(cell: Cell, plan: Plan, contestant: Contestant, progress: Progress) -> tuple[Evaluation, dict[str, Any]]:
    """Let a class of the user's learn, if it does; one that was interrupted begins again."""
    env_kwargs = contestant.env_kwargs(cell.env)
    venv = make_vec_env(cell.env, n_envs=ROWS, seed=cell.seed, split="train", **env_kwargs)
    env = BudgetEnv(venv, Limit(None, plan.minutes, plan.tokens))
    agent = make_agent(cell.agent, env, cell.seed)
    cell.folder.mkdir(parents=True, exist_ok=True)
    learned: dict[str, Any] = {}
    if hasattr(agent, "learn"):
        started = time.monotonic()
        with progress.stage(f"learning for {env.limit.goal}"):
            learn(agent, env)
        seconds = round(time.monotonic() - started, 3)
        learned = {"training": {"updates": len(env.rows), "tokens": env.tokens, "seconds": seconds}}
        write_aside(cell.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in env.rows))
    evaluation, speed = _write(cell, contestant, Predicting(agent, cell.agent), progress)
    return evaluation, {"kl": None, "tokens_per_second": speed, **learned}


def _play(cell: Cell, plan: Plan, contestant: Contestant, progress: Progress) -> tuple[Evaluation, dict[str, Any]]:
    """Let an agent write that is not trained here."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    evaluation, speed = _write(cell, contestant, None, progress)
    facts: dict[str, Any] = {"kl": None, "tokens_per_second": speed}
    source = contestant.source
    if contestant.best_of > 1:
        return evaluation, {**facts, "kl_at_most": round(bound(contestant.best_of), 4)}
    if cell.agent == UNTRAINED:
        return evaluation, {**facts, "kl": 0.0}
    if not contestant.greedy and source.config and source.config["policy"]["model"] == find_policy(plan.policy).model:
        facts["kl"] = _divergence(cell, plan, contestant, evaluation, source.temperature)
    return evaluation, facts


# -------------------------------------------------------------------- their parts


def _write(cell: Cell, contestant: Contestant, agent: Agent | None, progress: Progress) -> tuple[Evaluation, float]:
    """Let an agent write about the held-out documents; return what it wrote, and its tokens a second."""
    env_kwargs = contestant.env_kwargs(cell.env)
    task = find_task(cell.env)
    ids = held_out([example["id"] for example in load_examples(None, "test", task)])
    envs = make_envs(cell.env, len(ids), "test", env_kwargs)
    agent = agent or _agent(contestant, envs, cell.seed)
    texts = 1 if contestant.deterministic else TEXTS
    started = time.monotonic()
    with progress.stage(f"writing {texts} text{'s' * (texts > 1)} for each of {len(ids)} held-out documents"):
        found = evaluate(agent, envs, ids, contestant.greedy, cell.seed, build(task.judge), texts)
    seconds = time.monotonic() - started
    write_aside(cell.folder / TEXTS_FILE, found.to_jsonl())
    return found, round(sum(int(e.agent_mask.sum()) for e in found.episodes) / seconds, 2)


def _agent(contestant: Contestant, envs: Any, seed: int) -> Agent:
    if contestant.kind == "endpoint":
        return EndpointAgent(envs, contestant.name, seed)
    return load_policy(contestant.source, envs, contestant.best_of, seed)


def _divergence(
    cell: Cell, plan: Plan, contestant: Contestant, evaluation: Evaluation, temperature: float
) -> float | None:
    """Return the mean over texts of log p(agent) - log p(untrained policy), in nats; None if the agent told no p."""
    if any(e.log_probs is None for e in evaluation.episodes):
        return None
    untrained: PolicySource = replace(find_policy(plan.policy), temperature=temperature)
    envs = make_envs(cell.env, 1, "test", contestant.env_kwargs(cell.env))
    reference: Any = load_policy(untrained, envs)
    return round(float(np.mean(divergences(evaluation.episodes, reference))), 4)


def _device() -> str:
    device = torch.device(pick_device("auto"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPUs"


def write_error(folder: Path, message: str, details: str = "") -> None:
    """Keep in a cell's folder why it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / ERROR, json.dumps({"error": message, "traceback": details}, indent=2) + "\n")
