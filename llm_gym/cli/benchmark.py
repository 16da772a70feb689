"""`llm-gym benchmark [compare | report]`: which agent is better?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm_gym.cli.printing import console, print_json, print_table
from llm_gym.errors import LLMGymError

SETTINGS = ("agents", "envs", "seeds", "policy", "minutes", "tokens")


def benchmark_command(arguments: argparse.Namespace) -> int:
    """Run what is missing of a benchmark and report on all of it; 1 if a cell failed."""
    if arguments.out is None:
        raise LLMGymError("where to? Pass --out DIR, a new folder or that of a benchmark to go on with")
    out = Path(arguments.out)
    settings = _settings(arguments, out)
    from agents.benchmark.matrix import make_plan
    from agents.benchmark.report import write_report
    from agents.benchmark.runner import run_benchmark

    failed = run_benchmark(make_plan(**settings), out)
    _show(write_report(out), out, arguments.json)
    return 1 if failed else 0


def report_command(arguments: argparse.Namespace) -> None:
    """Write a benchmark's report anew, and print its tables; of a `results.json` that was kept, only print them."""
    from agents.benchmark.report import markdown, read_summary, write_report

    _leave_out(arguments, "report")
    if arguments.markdown and arguments.json:
        raise LLMGymError("--markdown and --json are two ways to print the same; leave out one")
    place = Path(arguments.folder)
    summary = read_summary(place) if place.suffix == ".json" else write_report(place)
    if arguments.markdown:
        print(markdown(summary), end="")
    else:
        _show(summary, place, arguments.json)


def compare_command(arguments: argparse.Namespace) -> None:
    """Print what changed between two benchmarks."""
    from agents.benchmark.compare import compare, table

    _leave_out(arguments, "compare")
    report = compare(Path(arguments.first), Path(arguments.second))
    if arguments.json:
        print_json(report)
        return
    shown = table(report)
    print_table(shown.title, shown.header, shown.rows)
    for line in report["settings"]:
        print(line)
    for name, where in (("only_first", "A"), ("only_second", "B")):
        if report[name]:
            print(f"only in {where}: {', '.join(report[name])}")
    print("Intervals: bootstrap over documents, paired, and over seeds, apart; with one seed, over documents alone.")


def _leave_out(arguments: argparse.Namespace, command: str) -> None:
    """Make sure that nothing was passed of what runs a benchmark."""
    for name in (*SETTINGS, "preset", "out"):
        if getattr(arguments, name) is not None:
            raise LLMGymError(f"--{name} is for running a benchmark; leave it out with {command}")


def _settings(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return what was asked for, on top of the preset or of the benchmark that there is already.

    Raises:
        LLMGymError: Nothing says which agents, or in which environments.
    """
    from agents.benchmark.matrix import PLAN, read_plan
    from agents.benchmark.presets import PRESETS

    if arguments.preset is not None and arguments.preset not in PRESETS:
        raise LLMGymError(f"preset {arguments.preset!r} is unknown; expected one of {', '.join(PRESETS)}")
    settings: dict[str, Any] = {}
    if (out / PLAN).exists():
        settings = {name: getattr(read_plan(out), name) for name in SETTINGS}
    settings |= PRESETS[arguments.preset] if arguments.preset else {}
    asked = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    if {"minutes", "tokens"} & set(asked):
        settings |= {"minutes": None, "tokens": None}
    settings |= asked
    for name in ("agents", "envs"):
        if name not in settings:
            raise LLMGymError(f"which {name}? Pass --{name} A B ..., or --preset {' | '.join(PRESETS)}")
    return settings


def _show(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    from agents.benchmark import report, tables

    if as_json:
        print_json({**summary, "report": str(out / report.PAGE) if out.is_dir() else None})
        return
    for table in (tables.overview(summary), *(tables.environment(summary, e) for e in summary["plan"]["envs"])):
        print_table(table.title, table.header, table.rows)
    places = (f"report  {out / report.PAGE}", f"scores  {out / report.SCORES}") if out.is_dir() else ()
    for line in (*summary["notes"], *places):
        console().print(line, markup=False, soft_wrap=True)
