"""What each command does: thin, the work is in `llm_gym` and `agents`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from llm_gym.cli.printing import console, print_json, print_table
from llm_gym.errors import LLMGymError
from llm_gym.registration import ENVIRONMENTS, find_task

BATCH = 64  # rows scored in one call
LENGTHS = ("steps", "minutes", "tokens")  # of training


def list_command(arguments: argparse.Namespace) -> None:
    """Show environments, models and scorers, or with `--columns` what data each environment reads.

    Loads no model library.
    """
    from llm_gym.feedback import SCORERS
    from llm_gym.models.bundled import BUNDLED
    from llm_gym.models.catalogue import CATALOGUE
    from llm_gym.models.fetch import is_fetched

    tables: dict[str, list[dict[str, Any]]] = {
        "environments": [{"id": name, "what": _summary(path)} for name, path in ENVIRONMENTS.items()],
        "models": [
            {"name": c.name, "kind": c.kind, "hub_id": c.hub_id, "licence": c.licence, "fetched": is_fetched(c.name)}
            for c in CATALOGUE.values()
        ]
        + [
            {"name": name, "kind": kind, "hub_id": "", "licence": "Apache-2.0", "fetched": True}
            for name, kind in BUNDLED.items()
        ],
        "scorers": [{"name": name, "what": _summary(path)} for name, path in SCORERS.items()],
    }
    if arguments.columns:
        tables = {"columns": [_columns(name) for name in ENVIRONMENTS]}
    if arguments.json:
        print_json(tables)
        return
    for title, rows in tables.items():
        print_table(title, list(rows[0]), [list(row.values()) for row in rows])


def _columns(env_id: str) -> dict[str, Any]:
    """Return the columns of an environment's data, and the well-known data sets whose columns it knows."""
    task = find_task(env_id)
    known = ", ".join(f"{short} ({public.name})" for short, public in task.public.items())
    return {"id": env_id, "required": ", ".join(task.required), "optional": ", ".join(task.optional), "known": known}


def _summary(path: str) -> str:
    """Return the first line of the docstring of `module:name`."""
    module, _, name = path.partition(":")
    return (inspect.getdoc(getattr(importlib.import_module(module), name)) or "").partition("\n")[0]


def fetch_command(arguments: argparse.Namespace) -> None:
    """Make models ready on this machine."""
    from llm_gym.models.catalogue import CATALOGUE
    from llm_gym.models.fetch import fetch

    rows = [{"name": name, "path": str(fetch(name))} for name in arguments.names or CATALOGUE]
    if arguments.json:
        print_json({"models": rows})
    else:
        for row in rows:
            print(f"{row['name']}: {row['path']}")


def train_command(arguments: argparse.Namespace) -> None:
    """Train a policy and print what changed."""
    runs = _resumed(arguments) if arguments.resume else _trained(arguments)
    if arguments.json:
        told = [{**r.report, "run": str(r.folder), "curve": str(r.folder / "curve.png")} for r in runs]
        print_json({"stages": told} if len(told) > 1 else told[0])
        return
    for run in runs:
        _print_run(run)


def _print_run(run: Any) -> None:
    from agents.report import changes_table, documents_table

    shown = console()
    shown.print(documents_table(run.report, run.sources))
    shown.print(changes_table(run.report))
    curve = run.folder / "curve.png"
    for line in (*run.report["notes"], f"run folder      {run.folder}", f"learning curve  {curve}"):
        shown.print(line, markup=False, soft_wrap=True)


def _trained(arguments: argparse.Namespace) -> list[Any]:
    if arguments.id is None:
        raise LLMGymError("which environment? Pass its id, such as TextSummary-v0, or --resume RUN")
    find_task(arguments.id)  # a slip in the name is told at once
    from agents.training import TrainArguments, train

    names = [field.name for field in fields(TrainArguments) if field.name not in ("env", "columns", "hyperparams")]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    changes: dict[str, Any] = {"columns": dict(arguments.columns), "hyperparams": dict(arguments.hyperparams)}
    asked = TrainArguments(env=arguments.id, **changes, **given)
    if arguments.chain is None:
        return [train(asked)]
    from agents.chain import train_chain

    _leave_out(arguments, ("algo", *LENGTHS, "hyperparams"), "--chain takes it from the file's stages")
    return train_chain(asked, arguments.chain)


def _resumed(arguments: argparse.Namespace) -> list[Any]:
    from agents.chain import CHAIN, resume_chain
    from agents.training import resume

    folder = Path(arguments.resume)
    own = {"resume", *LENGTHS, "json", "command"}
    others = [name for name in vars(arguments) if name not in own]
    _leave_out(arguments, others, "--resume takes everything but the length of training from the run")
    if not (folder / CHAIN).exists():
        return [resume(folder, arguments.steps, arguments.minutes, arguments.tokens)]
    _leave_out(arguments, LENGTHS, "a chain's stages have lengths of their own")
    return resume_chain(folder)


def _leave_out(arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Make sure that nothing was passed of what does not apply."""
    from llm_gym.cli.arguments import make_parser

    plain = make_parser().parse_args(["train"])
    for name in names:
        if (value := getattr(arguments, name)) != getattr(plain, name):
            raise LLMGymError(f"{why}; leave out {name}={value!r}")


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Let a policy write texts, and print each with its score, and the mean."""
    task = find_task(arguments.id)
    from agents import evaluate as evaluation
    from llm_gym.cli.environment import at_temperature, environment_asked
    from llm_gym.data import load_examples

    source = at_temperature(evaluation.find_policy(arguments.policy), arguments.temperature, arguments.greedy)
    env_kwargs = environment_asked(arguments, source)
    foreign = arguments.data is not None and os.path.realpath(env_kwargs["data"]) not in evaluation.trained_on(source)
    split = arguments.split or ("all" if foreign else "test")
    examples = load_examples(env_kwargs["data"], split, task, env_kwargs["columns"])
    ids = evaluation.held_out([example["id"] for example in examples], arguments.n or evaluation.HELD_OUT)
    envs = evaluation.make_envs(arguments.id, min(len(ids), evaluation.HELD_OUT), split, env_kwargs)
    policy = evaluation.load_policy(source, envs, arguments.best_of, arguments.seed)
    result = evaluation.evaluate(policy, envs, ids, arguments.greedy, arguments.seed)
    items = [
        {"id": e.example["id"], "text": e.text, "score": e.reward, "parts": e.parts, "finish_reason": e.finish_reason}
        for e in result.episodes
    ]
    facts = {
        "env": arguments.id,
        "policy": arguments.policy,
        "split": split,
        "mode": "greedy" if arguments.greedy else "sample",
        "best_of": arguments.best_of,
        "temperature": None if arguments.greedy or source.agent else source.temperature,
        "seed": arguments.seed,
        "feedback": env_kwargs["feedback"],
    }
    _print_scores(arguments, facts, items, result.columns())


def _print_scores(
    arguments: argparse.Namespace, facts: dict[str, Any], items: list[dict[str, Any]], columns: dict[str, Any]
) -> None:
    import numpy as np

    from llm_gym.statistics import interval

    means = {}
    for name, values in columns.items():
        told = values[np.isfinite(values)]  # of the others the feedback or the judge says nothing
        low, high = interval(told)
        known = math.isfinite(low)
        mean = float(told.mean()) if len(told) else None
        means[name] = {"mean": mean, "low": low if known else None, "high": high if known else None}
    silent = int(np.isnan(columns["feedback"]).sum())
    if arguments.json:
        counts = {"documents": len(items), "abstained": silent}
        print_json({**facts, **counts, **means.pop("feedback"), "measures": means, "items": items})
        return
    _print_items(items)
    rows = [
        [_label(name), _shown(row["mean"]), "" if row["low"] is None else _span(row)] for name, row in means.items()
    ]
    left_out = f" ({silent} abstained from)" if silent else ""
    print_table(f"over {len(items)} documents{left_out}, split {facts['split']}", ["", "mean", "95 % interval"], rows)


def _label(measure: str) -> str:
    return "score" if measure == "feedback" else measure.replace("feedback/", "  ").replace("_", " ")


def _span(row: dict[str, Any]) -> str:
    return f"[{row['low']:.3f}, {row['high']:.3f}]"


def score_command(arguments: argparse.Namespace) -> None:
    """Score texts that exist already, in order; nothing is printed unless all could be scored."""
    from llm_gym.data import read_examples
    from llm_gym.feedback import build

    task = find_task(arguments.id)
    feedback = build(task.feedback if arguments.feedback is None else arguments.feedback)
    columns = dict(arguments.columns)
    text_column = columns.pop("text", "text")
    rows = read_examples(arguments.input, task, columns)
    episodes = []
    for row in rows:
        text = row.raw.get(text_column)
        if not isinstance(text, str):
            state = "missing" if text is None else f"no string but {json.dumps(text, default=str)[:40]}"
            raise LLMGymError(
                f"{arguments.input}:{row.number}: column {text_column!r} is {state}; "
                "every row needs the text to be scored (another column with --columns text=NAME)"
            )
        # In a conversation the text is the first thing that the agent says.
        turns = [*task.opening(row.example), {"role": "agent", "text": text}] if task.max_turns > 1 else []
        episodes.append(task.episode(row.example, text, finish_reason="stop", turns=turns))
    scores = [score for start in range(0, len(episodes), BATCH) for score in feedback(episodes[start : start + BATCH])]
    items = [
        {"id": e.example["id"], "score": _known(score.value), "parts": {n: _known(v) for n, v in score.parts.items()}}
        for e, score in zip(episodes, scores, strict=True)
    ]
    if arguments.json:
        for item in items:
            print_json(item)
        return
    _print_items([{**item, "text": e.text} for item, e in zip(items, episodes, strict=True)])
    values = [score.value for score in scores if not score.abstained]
    left_out = f" ({len(scores) - len(values)} abstained from)" if len(values) < len(scores) else ""
    print(f"mean of {len(values)} rows{left_out}: {sum(values) / len(values) if values else math.nan:.3f}")


# -------------------------------------------------------------------- printing


def _print_items(items: list[dict[str, Any]]) -> None:
    from llm_gym.envs.render import printable

    rows = [
        [
            item["id"],
            printable(item["text"]),
            _shown(item["score"]),
            " ".join(f"{name}={_shown(value)}" for name, value in item["parts"].items()),
        ]
        for item in items
    ]
    print_table("texts", ["id", "text", "score", "parts"], rows)


def _known(value: float) -> float | None:
    """Return a score, or None where a judge abstained: JSON has no NaN."""
    return None if math.isnan(value) else value


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
