"""Running a benchmark: cell by cell, each in a process of its own, so that none can harm another."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from agents.benchmark.board import Board
from agents.benchmark.cells import read_error, run_cell, state, write_error
from agents.benchmark.matrix import PLAN, Cell, Plan, joined, read_plan, write_plan
from agents.progress import Progress
from llm_gym.errors import LLMGymError

LOCK = ".lock"


def run_benchmark(plan: Plan, out: Path, board: Board | None = None) -> list[Cell]:
    """Run what is missing or has failed, one cell after another.

    A benchmark in `out` that was begun before is gone on with, and may grow by agents, environments and seeds. Killed
    at any moment, it leaves whole files; a cell that was being trained goes on from its last checkpoint.

    Args:
        plan: From `make_plan`; `read_plan(out)` to go on as it was asked for.
        out: Folder of the benchmark.
        board: Where to show it.

    Returns:
        The cells that failed; each folder says why.

    Raises:
        LLMGymError: The folder holds something else, or is being run already.
    """
    board = board or Board()
    if out.exists() and not (out / PLAN).exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {LOCK}):
        raise LLMGymError(f"{out} exists and is no benchmark; pass another --out")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(out / LOCK, timeout=0))
        except Timeout as error:
            raise LLMGymError(f"the benchmark in {out} is being run by another process; wait for it") from error
        plan = joined(read_plan(out), plan) if (out / PLAN).exists() else plan
        write_plan(out, plan)
        cells = list(plan.cells(out))
        stack.enter_context(board.showing(plan, {cell: state(cell) for cell in cells}))
        for cell in cells:
            if state(cell) != "done":
                board.start(cell)
                _run_apart(cell, plan, board)
                board.finish(cell, state(cell), read_error(cell))
    return [cell for cell in cells if state(cell) != "done"]


def _run_apart(cell: Cell, plan: Plan, board: Board) -> None:
    """Run a cell in another process, show what it tells, and keep why it ended if it did not end well."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, plan, sender, dict(os.environ)), name=cell.title)
    process.start()
    sender.close()
    try:
        while receiver in wait([receiver, process.sentinel]):
            try:
                board.tell(*receiver.recv())
            except EOFError:
                break
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if (log := _log(cell)).exists() and not log.stat().st_size:
        log.unlink()
    if process.exitcode and state(cell) == "open":
        end = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        memory = "; was there too little memory?" if process.exitcode == -9 else ""
        write_error(cell.folder, f"the process of the cell ended with {end}{memory}")


def _log(cell: Cell) -> Path:
    return cell.folder.with_name(f"{cell.folder.name}.log")


def _context() -> Any:
    """Return how processes are begun: from one that has imported what a cell needs, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents.benchmark.cells"])
    return context


# -------------------------------------------------------------------- in the cell's process


def _work(cell: Cell, plan: Plan, sender: Connection, environment: dict[str, str]) -> None:
    _end_with_parent()
    os.environ.clear()  # what it was when the first cell was run may have changed, such as a key
    os.environ.update(environment)
    _keep_output(cell)
    try:
        run_cell(cell, plan, Telling(lambda *message: sender.send(message)))
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        what = str(error) if isinstance(error, LLMGymError) else f"{type(error).__name__}: {error}"
        write_error(cell.folder, " ".join(what.split()), traceback.format_exc())
        sys.exit(1)


def _end_with_parent() -> None:
    """End at once when the benchmark is killed: nobody else may find this cell half done and still at work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _keep_output(cell: Cell) -> None:
    """Let what libraries print go into a file beside the cell's folder, not over the display."""
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(_log(cell), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(log, number)


class Telling(Progress):
    """A run's progress, told to the process that shows it.

    Args:
        tell: Called with what `Board.tell` takes.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(Console(file=open(os.devnull, "w")))  # noqa: SIM115  as long as the process
        self.tell = tell

    def say(self, text: str) -> None:
        """Tell a stage."""
        self.tell(text)

    def begin(self) -> None:
        """Nothing to open."""

    def update(self, row: dict[str, Any], goal: str, seconds_left: float | None) -> None:
        """Tell a finished update."""
        self.tell(f"update {row['update']}", row, goal, seconds_left)
