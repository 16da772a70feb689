"""Reporting a run: changes with intervals, tables to read, and the learning curve."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from agents.evaluate import Evaluation
from llm_gym.envs.render import printable
from llm_gym.feedback.rules import copied_share, words
from llm_gym.statistics import evenly_spaced, interval

NO_EVIDENCE = "no evidence of improvement"
JUDGED = ("feedback", "judge")  # the measures that get a verdict


def verdict(low: float, high: float) -> str:
    """Say what the interval of a change shows.

    >>> verdict(0.1, 0.3), verdict(-0.1, 0.3), verdict(0.0, 0.3), verdict(-0.3, -0.1)
    ('improved', 'no evidence of improvement', 'no evidence of improvement', 'worse')
    """
    if low > 0:
        return "improved"
    return "worse" if high < 0 else NO_EVIDENCE


@dataclass
class Change:
    """One measure before and after training, over the same documents.

    Attributes:
        measure: A key of `Evaluation.columns`.
        label: What a table calls it.
        documents: How many it was measured on.
        before: Mean before.
        after: Mean after.
        change: Mean of the differences.
        low: Lower end of the 95 % interval of the change, or None with fewer than two documents.
        high: Upper end.
        verdict: For training feedback and second judge: `improved`, `worse` or `no evidence of improvement`.
        reference: Mean of the references, where that can be measured.
    """

    measure: str
    label: str
    documents: int
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    verdict: str = ""
    reference: float | None = None


def compare(before: Evaluation, after: Evaluation, weights: dict[str, float], seed: int = 0) -> list[Change]:
    """Return the change of every measure, paired by document.

    Args:
        before: Evaluation of the untrained policy.
        after: Evaluation of the trained one on the same documents in the same order.
        weights: Of the training feedback's parts, for their labels.
        seed: Of the bootstrap.
    """
    first, second = before.columns(), after.columns()
    references = _references(after)
    changes = []
    for measure in first:
        measured = np.isfinite(first[measure]) & np.isfinite(second[measure])
        if not measured.any():
            continue
        old, new = first[measure][measured], second[measure][measured]
        low, high = interval(new - old, seed)
        known = bool(np.isfinite(low))
        changes.append(
            Change(
                measure=measure,
                label=_label(measure, weights),
                documents=len(old),
                before=float(old.mean()),
                after=float(new.mean()),
                change=float((new - old).mean()),
                low=low if known else None,
                high=high if known else None,
                verdict="" if measure not in JUDGED else verdict(low, high) if known else NO_EVIDENCE,
                reference=references.get(measure),
            )
        )
    return changes


def _references(evaluation: Evaluation) -> dict[str, float]:
    """Return what the references themselves measure."""
    pairs = [(e.reference, e.source) for e in evaluation.firsts if e.reference]
    if not pairs:
        return {}
    return {
        "copied_share": float(np.mean([copied_share(text, source) for text, source in pairs])),
        "words": float(np.mean([len(words(text)) for text, _ in pairs])),
    }


def _label(measure: str, weights: dict[str, float]) -> str:
    group, _, part = measure.partition("/")
    if not part:
        return {"feedback": "training feedback", "judge": "second judge"}.get(group, group.replace("_", " "))
    name = part.replace("_", " ")
    return f"  {name} (weight {weights[part]:g})" if group == "feedback" and part in weights else f"  {name}"


def make_report(
    facts: dict[str, Any],
    before: Evaluation,
    after: Evaluation,
    weights: dict[str, float],
    seed: int = 0,
) -> dict[str, Any]:
    """Return the report of a run as JSON types.

    Args:
        facts: What the run was; goes in front.
        before: Evaluation of the untrained policy, texts sampled as in training.
        after: Evaluation of the trained policy on the same documents.
        weights: Of the training feedback's parts.
        seed: Of the bootstrap.
    """
    texts = [
        {
            "id": old.example["id"],
            "before": old.text,
            "after": new.text,
            "score_before": old.reward,
            "score_after": new.reward,
        }
        for old, new in zip(before.firsts, after.firsts, strict=True)
    ]
    return {
        **facts,
        "documents": len(texts),
        "texts_each": after.texts,
        "interval": "95 %, bootstrap over documents, paired, 10,000 resamples",
        "changes": [asdict(change) for change in compare(before, after, weights, seed)],
        "notes": [*_abstained(before, after), *_notes(after), *_readers(facts), *_divergence(facts)],
        "texts": texts,
    }


def _abstained(before: Evaluation, after: Evaluation) -> list[str]:
    silent = [sum(e.reward is None for e in evaluation.episodes) for evaluation in (before, after)]
    if not any(silent):
        return []
    return [
        f"The feedback abstained from {silent[0]} texts before and {silent[1]} after; their documents are left out."
    ]


def _notes(evaluation: Evaluation) -> list[str]:
    judged = sum(score is not None for score in evaluation.judged) // evaluation.texts
    if judged == 0:
        return ["The second judge was not run: the data has no reference column."]
    if judged < len(evaluation.firsts):
        return [f"The second judge was run on the {judged} of {len(evaluation.firsts)} documents with a reference."]
    return []


def _readers(facts: dict[str, Any]) -> list[str]:
    if not facts.get("reads_reference"):
        return []
    return [
        f"Training feedback read the references ({', '.join(facts['reads_reference'])}), with which the second judge "
        "compares as well: it is no independent judge of this run."
    ]


def _divergence(facts: dict[str, Any]) -> list[str]:
    if facts.get("diverged") is None:
        return []
    return [
        f"From update {facts['diverged']} on training feedback rose while the second judge fell, the mark of a "
        "feedback that is being hacked: read the texts before you trust it."
    ]


# -------------------------------------------------------------------- tables


def _rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table of changes."""
    rows: list[tuple[str, ...]] = []
    for change in report["changes"]:
        reference = "" if change["reference"] is None else f"{change['reference']:.3f}"
        means = [f"{change[when]:.3f}" for when in ("before", "after")]
        rows.append((change["label"], *means, _span(change), reference, change["verdict"]))
    return rows


HEADER = ("", "before", "after", "change [95 % interval]", "references", "")


def _span(change: dict[str, Any]) -> str:
    if change["low"] is None:
        return f"{change['change']:+.3f}"
    return f"{change['change']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def changes_table(report: dict[str, Any]) -> Table:
    """Return the held-out table for a terminal."""
    table = Table(
        title=f"{report['documents']} held-out documents, {report['texts_each']} texts each", box=box.SIMPLE_HEAD
    )
    for place, title in enumerate(HEADER):
        table.add_column(title, justify="right" if 0 < place < 5 else "left", no_wrap=place < 5)
    for row in _rows(report):
        bold = "" if row[0].startswith("  ") else "bold"
        table.add_row(*[Text(cell, style=bold if place == 0 else "") for place, cell in enumerate(row)])
    return table


def documents_table(report: dict[str, Any], sources: dict[str, str], count: int = 5) -> Table:
    """Return some documents with the text before and after.

    Args:
        report: From `make_report`.
        sources: Document by id.
        count: How many, evenly spaced, so that nobody picked them.
    """
    table = Table(title="held-out documents", box=box.SIMPLE_HEAD, show_lines=True)
    for title, ratio in (("document", 3), ("before", 4), ("after", 4)):
        table.add_column(title, ratio=ratio, overflow="fold")
    for row in evenly_spaced(report["texts"], count):
        table.add_row(
            Text(printable(cut(sources[row["id"]], 30))),
            Text(printable(f"{row['before']}\n({_score(row['score_before'])})")),
            Text(printable(f"{row['after']}\n({_score(row['score_after'])})")),
        )
    return table


def _score(value: float | None, digits: int = 2) -> str:
    return "none: the feedback abstained" if value is None else f"{value:+.{digits}f}"


def cut(text: str, count: int) -> str:
    """Return the first `count` words of `text`.

    >>> cut("It rained all night.", 2)
    'It rained ...'
    """
    parts = text.split()
    return " ".join(parts[:count]) + (" ..." if len(parts) > count else "")


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# {report['env']}, {report['algo']}, seed {report['seed']}",
        "",
        f"{report['policy']}, {report['updates']} updates in {report['train_seconds'] / 60:.1f} minutes, "
        f"{report['tokens']} tokens learnt from.",
        f"{report['documents']} held-out documents, {report['texts_each']} texts each, sampled as in training.",
        f"Interval: {report['interval']}.",
        *report["notes"],
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|---:|---:|---:|---:|---|",
        *("| " + " | ".join(cell.replace("  ", "&nbsp;&nbsp;") for cell in row) + " |" for row in _rows(report)),
        "",
        "![learning curve](curve.png)",
        "",
        "## What it wrote",
    ]
    for row in report["texts"]:
        lines += ["", f"### {row['id']}", ""]
        for when in ("before", "after"):
            text = " ".join(row[when].split()).replace("<", "&lt;")
            lines += [f"**{when}** ({_score(row[f'score_{when}'], 3)}): {text}", ""]
    return "\n".join(lines).rstrip() + "\n"
