"""Scoring: one source read for all its candidates, and scores that are remembered."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.feedback import build
from llm_gym.feedback.likelihood import language_model
from llm_gym.registration import find_task
from speed_rows.common import MODEL, against, seconds


def candidates(repeat: int) -> dict[str, Any]:
    """16 candidates of one source under the default's likelihood and grounding: one call against 16 calls."""
    task = find_task("TextSummary-v0")
    rows = load_examples(None, "train", task)[:16]
    texts = [str(task.reference(row)) for row in rows]  # of about the length that a policy writes
    episodes = [Episode(rows[0], source=task.source(rows[0]), text=text) for text in texts]
    spec = {name: task.feedback[name] for name in ("likelihood", "grounding")}

    def forgotten() -> Any:
        language_model(MODEL)._known.clear()
        return build(spec)

    def together() -> None:
        forgotten()(episodes)

    def apart() -> None:
        for episode in episodes:
            forgotten()([episode])

    feedback = build(spec)
    feedback(episodes)
    again = seconds(lambda: feedback(episodes), repeat)
    return against(
        "likelihood and grounding of 16 texts about one source: seconds in one call against 16 calls",
        seconds(together, repeat),
        seconds(apart, repeat),
        **{"milliseconds when remembered": round(1e3 * float(np.median(again)), 2)},
    )
