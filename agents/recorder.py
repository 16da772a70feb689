"""Watching a training run: a callback that keeps its metrics and ends it at its limit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agents.base import TextAlgorithm
from agents.checkpoint import save_checkpoint
from agents.evaluate import held_out, judged_by
from agents.progress import Progress
from agents.rollout import play
from llm_gym.data.files import append_line, write_aside
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Composite
from llm_gym.feedback.rules import copied_share, words
from llm_gym.statistics import trend

MINUTES = 10.0
"""How long a run trains if nobody says otherwise."""

SAMPLES, SAMPLE_EVERY = 3, 10
"""Texts that are written again and again to watch the run, and after how many updates."""

REMEDY = "use another seed, a lower learning rate, or tamer feedback"
"""Against training that diverges."""


class LimitReached(Exception):  # noqa: N818
    """Raised between two updates; unlike a callback's False, no token of a next batch has been written by then."""


class Limit:
    """When to stop: after a number of updates, or before the one that would overrun a number of minutes or tokens."""

    def __init__(self, steps: int | None, minutes: float | None, tokens: int | None = None) -> None:
        if steps is not None:
            self.most, self.goal = float(steps), f"{steps} updates"
        elif tokens is not None:
            self.most, self.goal = float(tokens), f"{tokens:,} tokens"
        else:
            self.most = 60 * (MINUTES if minutes is None else minutes)
            self.goal = f"{self.most / 60:g} minutes"
        self.steps, self.tokens = steps, None if steps is not None else tokens

    def spent(self, updates: int, elapsed: float, tokens: int) -> float:
        """Return how much of the limit has been spent, in its unit."""
        return elapsed if self.steps is None and self.tokens is None else updates if self.tokens is None else tokens

    def reached(self, updates: int, elapsed: float, tokens: int) -> bool:
        """Return whether to stop after `updates` in `elapsed` seconds; the first update is always made."""
        spent = self.spent(updates, elapsed, tokens)
        return updates > 0 and spent + spent / updates > self.most

    def left(self, updates: int, elapsed: float, tokens: int) -> float:
        """Return the seconds that are probably left."""
        spent = self.spent(updates, elapsed, tokens)
        return max(0.0, elapsed / spent * (self.most - spent))

    def remaining(self, updates: int, elapsed: float, tokens: int) -> float:
        """Return the share of training that is left, 1 at the start: what schedules fall with."""
        return max(0.0, 1 - self.spent(updates, elapsed, tokens) / self.most)


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

    Works for our algorithms and for SB3's on-policy ones. An update is everything from one rollout's start to the
    next's. After each, an algorithm of ours leaves a checkpoint.

    Args:
        folder: The run folder.
        limit: When to stop.
        progress: Where to show it.
        samples: Environment of the texts that are watched.
        judge: The second judge, which reads what was written for training too; training never sees what it says.
        early_stop: Whether to stop once training feedback rises while the second judge falls.

    Attributes:
        rows: What `metrics.jsonl` holds.
        diverged: The update after which training feedback was first seen to rise while the second judge fell.
    """

    def __init__(
        self,
        folder: Path,
        limit: Limit,
        progress: Progress,
        samples: Any,
        judge: Composite | None = None,
        early_stop: bool = False,
    ) -> None:
        super().__init__()
        self.folder, self.limit, self.progress, self.samples = folder, limit, progress, samples
        self.judge, self.early_stop = judge, early_stop
        self.watched = held_out(samples.example_ids, SAMPLES)
        self.latest = Latest()
        self.rows: list[dict[str, Any]] = []
        self.diverged: int | None = None
        self._before = 0.0  # seconds that were trained before the run was gone on with
        self._episodes: list[Episode] = []
        self._row: dict[str, Any] = {}

    def go_on(self, updates: int, elapsed: float) -> None:
        """Cut the files back to what had been written after `updates`, and count on from there."""
        self.rows = cut_back(self.folder / "metrics.jsonl", updates)
        # The last texts of a run that ends between two regular ones are written again when it ends again.
        cut_back(self.folder / "samples.jsonl", updates - bool(updates % SAMPLE_EVERY))
        self.diverged = next((row["update"] for row in self.rows if row["diverged"]), None)
        self._before = elapsed

    def remaining(self) -> float:
        """Return the share of training that is left."""
        return self.limit.remaining(len(self.rows), self._elapsed(), self._written())

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._started

    def _written(self) -> int:
        return self.rows[-1]["tokens_total"] if self.rows else 0

    def _on_training_start(self) -> None:
        if not self.rows:
            self._write_samples()
        self._started = self._update_started = time.monotonic()
        self._tokens = self.num_timesteps = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self._row:
            self._finish_update()
        spent = self.limit.reached(len(self.rows), self._elapsed(), self._written())
        if spent or (self.early_stop and self.diverged is not None):
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
        self._row, self._episodes = _summary(episodes, self.judge), []
        for name in ("judge", "words", "copied_share", "finished"):
            if self._row[name] is not None:
                self.logger.record(f"rollout/{name}", self._row[name])
        for name, value in self._row["parts"].items():
            self.logger.record(f"parts/{name}", value)

    def _finish_update(self) -> None:
        """Write the row of the update that has just ended."""
        seconds, elapsed = time.monotonic() - self._update_started, self._elapsed()
        # SB3 writes its log before it trains, so the newest training values may still be waiting to be written.
        logged = {**self.latest.values, **self.logger.name_to_value}
        trained = _training_values(logged)
        tokens, self._tokens = self.num_timesteps - self._tokens, self.num_timesteps
        row = {
            "update": len(self.rows) + 1,
            **self._row,
            "kl": trained.get("kl"),
            "tokens_total": self.num_timesteps,
            "train": trained,
            "phases": {
                name: round(logged[f"time/{name}_seconds"], 3)
                for name in ("collect", "train")
                if f"time/{name}_seconds" in logged
            },
            "tokens_per_second": round(tokens / seconds, 2),
            "seconds": round(seconds, 3),
            "elapsed": round(elapsed, 3),
        }
        self._row = {}
        self.rows.append(row)
        row["diverged"] = diverging([r["reward"] for r in self.rows], [r["judge"] for r in self.rows])
        if row["diverged"] and self.diverged is None:
            self.diverged = row["update"]
            self.progress.say(f"update {self.diverged}: training feedback rises while the second judge falls")
        append_line(self.folder / "metrics.jsonl", row)
        if not finite(self.model.policy):
            raise LLMGymError(f"training diverged, weights are not finite after update {row['update']}: {REMEDY}")
        self.progress.update(row, self.limit.goal, self.limit.left(len(self.rows), elapsed, self._written()))
        if len(self.rows) % SAMPLE_EVERY == 0:
            self._write_samples()
        if isinstance(self.model, TextAlgorithm):
            save_checkpoint(self.folder, self.model, len(self.rows), elapsed)

    def _write_samples(self) -> None:
        policy: Any = self.model.policy
        for episode in play(policy, self.samples, self.watched, deterministic=True, abstaining=True) or []:
            row = {"update": len(self.rows), "id": episode.example["id"], "text": episode.text}
            append_line(self.folder / "samples.jsonl", {**row, "score": episode.reward, "parts": episode.parts})
        policy.forget()  # a run that is gone on with from here has read none of it


def _summary(episodes: list[Episode], judge: Composite | None) -> dict[str, Any]:
    """Return the means over the episodes of an update, None where none ended."""
    judged = [score.value for score in judged_by(judge, episodes) if score is not None]

    def mean(values: Iterator[float]) -> float | None:
        found = list(values)
        return round(float(np.mean(found)), 6) if found else None

    parts = episodes[0].parts if episodes else {}
    return {
        "episodes": len(episodes),
        "reward": mean(e.reward or 0.0 for e in episodes),
        "parts": {name: mean(e.parts[name] for e in episodes) for name in parts},
        "judge": mean(iter(judged)),
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
            raise LLMGymError(f"training diverged, {name} is {float(value)}: {REMEDY}")
    return values


def finite(policy: Any) -> bool:
    """Whether no weight that is trained is NaN or infinite."""
    return all(bool(p.isfinite().all()) for p in policy.parameters() if p.requires_grad)


def cut_back(path: Path, updates: int) -> list[dict[str, Any]]:
    """Keep the rows of a JSONL file up to an update, and return them; a last line cut off by a kill goes too."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    rows = [row for row in rows if row["update"] <= updates]
    write_aside(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows


WATCHED = 20  # updates over which a trend is looked for
LEAST = 8  # with fewer, no trend is told from chance
# t of a slope. Where the feedback rises and the judge is nothing but noise, 6 % of runs of fifty updates are flagged.
SIGNIFICANT = 3.2


def diverging(rewards: Sequence[float | None], judged: Sequence[float | None]) -> bool:
    """Return whether over the last updates training feedback rose while the second judge fell, both beyond chance.

    It is the mark of a feedback that is being hacked (Gao et al. 2023, "Scaling laws for reward model
    overoptimization").
    """
    pairs = [(r, j) for r, j in zip(rewards, judged, strict=True) if r is not None and j is not None][-WATCHED:]
    if len(pairs) < LEAST:
        return False
    up, down = (trend(np.array(series)) for series in zip(*pairs, strict=True))
    return up > SIGNIFICANT and down < -SIGNIFICANT
