"""What commands print: JSON for machines, tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def console() -> Any:
    """Return standard output as rich's console."""
    from rich.console import Console

    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=140)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = {True: "yes", False: "no"}
        table.add_row(*[Text(cells[cell] if isinstance(cell, bool) else str(cell)) for cell in row])
    console().print(table)
