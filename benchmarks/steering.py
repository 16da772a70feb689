"""The table and the picture of `examples/steer_frozen_lm.py`.

python benchmarks/steering.py runs/steer --picture docs/steering.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np

from llm_gym.data.files import read_rows, write_aside
from llm_gym.statistics import interval

WINDOW = 64  # episodes of a moving mean
BASELINES = ("chance", "likeliest")


def means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each `WINDOW` values that follow each other.

    >>> means(np.arange(65.0)).tolist()
    [31.5, 32.5]
    """
    return np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")


def table(folder: Path, algos: list[str]) -> str:
    """Return the scores on held-out openings, with paired differences to the baselines."""
    texts = {by: [row for _, row in read_rows(folder / f"{by}-texts.jsonl")] for by in (*BASELINES, *algos)}
    scores = {
        by: np.array([row["score"] for row in sorted(rows, key=lambda row: row["example"])])
        for by, rows in texts.items()
    }
    heads = ("", "score", "whole sentences", "surprise of a text, nats", "over chance", "over the likeliest")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for by, rows in texts.items():
        cells = [_with_interval(scores[by])]
        cells += [f"{np.mean([row[key] for row in rows]):.{n}f}" for key, n in (("complete", 2), ("surprise", 1))]
        cells += ["" if by in BASELINES else _with_interval(scores[by] - scores[other]) for other in BASELINES]
        lines.append(f"| {by} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def draw(folder: Path, algos: list[str], path: Path) -> None:
    """Draw the return of the episodes that were trained on, against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.add_subplot()
    for algo, line in zip(algos, ("-", "--", "-.", ":", (0, (1, 3))), strict=False):
        rows = [row for _, row in read_rows(folder / f"{algo}-curve.jsonl")]
        axis.plot(
            [row["tokens"] for row in rows[WINDOW - 1 :]],
            means(np.array([r["return"] for r in rows])),
            line,
            label=algo,
        )
    axis.set_xlabel("tokens")
    axis.set_ylabel(f"return of a training episode, mean of {WINDOW}")
    axis.grid(color="0.92")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    write_aside(path, picture.getvalue())


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the example wrote")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    algos = sorted(path.name.removesuffix("-curve.jsonl") for path in args.folder.glob("*-curve.jsonl"))
    print(table(args.folder, algos))
    if args.picture:
        draw(args.folder, algos, args.picture)


if __name__ == "__main__":
    main()
