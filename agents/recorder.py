"""Watching a training run: a callback that keeps its metrics and ends it at its limit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agents.evaluate import held_out
from agents.progress import Progress
from agents.rollout import play
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.rules import copied_share, words

MINUTES = 10.0
"""How long a run trains if nobody says otherwise."""

SAMPLES, SAMPLE_EVERY = 3, 10
"""Texts that are written again and again to watch the run, and after how many updates."""


class LimitReached(Exception):  # noqa: N818
    """Raised between two updates; unlike a callback's False, no token of a next batch has been written by then."""


class Limit:
    """When to stop: after a number of updates, or before the one that would overrun a number of minutes."""

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        self.steps = steps
        self.seconds = None if steps is not None else 60 * (MINUTES if minutes is None else minutes)
        self.goal = f"{steps} updates" if steps is not None else f"{self.seconds / 60:g} minutes"  # type: ignore[operator]

    def reached(self, updates: int, elapsed: float) -> bool:
        """Return whether to stop after `updates` in `elapsed` seconds; the first update is always made."""
        if self.steps is not None:
            return updates >= self.steps
        assert self.seconds is not None
        return updates > 0 and elapsed + elapsed / updates > self.seconds

    def left(self, updates: int, elapsed: float) -> float:
        """Return the seconds that are probably left."""
        if self.steps is not None:
            return elapsed / updates * (self.steps - updates)
        assert self.seconds is not None
        return max(0.0, self.seconds - elapsed)


class Latest(KVWriter):
    """The values that SB3's logger wrote last."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep them."""
        self.values = dict(key_values)

    def close(self) -> None:
        """Nothing to close."""


class Recorder(BaseCallback):
    """Writes metrics and sample texts, shows progress, and ends the run at its limit.

    Works for `GRPO` and for SB3's on-policy algorithms. An update is everything from one rollout's start to the next's.

    Args:
        folder: The run folder.
        limit: When to stop.
        progress: Where to show it.
        samples: Environment of the texts that are watched.
    """

    def __init__(self, folder: Path, limit: Limit, progress: Progress, samples: Any) -> None:
        super().__init__()
        self.folder, self.limit, self.progress, self.samples = folder, limit, progress, samples
        self.watched = held_out(samples.example_ids, SAMPLES)
        self.latest = Latest()
        self.rows: list[dict[str, Any]] = []
        self._episodes: list[Episode] = []
        self._row: dict[str, Any] = {}

    def _on_training_start(self) -> None:
        self._write_samples()
        self._started = self._update_started = time.monotonic()
        self._tokens = 0

    def _on_rollout_start(self) -> None:
        if self._row:
            self._finish_update()
        elapsed = time.monotonic() - self._started
        if self.limit.reached(len(self.rows), elapsed):
            if len(self.rows) % SAMPLE_EVERY:
                self._write_samples()
            raise LimitReached
        self._update_started = time.monotonic()

    def _on_step(self) -> bool:
        dones = self.locals.get("dones")  # GRPO has none: it hands over its episodes at the end
        if dones is not None:
            adapter: Any = self.training_env.unwrapped
            episodes = adapter.envs.unwrapped.episodes
            self._episodes += [episodes[row] for row in np.flatnonzero(dones)]
        return True

    def _on_rollout_end(self) -> None:
        episodes = getattr(self.model, "episodes", self._episodes)
        self._row, self._episodes = _summary(episodes), []
        for name in ("words", "copied_share", "finished"):
            if self._row[name] is not None:
                self.logger.record(f"rollout/{name}", self._row[name])
        for name, value in self._row["parts"].items():
            self.logger.record(f"parts/{name}", value)

    def _finish_update(self) -> None:
        """Write the row of the update that has just ended."""
        now = time.monotonic()
        seconds, elapsed = now - self._update_started, now - self._started
        # SB3 writes its log before it trains, so the newest training values may still be waiting to be written.
        trained = _training_values({**self.latest.values, **self.logger.name_to_value})
        tokens, self._tokens = self.num_timesteps - self._tokens, self.num_timesteps
        row = {
            "update": len(self.rows) + 1,
            **self._row,
            "kl": trained.get("kl"),
            "tokens_total": self.num_timesteps,
            "train": trained,
            "tokens_per_second": round(tokens / seconds, 2),
            "seconds": round(seconds, 3),
            "elapsed": round(elapsed, 3),
        }
        self._row = {}
        self.rows.append(row)
        append_line(self.folder / "metrics.jsonl", row)
        self.progress.update(row, self.limit.goal, self.limit.left(len(self.rows), elapsed))
        if len(self.rows) % SAMPLE_EVERY == 0:
            self._write_samples()

    def _write_samples(self) -> None:
        policy: Any = self.model.policy
        for episode in play(policy, self.samples, self.watched, deterministic=True) or []:
            row = {"update": len(self.rows), "id": episode.example["id"], "text": episode.text}
            append_line(self.folder / "samples.jsonl", {**row, "score": episode.reward, "parts": episode.parts})


def _summary(episodes: list[Episode]) -> dict[str, Any]:
    """Return the means over the episodes of an update, None where none ended."""

    def mean(values: Iterator[float]) -> float | None:
        found = list(values)
        return round(float(np.mean(found)), 6) if found else None

    parts = episodes[0].parts if episodes else {}
    return {
        "episodes": len(episodes),
        "reward": mean(e.reward or 0.0 for e in episodes),
        "parts": {name: mean(e.parts[name] for e in episodes) for name in parts},
        "words": mean(len(words(e.text)) for e in episodes),
        "tokens": mean(int(e.agent_mask.sum()) for e in episodes),
        "copied_share": mean(copied_share(e.text, e.source) for e in episodes),
        "finished": mean(e.finish_reason == "stop" for e in episodes),
    }


def _training_values(logged: dict[str, Any]) -> dict[str, float | None]:
    """Return what training logged, None for what is undefined (such as the explained share of no variance).

    Raises:
        LLMGymError: A loss is not finite, so the weights are lost.
    """
    values: dict[str, float | None] = {}
    for name, value in logged.items():
        group, _, name = name.partition("/")
        if group != "train":
            continue
        values[name] = float(value) if np.isfinite(value) else None
        if values[name] is None and name.endswith("loss"):
            raise LLMGymError(f"training diverged, {name} is {float(value)}: use another seed, or tamer feedback")
    return values


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSONL file, where others may be reading along."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
