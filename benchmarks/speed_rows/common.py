"""What the rows share: the model, documents as long as needed, and a clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "smollm2-135m"
WORDS = "river council paper winter market harbour letter garden engine window teacher station bridge story".split()


def write_documents(folder: Path, count: int) -> str:
    """Write documents of 400 words, which fill any prompt, and return the file."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(random.choice(WORDS, 400)) + "." for _ in range(count)]
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "document": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def seconds(run: Callable[[], Any], repeat: int) -> list[float]:
    """Return the time of each of `repeat` calls, after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times
