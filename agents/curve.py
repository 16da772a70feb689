"""The picture of a run: its learning curve."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.report import JUDGED


def smoothed(values: Sequence[float | None], window: int = 5) -> np.ndarray:
    """Return the mean of each value and those up to `window` // 2 before and after, float64 `(n,)`; gaps stay NaN.

    >>> smoothed([1.0, 2.0, 6.0], 3).tolist()
    [1.5, 3.0, 4.0]
    """
    known = np.asarray([np.nan if value is None else value for value in values], np.float64)
    half = window // 2
    means = np.full(len(known), np.nan)
    for i in np.flatnonzero(np.isfinite(known)):
        around = known[max(0, i - half) : i + half + 1]
        means[i] = around[np.isfinite(around)].mean()
    return means


def draw_curve(metrics: Sequence[dict[str, Any]], report: dict[str, Any]) -> bytes:
    """Return the learning curve as a PNG.

    Args:
        metrics: The rows of `metrics.jsonl`.
        report: From `make_report`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3)
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    reward, parts, kl, copied, length = over_time = [figure.add_subplot(grid[place]) for place in places]
    figure.suptitle(f"{report['env']} · {report['policy']} · {report['algo'].upper()} · seed {report['seed']}")
    if any(row["reward"] is not None for row in metrics):
        _line(reward, metrics, "reward", "training reward")
    else:  # nothing was written that could be rewarded
        _line(reward, [{**row, "loss": row["train"].get("loss")} for row in metrics], "loss", "training loss")
    _parts(parts, metrics)
    _line(kl, metrics, "kl", "KL to the start (nats per token)")
    _line(copied, metrics, "copied_share", "copied share")
    _line(length, metrics, "words", "words")
    for axis, measure in ((copied, "copied_share"), (length, "words")):
        reference = next(c["reference"] for c in report["changes"] if c["measure"] == measure)
        if reference is not None and any(row[measure] is not None for row in metrics):
            axis.axhline(reference, color="0.4", linestyle="--", linewidth=1, label="references")
            axis.legend(frameon=False, fontsize=8)
    for axis in over_time:
        axis.set_xlabel("update")
        axis.grid(color="0.92")
    changes = [change for change in report["changes"] if change["measure"] in JUDGED]
    # One axis each: the two are measured on different scales.
    row = grid[0, 2].subgridspec(1, len(changes))
    for place, change in enumerate(changes):
        _change(figure.add_subplot(row[place]), change, f"C{place}")
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def _line(axis: Any, metrics: Sequence[dict[str, Any]], name: str, title: str) -> None:
    updates, values = [row["update"] for row in metrics], [row[name] for row in metrics]
    axis.set_ylabel(title)
    if all(value is None for value in values):
        _unmeasured(axis)
        return
    known = [np.nan if value is None else value for value in values]
    axis.plot(updates, known, color="C0", alpha=0.3, linewidth=1, marker=".", markersize=3)
    axis.plot(updates, smoothed(values), color="C0", linewidth=2)


def _unmeasured(axis: Any) -> None:
    axis.text(0.5, 0.5, "not measured", ha="center", va="center", color="0.5", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])


def _parts(axis: Any, metrics: Sequence[dict[str, Any]]) -> None:
    axis.set_ylabel("parts of the reward, before weights")
    updates = [row["update"] for row in metrics]
    names: dict[str, float] = next((row["parts"] for row in metrics if row["parts"]), {})
    if not names:
        _unmeasured(axis)
        return
    for name in names:
        values = smoothed([row["parts"].get(name) for row in metrics])
        axis.plot(updates, values, label=name.replace("_", " "), linewidth=1.8, marker="." if len(values) < 3 else "")
    axis.legend(frameon=False, fontsize=8, ncols=2)


def _change(axis: Any, change: dict[str, Any], color: str) -> None:
    """Draw a held-out change with its interval."""
    low, high = (change["change"] if end is None else end for end in (change["low"], change["high"]))
    error = [[max(0.0, change["change"] - low)], [max(0.0, high - change["change"])]]
    axis.errorbar(0, change["change"], yerr=error, fmt="o", color=color, capsize=5, markersize=7)
    axis.axhline(0, color="0.4", linewidth=1)
    axis.set_xticks([0], [f"{change['label']}\n{change['before']:.2f} → {change['after']:.2f}"])
    axis.margins(y=0.15)
    axis.set_xlim(-1, 1)
    axis.grid(axis="y", color="0.92")
    if change["measure"] == "feedback":
        axis.set_ylabel("held-out change, 95 % interval")
