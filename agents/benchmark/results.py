"""What a benchmark found: every cell's measures, and what they say together, as JSON types."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.benchmark.cells import RESULT, read_error, read_evaluation, state
from agents.benchmark.matrix import REFERENCE, UNTRAINED, Cell, Plan, read_plan
from agents.comparison import pooled, win_rates
from agents.curve import smoothed
from agents.evaluate import CONFIG, Evaluation
from llm_gym.aggregate import Band, bootstrap, interquartile_mean, performance_profile, probability_of_improvement
from llm_gym.registration import find_task

SCORES = ("feedback", "judge")
"""What is normalised: what training is paid by, and what it never sees."""
THRESHOLDS = np.linspace(-0.5, 1.5, 81)
POINTS = 40  # of a learning curve


class Outcome:
    """What came of a cell.

    Attributes:
        cell: The cell.
        state: `done`, `failed` or `open`.
        result: What `result.json` holds; empty unless done.
        error: Why it failed, or None.
        metrics: A row for each update of its training.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.state = cell, state(cell)
        self.result: dict[str, Any] = _read(cell.folder / RESULT) if self.state == "done" else {}
        self.error = read_error(cell)
        path = cell.folder / "metrics.jsonl"
        self.metrics = (
            [json.loads(line) for line in path.read_text().splitlines()] if self.result and path.exists() else []
        )

    def evaluation(self) -> Evaluation:
        """Return what the agent wrote about the held-out documents."""
        return read_evaluation(self.cell, self.result["texts"])

    def measure(self, name: str) -> float:
        """Return a measure of the held-out texts, NaN where there is none."""
        found = self.result["measures"].get(name) if self.result else None
        return np.nan if found is None else found


def read_outcomes(out: Path) -> tuple[Plan, list[Outcome]]:
    """Return the plan of a benchmark and what came of each of its cells.

    Raises:
        LLMGymError: `out` is no benchmark.
    """
    plan = read_plan(out)
    return plan, [Outcome(cell) for cell in plan.cells(out)]


def summarise(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return all that the report shows but the texts.

    Scores are normalised in each environment so that the untrained policy has 0 and the reference 1. What is aggregated
    leaves out environments in which the reference is not better than the untrained policy, and agents that failed.
    """
    scales = {name: {env: _scale(outcomes, env, name) for env in plan.envs} for name in SCORES}
    usable = {name: [env for env in plan.envs if scales[name][env]] for name in SCORES}
    tables = {name: _tables(plan, outcomes, name, usable[name], scales[name]) for name in SCORES}
    return {
        "plan": asdict(plan),
        "versions": _distinct(outcome.result.get("versions") for outcome in outcomes),
        "devices": _distinct(outcome.result.get("device") for outcome in outcomes),
        "configs": {env: _config(outcomes, env) for env in plan.envs},
        "scales": {name: {env: s and list(s) for env, s in scales[name].items()} for name in SCORES},
        "cells": [_row(outcome, scales) for outcome in outcomes],
        "environments": {env: _environment(plan, outcomes, env) for env in plan.envs},
        "aggregates": {name: _aggregates(tables[name]) for name in SCORES},
        "thresholds": THRESHOLDS.tolist(),
        "curves": {env: _curves(plan, outcomes, env) for env in plan.envs},
        "notes": _notes(plan, outcomes, usable),
    }


# -------------------------------------------------------------------- cells


def _config(outcomes: Sequence[Outcome], env: str) -> dict[str, Any]:
    """Return what all agents of an environment are judged by, and with what those of ours were trained."""
    task = find_task(env)
    found: dict[str, Any] = {"feedback": task.feedback, "judge": task.judge}
    for outcome in outcomes:
        path = outcome.cell.folder / CONFIG
        if outcome.result and outcome.cell.env == env and path.exists():
            config = _read(path)
            kept = {name: config[name] for name in ("n_envs", "settings", "policy")}
            found.setdefault("training", {}).setdefault(outcome.cell.agent, kept)
    return found


def _row(outcome: Outcome, scales: dict[str, dict[str, tuple[float, float] | None]]) -> dict[str, Any]:
    cell, result = outcome.cell, outcome.result
    normal = {name: _known(_normal(outcome.measure(name), scales[name][cell.env])) for name in SCORES}
    kept = ("measures", "kl", "kl_at_most", "tokens_per_second", "training", "seconds")
    facts = {"env": cell.env, "agent": cell.agent, "seed": cell.seed, "state": outcome.state, "error": outcome.error}
    return {**facts, "normalised": normal, **{name: result.get(name) for name in kept}}


def _scale(outcomes: Sequence[Outcome], env: str, name: str) -> tuple[float, float] | None:
    """Return what the untrained policy and the reference have, None unless the latter is better."""
    ends = [_mean(o.measure(name) for o in _of(outcomes, env, agent)) for agent in (UNTRAINED, REFERENCE)]
    known = ends[0] is not None and ends[1] is not None and ends[1] > ends[0]
    return (ends[0], ends[1]) if known else None  # type: ignore[return-value]


def _of(outcomes: Sequence[Outcome], env: str, agent: str) -> list[Outcome]:
    """Return an agent's cells in an environment that are done."""
    return [o for o in outcomes if o.result and (o.cell.env, o.cell.agent) == (env, agent)]


def _normal(value: float, scale: tuple[float, float] | None) -> float:
    return np.nan if scale is None else (value - scale[0]) / (scale[1] - scale[0])


# -------------------------------------------------------------------- aggregates


def _tables(
    plan: Plan, outcomes: Sequence[Outcome], name: str, envs: list[str], scales: dict[str, tuple[float, float] | None]
) -> dict[str, np.ndarray]:
    """Return the normalised scores `(runs, environments)` of each agent: its seeds that are done in all environments.

    An agent that failed has none: what fails is not chance, and would be left out where an agent is at its worst.
    """
    tables = {}
    for agent in plan.agents:
        mine = [o for o in outcomes if o.cell.agent == agent]
        found = {(o.cell.env, o.cell.seed): _normal(o.measure(name), scales[o.cell.env]) for o in mine}
        seeds = dict.fromkeys(o.cell.seed for o in mine)
        rows = [[found[env, seed] for env in envs] for seed in seeds]
        rows = [row for row in rows if row and np.isfinite(row).all()]
        if rows and not any(o.state == "failed" for o in mine):
            tables[agent] = np.array(rows)
    return tables


def _aggregates(tables: dict[str, np.ndarray]) -> dict[str, Any]:
    profile: Callable[[np.ndarray], np.ndarray] = lambda scores: performance_profile(scores, THRESHOLDS)  # noqa: E731
    pairs = {
        mine: {
            theirs: asdict(bootstrap(probability_of_improvement, tables[mine], tables[theirs]).estimate())
            for theirs in tables
            if theirs != mine
        }
        for mine in tables
    }
    return {
        "interquartile_mean": {a: asdict(bootstrap(interquartile_mean, t).estimate()) for a, t in tables.items()},
        "profile": {agent: _band(bootstrap(profile, table)) for agent, table in tables.items()},
        "improvement": pairs,
    }


def _band(band: Band) -> dict[str, list[float | None]]:
    return {name: [_known(x) for x in part.tolist()] for name, part in band._asdict().items()}


# -------------------------------------------------------------------- environments


def _environment(plan: Plan, outcomes: Sequence[Outcome], env: str) -> dict[str, Any]:
    """Return a row for each agent: means over its seeds, and win rates against the untrained policy."""
    done = {agent: _of(outcomes, env, agent) for agent in plan.agents}
    written = {agent: pooled([o.evaluation() for o in mine]) for agent, mine in done.items() if mine}
    rows = {}
    for agent, evaluation in written.items():
        mine = done[agent]
        rates = None
        if agent != UNTRAINED and UNTRAINED in written and _same(evaluation, written[UNTRAINED]):
            rates = [asdict(estimate) for estimate in win_rates(evaluation, written[UNTRAINED])]
        names = ("feedback", "judge", "copied_share", "distinct_2", "words")
        rows[agent] = {
            "seeds": len(mine),
            "documents": len(evaluation.firsts),
            **{name: _mean(o.measure(name) for o in mine) for name in names},
            **{name: _mean(o.result.get(name) for o in mine) for name in ("kl", "kl_at_most", "tokens_per_second")},
            "win_rate": rates and rates[0],
            "win_rate_at_equal_length": rates and rates[1],
        }
    return rows


def _same(mine: Evaluation, theirs: Evaluation) -> bool:
    """Return whether two evaluations are about the same documents."""
    return [e.example["id"] for e in mine.firsts] == [e.example["id"] for e in theirs.firsts]


# -------------------------------------------------------------------- learning curves


def _curves(plan: Plan, outcomes: Sequence[Outcome], env: str) -> dict[str, Any]:
    """Return, for each agent that learns, the interquartile mean over seeds of training feedback, by tokens written."""
    curves = {}
    for agent in plan.agents:
        runs = [o.metrics for o in outcomes if (o.cell.env, o.cell.agent) == (env, agent) and len(o.metrics) > 1]
        runs = [[row for row in run if row["reward"] is not None] for run in runs]
        runs = [run for run in runs if run]
        if not runs:
            continue
        first, last = (f(run[i]["tokens_total"] for run in runs) for f, i in ((max, 0), (min, -1)))
        if first >= last:
            continue
        places = np.linspace(first, last, POINTS)
        series = [
            np.interp(places, [row["tokens_total"] for row in run], smoothed([row["reward"] for row in run]))
            for run in runs
        ]
        along: Callable[[np.ndarray], np.ndarray] = lambda s: interquartile_mean(_by_point(s))  # noqa: E731
        # A run is drawn whole: its points are no tasks of their own.
        draws = np.arange(len(runs))[:, None].astype(float)
        table = np.array(series)
        band = bootstrap(lambda chosen, t=table, f=along: f(t[chosen[..., 0].astype(int)]), draws)
        curves[agent] = {"tokens": [round(float(x)) for x in places], **_band(band)}
    return curves


def _by_point(series: np.ndarray) -> np.ndarray:
    """Return runs of points, `(..., runs, points)`, as a table of one task for each point, `(..., points, runs, 1)`."""
    return np.swapaxes(series, -1, -2)[..., None]


# -------------------------------------------------------------------- notes


def _notes(plan: Plan, outcomes: Sequence[Outcome], usable: dict[str, list[str]]) -> list[str]:
    notes = []
    failed = [o.cell.title for o in outcomes if o.state == "failed"]
    if failed:
        notes.append(f"{len(failed)} of {len(outcomes)} cells failed: {', '.join(failed)}. An agent with a failed cell "
                     "has no aggregate; its other cells are in the tables.")  # fmt: skip
    left = sum(o.state == "open" for o in outcomes)
    if left:
        notes.append(f"{left} of {len(outcomes)} cells have not been run yet; aggregates are over the seeds that an "
                     "agent has finished everywhere.")  # fmt: skip
    for env in plan.envs:
        if not all(_of(outcomes, env, agent) for agent in (UNTRAINED, REFERENCE)):
            notes.append(f"{env}: nothing is normalised before the untrained policy and the reference are done.")
            continue
        for name, label in (("feedback", "training feedback"), ("judge", "the second judge")):
            if env not in usable[name]:
                notes.append(f"{env}: by {label} the reference is not better than the untrained policy, so nothing is "
                             "normalised there.")  # fmt: skip
    for name, what in (("versions", "versions of packages"), ("device", "devices")):
        if len(_distinct(o.result.get(name) for o in outcomes)) > 1:
            notes.append(f"Cells were run with different {what}; see the end of the page.")
    if plan.seeds < 3:
        notes.append(f"{plan.seeds} seed{'s' * (plan.seeds > 1)}: intervals over so few runs are rough; take five for "
                     "a claim.")  # fmt: skip
    return notes


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known else None


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found
