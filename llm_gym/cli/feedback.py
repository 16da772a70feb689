"""`llm-gym feedback ...`: is the feedback to be trusted?"""

from __future__ import annotations

import argparse
from typing import Any

from llm_gym.cli.printing import print_json, print_table

MEASURES = {
    "spearman": "Spearman within documents",
    "pearson": "Pearson over all",
    "accuracy": "accuracy of comparisons",
    "accuracy_shorter": "  the shorter is better",
    "accuracy_longer": "  the longer is better",
    "accuracy_balanced": "  mean of the two",
    "calibration": "calibration error",
}
LIFTED = {**MEASURES, "accuracy_balanced": "accuracy, shorter and longer alike"}


def validate_command(arguments: argparse.Namespace) -> None:
    """Measure a scorer's agreement with people."""
    from llm_gym.feedback import build
    from llm_gym.feedback.human import read_judgements
    from llm_gym.feedback.validation import validate

    feedback = build(arguments.scorer)
    data = read_judgements(arguments.data, dict(arguments.columns), arguments.n)
    facts = {"scorer": feedback.spec, "data": arguments.data}
    report = {**facts, **validate(feedback, data)}
    if arguments.json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    dimensions = report["dimensions"]
    shown = list(dimensions) if len(dimensions) > 2 else list(dimensions)[:1]
    ties = f", {report['ties']} ties left out" if report["ties"] else ""
    silent = f", {report['abstained']} abstained from and left out" if report["abstained"] else ""
    size = f"{report['documents']} documents, {report['texts']} texts{ties}{silent}"
    _print_cells(
        f"agreement with people, 95 % intervals: {size}",
        shown,
        [[title, *(cell(dimensions[name].get(key)) for name in shown)] for key, title in MEASURES.items()],
    )
    _print_cells(
        "mean above a baseline's, paired",
        list(report["lift"]),
        [
            [title.strip(), *(cell(row.get(key), "+") for row in report["lift"].values())]
            for key, title in LIFTED.items()
        ],
    )
    _print_cells(
        "rank correlations within documents, or over all where each has one text",
        ["score", "people"],
        [[key, cell(report[key], "+"), cell(report[f"people_{key}"], "+")] for key in ("length", "copying")],
    )
    if report["swap_consistency"]:
        print(f"swap consistency: {cell(report['swap_consistency'])}")


def _print_cells(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table without the rows that have no figure."""
    print_table(title, ["", *header], [row for row in rows if any(row[1:])])


def cell(estimate: dict[str, float | None] | None, sign: str = "") -> str:
    """Return a figure with its interval; nothing where it is undefined.

    >>> cell({"value": 0.25, "low": 0.1, "high": 0.4}, "+"), cell(None)
    ('+0.250 [+0.100, +0.400]', '')
    """
    if estimate is None or estimate["value"] is None:
        return ""
    value = f"{estimate['value']:{sign}.3f}"
    if estimate["low"] is None:
        return value
    return f"{value} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
