"""What a training run shows while it runs: a panel on a terminal, a line an update elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # updates that a sparkline shows


class Progress:
    """Shows stages and updates on standard error.

    Args:
        console: Where to; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._rows: list[dict[str, Any]] = []
        self._left: tuple[float | None, float] = (None, 0.0)

    def say(self, text: str) -> None:
        """Tell a stage of the run."""
        self.console.print(Text(text))

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Tell a stage that takes a while, with a spinner and its seconds on a terminal."""
        self.say(text)
        if not self.console.is_terminal:
            yield
            return
        with Bar(SpinnerColumn(), TimeElapsedColumn(), console=self.console, transient=True) as bar:
            bar.add_task("")
            yield

    def begin(self) -> None:
        """Open the panel."""
        self._rows = []
        self._left = (None, time.monotonic())
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=2)
            self._live.start()

    def update(self, row: dict[str, Any], goal: str, seconds_left: float | None) -> None:
        """Show a finished update.

        Args:
            row: Its row of the metrics.
            goal: What the run stops at, such as `40 updates`.
            seconds_left: Expected, None if unknown.
        """
        self._rows.append(row)
        self._goal, self._left = goal, (seconds_left, time.monotonic())
        if self._live is None:
            self.console.print(Text(line(row, goal, seconds_left)))

    def end(self) -> None:
        """Close the panel, leaving its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _panel(self) -> Panel:
        if not self._rows:
            return Panel(Text("writing the first batch of texts ..."), title="training", title_align="left")
        row, (left, since) = self._rows[-1], self._left
        remaining = "-" if left is None else clock(max(0.0, left - (time.monotonic() - since)))
        head = f"update {row['update']} · {clock(row['elapsed'])} so far · {remaining} left of {self._goal}"
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("", "first", "now"):
            table.add_column(title, justify="right" if title else "left")
        table.add_column(f"last {min(WIDTH, len(self._rows))} updates")
        for name in measures(row):
            series = [measures(r).get(name) for r in self._rows]
            table.add_row(name, number(series[0]), number(series[-1]), sparkline(series[-WIDTH:]))
        return Panel(Group(Text(head), Text(), table), title="training", title_align="left")


def measures(row: dict[str, Any]) -> dict[str, float | None]:
    """Return what is shown of a row of the metrics, by the name it is shown under."""
    parts = {f"  {name.replace('_', ' ')}": value for name, value in row["parts"].items()}
    # What learns from texts of others writes none that could be rewarded.
    aim = {"reward": row["reward"]} if row["reward"] is not None else {"loss": row["train"].get("loss")}
    return {
        **aim,
        **parts,
        "KL to the start": row["kl"],
        "words": row["words"],
        "tokens": row["tokens"],
        "copied share": row["copied_share"],
        "tokens/s": row["tokens_per_second"],
    }


def line(row: dict[str, Any], goal: str, seconds_left: float | None) -> str:
    """Return an update as one line of text."""
    shown = " · ".join(f"{name.strip()} {number(value)}" for name, value in measures(row).items())
    left = "-" if seconds_left is None else clock(seconds_left)
    return f"update {row['update']} · {shown} · {left} left of {goal}"


def number(value: float | None) -> str:
    """Return a number in few characters; a dash for one that was not measured.

    >>> number(0.12345), number(0.00030449), number(117.2), number(None)
    ('0.123', '0.0003', '117', '-')
    """
    if value is None:
        return "-"
    if 0 < abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Return minutes and seconds.

    >>> clock(75.2)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def sparkline(values: list[float | None]) -> str:
    """Return a small picture of a series.

    >>> sparkline([0.0, 0.5, 1.0, None])
    '▁▄█ '
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    scale = (len(BARS) - 1) / span if span > 0 else 0.0
    return "".join(" " if value is None else BARS[int((value - low) * scale)] for value in values)
