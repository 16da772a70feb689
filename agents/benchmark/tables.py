"""The tables of a benchmark, as rows of cells that a page, a terminal and Markdown show alike."""

from __future__ import annotations

from typing import Any, NamedTuple

from agents.benchmark.matrix import UNTRAINED


class Table(NamedTuple):
    """A title, a header, and rows of as many cells."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, *self.rows)]
        return "\n".join([lines[0], f"|---|{'---:|' * (len(self.header) - 1)}", *lines[1:]])


def overview(summary: dict[str, Any]) -> Table:
    """Return what all environments say of each agent together."""
    aggregates = summary["aggregates"]
    header = ("agent", "training feedback", "second judge", "beats the untrained", "runs")
    rows: list[tuple[str, ...]] = []
    for agent in summary["plan"]["agents"]:
        means = [aggregates[name]["interquartile_mean"].get(agent) for name in ("feedback", "judge")]
        judged = aggregates["judge" if aggregates["judge"]["improvement"] else "feedback"]["improvement"]
        better = judged.get(agent, {}).get(UNTRAINED)
        cells = [c for c in summary["cells"] if c["agent"] == agent]
        done = sum(c["state"] == "done" for c in cells)
        runs = str(done) if done == len(cells) else f"{done} of {len(cells)}"
        rows.append((agent, *(span(mean) for mean in means), span(better), runs))
    title = (
        "Interquartile means of normalised scores over runs and environments (0 untrained, 1 reference), 95 % intervals"
    )
    return Table(title, header, rows)


ENVIRONMENT = ("agent", "training feedback", "second judge", "win rate", "at equal length", "KL of a text",
               "copied share", "distinct-2", "words", "tokens/s")  # fmt: skip


def environment(summary: dict[str, Any], env: str) -> Table:
    """Return what one environment says of each agent: means over seeds."""
    rows: list[tuple[str, ...]] = []
    for agent, row in summary["environments"][env].items():
        kl = number(row["kl"], 1) or (f"≤ {row['kl_at_most']:.1f}" if row["kl_at_most"] is not None else "")
        rates = (span(row["win_rate"]), span(row["win_rate_at_equal_length"]))
        scores = (number(row["feedback"]), number(row["judge"], 3))
        texts = (number(row["copied_share"], 3), number(row["distinct_2"]), number(row["words"], 0))
        rows.append((agent, *scores, *rates, kl, *texts, number(row["tokens_per_second"], 0)))
    return Table(env.rpartition(":")[2], ENVIRONMENT, rows)


def cells(summary: dict[str, Any]) -> Table:
    """Return every cell's raw scores."""
    header = ("environment", "agent", "seed", "feedback", "normalised", "second judge", "normalised", "KL", "updates",
              "tokens", "seconds", "state")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for cell in summary["cells"]:
        found, training = cell["measures"] or {}, cell["training"] or {}
        scores = [(found.get(n), cell["normalised"][n]) for n in ("feedback", "judge")]
        values = [number(value, 3) for pair in scores for value in pair]
        learned = (number(training.get("updates"), 0), number(training.get("tokens"), 0))
        name = cell["env"].rpartition(":")[2]
        row = (name, cell["agent"], str(cell["seed"]), *values, number(cell["kl"]), *learned)
        rows.append((*row, number(cell["seconds"], 0), cell["state"]))
    return Table("Every cell", header, rows)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or nothing for one that was not measured.

    >>> number(0.25), number(None), number(1234.5, 0)
    ('0.25', '', '1,234')
    """
    return "" if value is None else f"{value:,.{digits}f}"


def span(estimate: dict[str, float | None] | None, digits: int = 2) -> str:
    """Return an estimate with its interval.

    >>> span({"value": 0.5, "low": 0.25, "high": 0.75}), span({"value": 1.0, "low": None, "high": None}), span(None)
    ('0.50 [0.25, 0.75]', '1.00', '')
    """
    if estimate is None or estimate["value"] is None:
        return ""
    value = f"{estimate['value']:.{digits}f}"
    return (
        value if estimate["low"] is None else f"{value} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    )
