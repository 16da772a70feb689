"""What remote judges have said, kept on disk across processes and runs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from llm_gym.errors import LLMGymError

BUSY_S = 30.0  # how long a process waits for another one's write
BATCH = 500  # keys in one query


class Store:
    """A SQLite file of answers by key; a killed process loses at most the answer that it was writing.

    Keys are digests and values are probabilities, so the file holds no text. A connection lives for one call, so that
    threads, forks and further processes can share the store. Like any SQLite file it belongs on a local disk.

    Args:
        path: The file; it is made by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, keys: Iterable[str]) -> dict[str, tuple[float, ...]]:
        """Return what is known of the keys."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, tuple[float, ...]] = {}
        if not self.path.exists():
            return found
        with self._errors(), contextlib.closing(self._connect()) as db:
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                marks = ",".join("?" * len(batch))
                rows = db.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", batch)
                found |= {key: tuple(json.loads(answer)) for key, answer in rows}
        return found

    def put(self, key: str, answer: tuple[float, ...]) -> tuple[float, ...]:
        """Keep an answer, unless another process was first; return the one that is kept."""
        with self._errors(), contextlib.closing(self._connect()) as db:
            db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
            (kept,) = db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return tuple(json.loads(kept))

    def held(self) -> contextlib.closing[sqlite3.Connection]:
        """Keep the file open within a `with`: the last connection to close empties the log, which takes its time."""
        with self._errors():
            db = self._connect()
            db.execute("SELECT key FROM answers LIMIT 1").fetchall()
        return contextlib.closing(db)

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            self._create()
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        db.execute("PRAGMA synchronous=NORMAL")  # safe from a kill; a power cut may cost the last answers
        return db

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LLMGymError(
                f"the judge's cache {str(self.path)!r} cannot be used ({error}); delete it, or set LLM_GYM_CACHE to a "
                "folder on a local disk"
            ) from error

    def _create(self) -> None:
        """Make the file whole or not at all: the switch to write-ahead logging must not meet another process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            if self.path.exists():
                return
            aside = self.path.with_suffix(".new")
            aside.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(aside, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")
            aside.rename(self.path)
