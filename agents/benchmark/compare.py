"""What changed between two benchmarks: each agent in each environment, on the same held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.benchmark.matrix import Plan
from agents.benchmark.plots import LABELS
from agents.benchmark.results import Outcome, read_outcomes
from agents.benchmark.tables import Table, number
from llm_gym.aggregate import paired_change
from llm_gym.statistics import Estimate

MEASURES = ("feedback", "judge", "copied_share", "words")
SETTINGS = ("policy", "minutes", "tokens", "seeds")


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Return what changed from one benchmark to another, as JSON types.

    Raises:
        LLMGymError: One of them is no benchmark.
    """
    (old_plan, old), (new_plan, new) = read_outcomes(first), read_outcomes(second)
    left, right = _by_agent(old), _by_agent(new)
    both = [key for key in left if key in right]
    return {
        "first": str(first),
        "second": str(second),
        "settings": _settings(old_plan, new_plan, old, new),
        "changes": [row for key in both for row in _changes(*key, left[key], right[key])],
        "only_first": [f"{env} · {agent}" for env, agent in left if (env, agent) not in right],
        "only_second": [f"{env} · {agent}" for env, agent in right if (env, agent) not in left],
    }


def table(report: dict[str, Any]) -> Table:
    """Return the changes as a table."""
    rows: list[tuple[str, ...]] = []
    for row in report["changes"]:
        digits = 1 if row["measure"] == "words" else 3
        change = "" if row["change"] is None else f"{row['change']:+.{digits}f}"
        ends = f" [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]" if row["low"] is not None else ""
        seeds = f"{row['seeds'][0]}, {row['seeds'][1]}"
        name = LABELS.get(row["measure"], row["measure"].replace("_", " "))
        means = (number(row["first"], digits), number(row["second"], digits))
        env = row["env"].rpartition(":")[2]
        rows.append((env, row["agent"], name, *means, change + ends, row["verdict"], str(row["documents"]), seeds))
    header = ("environment", "agent", "", "A", "B", "change, 95 % interval", "", "documents", "seeds")
    return Table("What changed from A to B, paired by held-out document", header, rows)


def _by_agent(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.state == "done":
            found.setdefault((outcome.cell.env, outcome.cell.agent), []).append(outcome)
    return found


def _settings(old_plan: Plan, new_plan: Plan, old: Sequence[Outcome], new: Sequence[Outcome]) -> list[str]:
    """Return in words what was run otherwise."""
    pairs: list[tuple[str, Any, Any]] = [(name, getattr(old_plan, name), getattr(new_plan, name)) for name in SETTINGS]
    ran = [next((o.result for o in outcomes if o.result), {}) for outcomes in (old, new)]
    pairs.append(("device", ran[0].get("device"), ran[1].get("device")))
    before, after = (result.get("versions", {}) for result in ran)
    pairs += [(name, before.get(name), after.get(name)) for name in {**before, **after}]
    return [f"{name}: {a} in A, {b} in B" for name, a, b in pairs if a != b]


def _changes(env: str, agent: str, old: Sequence[Outcome], new: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each measure of an agent in an environment."""
    tables = [_measured(outcomes) for outcomes in (old, new)]
    ids = [name for name in tables[0] if name in tables[1]]
    rows = []
    for place, measure in enumerate(MEASURES):
        values = [np.array([table[name][:, place] for name in ids]).T for table in tables]
        known = np.isfinite(np.concatenate(values)).all(0) if ids else np.zeros(0, bool)
        if not known.any():
            continue
        first, second = (value[:, known] for value in values)
        change = paired_change(first, second)
        rows.append({
            "env": env, "agent": agent, "measure": measure, "documents": int(known.sum()),
            "seeds": [len(first), len(second)], "first": float(first.mean()), "second": float(second.mean()),
            "change": change.value, "low": change.low, "high": change.high, "verdict": verdict(change, measure),
        })  # fmt: skip
    return rows


def _measured(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    """Return each document's measures, `(seeds, measures)`, NaN where one does not apply."""
    found: dict[str, list[list[float]]] = {}
    for outcome in outcomes:
        evaluation = outcome.evaluation()
        columns = evaluation.columns()
        for i, episode in enumerate(evaluation.firsts):
            row = [float(columns[name][i]) if name in columns else np.nan for name in MEASURES]
            found.setdefault(episode.example["id"], []).append(row)
    return {name: np.array(rows) for name, rows in found.items() if len(rows) == len(outcomes)}


def verdict(change: Estimate, measure: str) -> str:
    """Say what the interval of a change shows.

    >>> verdict(Estimate(0.2, 0.1, 0.3), "judge"), verdict(Estimate(0.2, -0.1, 0.3), "judge")
    ('better', 'no evidence of a change')
    >>> verdict(Estimate(-2.0, -3.0, -1.0), "words"), verdict(Estimate(0.0, 0.0, 0.0), "judge")
    ('lower', 'the same')
    """
    if change.low is None or change.high is None:
        return "too few documents to tell"
    if change.low == change.high == 0:
        return "the same"
    up, down = ("better", "worse") if measure in LABELS else ("higher", "lower")
    return up if change.low > 0 else down if change.high < 0 else "no evidence of a change"
