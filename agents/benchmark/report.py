"""The report of a benchmark: one page that needs nothing else, a JSON of everything, a CSV of the cells."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from agents.benchmark import tables
from agents.benchmark.plots import LABELS, Pictures
from agents.benchmark.results import Outcome, read_outcomes, summarise
from llm_gym.data.files import write_aside
from llm_gym.envs.render import printable
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.statistics import evenly_spaced

PAGE, SUMMARY, SCORES = "report.html", "results.json", "scores.csv"
SHOWN = 3  # documents of an environment whose texts are shown, evenly spaced, so that nobody picked them
COLUMNS = ("feedback", "judge", "copied_share", "distinct_2", "words")


def write_report(out: Path) -> dict[str, Any]:
    """Write the report into a benchmark's folder, and return what its JSON holds.

    Raises:
        LLMGymError: `out` is no benchmark.
    """
    plan, outcomes = read_outcomes(out)
    summary = summarise(plan, outcomes)
    write_aside(out / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_aside(out / SCORES, scores_csv(summary))
    write_aside(out / PAGE, page(summary, [_transcripts(env, outcomes) for env in plan.envs]))
    return summary


def read_summary(path: Path) -> dict[str, Any]:
    """Return what a `results.json` holds.

    Raises:
        LLMGymError: It cannot be read, or is something else.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LLMGymError(f"{path} cannot be read ({error}); give the results.json of a benchmark") from error
    if not isinstance(summary, dict) or not {"plan", "environments", "aggregates"} <= set(summary):
        raise LLMGymError(f"{path} is not the results.json of a benchmark")
    return summary


def page(summary: dict[str, Any], transcripts: list[dict[str, Any]]) -> str:
    """Return the report as HTML. What models wrote is escaped, as everything else is."""
    source = files("agents.benchmark").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    pictures = Pictures(summary)
    return environment.from_string(source).render(
        summary=summary,
        overview=tables.overview(summary),
        environments=[tables.environment(summary, env) for env in summary["plan"]["envs"]],
        cells=tables.cells(summary),
        failures=[cell for cell in summary["cells"] if cell["error"]],
        means=pictures.interquartile_means(),
        profiles={LABELS[name]: pictures.profiles(name) for name in LABELS},
        improvements={LABELS[name]: pictures.improvement(name) for name in LABELS},
        curves=pictures.curves(),
        frontier=pictures.frontier(),
        transcripts=transcripts,
        settings=json.dumps(
            {name: summary[name] for name in ("plan", "versions", "devices")}, indent=2, ensure_ascii=False
        ),
    )


def markdown(summary: dict[str, Any]) -> str:
    """Return the tables of the report as Markdown."""
    shown = [tables.overview(summary), *(tables.environment(summary, env) for env in summary["plan"]["envs"])]
    blocks = [f"**{table.title}**\n\n{table.markdown()}" for table in shown]
    return "\n\n".join([*blocks, *summary["notes"]]) + "\n"


def scores_csv(summary: dict[str, Any]) -> str:
    """Return a row for each cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts, learned = ("kl", "kl_at_most", "tokens_per_second", "seconds"), ("updates", "tokens", "seconds")
    writer.writerow(("env", "agent", "seed", "state", *COLUMNS, "normalised_feedback", "normalised_judge", *facts,
                     *(f"training_{name}" for name in learned), "error"))  # fmt: skip
    for cell in summary["cells"]:
        found, training = cell["measures"] or {}, cell["training"] or {}
        writer.writerow((
            cell["env"], cell["agent"], cell["seed"], cell["state"], *(found.get(name) for name in COLUMNS),
            cell["normalised"]["feedback"], cell["normalised"]["judge"], *(cell[name] for name in facts),
            *(training.get(name) for name in learned), cell["error"],
        ))  # fmt: skip
    return text.getvalue()


def _transcripts(env: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return some held-out documents with what each agent wrote, the first text of its first seed."""
    first = {o.cell.agent: o for o in reversed(outcomes) if o.cell.env == env and o.result}
    agents = [agent for agent in dict.fromkeys(o.cell.agent for o in outcomes) if agent in first]
    sources: dict[str, str] = {}
    written: dict[str, list[dict[str, Any]]] = {}
    for agent in agents:
        evaluation = first[agent].evaluation()
        for episode, judged in zip(evaluation.firsts, evaluation.judged, strict=False):
            name = episode.example["id"]
            sources[name] = printable(episode.source)
            facts = {"agent": agent, "score": episode.reward, "judge": judged and judged.value}
            written.setdefault(name, []).append({**facts, "turns": _turns(episode)})
    shown = evenly_spaced(list(written), SHOWN)
    return {
        "env": env.rpartition(":")[2],
        "documents": [{"id": name, "source": sources[name], "texts": written[name]} for name in shown],
    }


def _turns(episode: Episode) -> list[dict[str, str]]:
    """Return what was said, the agent's words alone where there was no conversation."""
    turns = [{"role": turn["role"], "text": printable(turn["text"])} for turn in episode.turns]
    talked = any(turn["role"] != "agent" for turn in turns)
    return turns if talked else [{"role": "agent", "text": printable(episode.text)}]
