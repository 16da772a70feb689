"""What a benchmark shows while it runs: the matrix on a terminal, a line a cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agents.benchmark.matrix import Cell, Plan
from agents.progress import clock, number, sparkline

MARKS = {"done": ("●", "green"), "failed": ("✗", "bold red"), "running": ("◐", "cyan"), "open": ("·", "dim")}


class Board:
    """Shows the matrix of a benchmark on standard error.

    Args:
        console: Where to; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._states: dict[Cell, str] = {}
        self._live: Live | None = None
        self._cell: Cell | None = None

    @contextmanager
    def showing(self, plan: Plan, states: dict[Cell, str]) -> Iterator[None]:
        """Show the cells inside the block.

        Args:
            plan: What is run.
            states: Of each cell: `done`, `failed` or `open`.
        """
        self.plan, self._states = plan, dict(states)
        self._begun = self._cell_begun = time.monotonic()
        left = sum(state != "done" for state in states.values())
        self.console.print(Text(f"{len(states)} cells, {len(states) - left} done, {left} to run"))
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=2)
            self._live.start()
        try:
            yield
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def start(self, cell: Cell) -> None:
        """Show that a cell is being run."""
        self._cell, self._states[cell] = cell, "running"
        self._cell_begun, self._stage = time.monotonic(), "starting"
        self._rewards: list[float | None] = []
        self._left: float | None = None

    def tell(
        self, stage: str, row: dict[str, Any] | None = None, goal: str = "", seconds_left: float | None = None
    ) -> None:
        """Show what the cell is at.

        Args:
            stage: In words.
            row: Of the metrics, after an update.
            goal: What training stops at.
            seconds_left: Of training, if known.
        """
        self._stage, self._goal, self._left = stage, goal, seconds_left
        if row is not None:
            self._rewards.append(row["reward"])

    def finish(self, cell: Cell, state: str, error: str | None = None) -> None:
        """Show how a cell ended, and why if it failed."""
        self._states[cell], self._cell = state, None
        seconds = time.monotonic() - self._cell_begun
        if self._live is None or error:
            over = sum(s in ("done", "failed") for s in self._states.values())
            why = f": {error}" if error else ""
            self.console.print(Text(f"[{over}/{len(self._states)}] {cell.title}: {state} in {clock(seconds)}{why}"))

    def _panel(self) -> Panel:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
        table.add_column("agent")
        for env in self.plan.envs:
            table.add_column(env.rpartition(":")[2])
        for agent in self.plan.agents:
            cells = [[c for c in self._states if (c.env, c.agent) == (env, agent)] for env in self.plan.envs]
            table.add_row(agent, *(Text(" ").join(Text(*MARKS[self._states[c]]) for c in row) for row in cells))
        over = sum(state in ("done", "failed") for state in self._states.values())
        head = f"{over} of {len(self._states)} cells · {clock(time.monotonic() - self._begun)} so far"
        return Panel(Group(Text(head), table, Text(self._now())), title="benchmark", title_align="left")

    def _now(self) -> str:
        if self._cell is None:
            return ""
        parts = [self._cell.title, clock(time.monotonic() - self._cell_begun), self._stage]
        if self._rewards:
            parts.append(f"reward {number(self._rewards[-1])} {sparkline(self._rewards[-32:])}")
        if self._left is not None:
            parts.append(f"{clock(self._left)} left of {self._goal}")
        return " · ".join(parts)
