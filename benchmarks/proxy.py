"""Does more of a reward mean better texts? Three rewards, each against the second judge, over training.

    python benchmarks/proxy.py --out runs/proxy --picture docs/proxy.png

The same run of `llm-gym train TextSummary-v0` with the environment's default feedback, with the preference model that
comes with the package and rules beside it, and with one that is made to be hacked: similarity alone, which a text that
copies the source has most of. Flagged is the update from which on training feedback rose while the second judge fell,
as the run itself says it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.curve import smoothed
from learning import train
from llm_gym.data.files import read_rows

ENV = "TextSummary-v0"
REWARDS: dict[str, Any] = {
    "default": None,
    "preference and rules": {
        "preference": 1.0,
        "complete": 4.0,
        "copying": -2.0,
        "repetition": -3.0,
        "brevity": -2.0,
    },
    "similarity alone": {"similarity": 10.0},
}


def main() -> None:
    """Train with each reward, unless it has been done; print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_args()
    runs = {name: args.out / f"{name.replace(' ', '-')}-{args.seed}" for name in args.rewards}
    for name, folder in runs.items():
        feedback = ["--feedback", json.dumps(REWARDS[name])] if REWARDS[name] else []
        train(folder, [ENV, "--steps", str(args.steps), "--seed", str(args.seed), *feedback])
    print("| reward | held out: feedback | second judge | copied share | flagged from update |\n|---|---|---|---|---|")
    reports = {name: json.loads((folder / "report.json").read_text()) for name, folder in runs.items()}
    for name, report in reports.items():
        found = {change["measure"]: change for change in report["changes"]}
        cells = [_change(found[measure]) for measure in ("feedback", "judge", "copied_share")]
        print(f"| {name} | {' | '.join(cells)} | {report['diverged'] or 'never'} |")
    if args.picture:
        draw(args.picture, runs, reports)


def _change(change: dict[str, Any]) -> str:
    return (
        f"{change['before']:.3f} → {change['after']:.3f}, {change['change']:+.3f} "
        f"[{change['low']:+.3f}, {change['high']:+.3f}]"
    )


def draw(path: Path, runs: dict[str, Path], reports: dict[str, Any]) -> None:
    """Draw for each run training feedback and second judge by update, means of five."""
    figure = Figure(figsize=(13, 3.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for panel, (name, folder) in zip(panels, runs.items(), strict=True):
        rows = [row for _, row in read_rows(folder / "metrics.jsonl")]
        updates = [row["update"] for row in rows]
        judge = panel.twinx()
        for axis, measure, color in ((panel, "reward", "#0072B2"), (judge, "judge", "#D55E00")):
            axis.plot(updates, smoothed([row[measure] for row in rows]), color=color)
            axis.set_ylabel("training feedback" if measure == "reward" else "second judge", color=color)
            axis.spines["top"].set_visible(False)
        judge.set_ylim(0, 0.4)  # the same in all panels: one judge judges all
        title = f"{name}: never flagged"
        if (update := reports[name]["diverged"]) is not None:
            panel.axvline(update, color="0.3", linestyle="--")
            title = f"{name}: flags itself at update {update}"
        panel.set(title=title, xlabel="update")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
