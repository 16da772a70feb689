"""Which algorithm learns, and at what price: the same task, model, feedback and time for each.

    python benchmarks/learning.py --out runs/learning                  # all cells of the matrix, then the table
    python benchmarks/learning.py --out runs/learning --cells grpo-0   # one of them
    python benchmarks/learning.py --out runs/learning --table          # the table of what has been run

A cell is a run of `llm-gym train`; one that was interrupted is gone on with, one that is finished is not run again. Win
rates are those of a text against one of the untrained model about the same held-out document, by the task's second
judge, which training never sees; `at equal length` takes the effect of length out. The KL of a text is the log-ratio of
trained and untrained model, summed over its tokens. The frontier is the best of n texts of the untrained model by the
training feedback; its KL is at most log n - (n - 1) / n.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents.comparison import bound, divergences, measures, win_rates
from agents.curve import smoothed
from agents.evaluate import (
    TEXTS,
    Evaluation,
    environment_arguments,
    find_policy,
    held_out,
    judged_by,
    load_policy,
    make_envs,
    sampling_from,
)
from agents.rollout import play
from llm_gym.data import load_examples
from llm_gym.data.files import write_aside
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.registration import find_task
from llm_gym.statistics import Estimate

CELLS = ("grpo-0", "grpo-1", "grpo-2", "rloo-0", "ppo-0", "a2c-0", "reinforce-0", "sft-0", "dpo-0",
         "distillation-0", "dqn-0")  # fmt: skip
FRONTIER = (2, 4, 8, 16, 32, 64)
HEADER = ("", "updates", "minutes", "win rate", "at equal length", "KL of a text", "feedback", "second judge",
          "copied share", "distinct-2", "words")  # fmt: skip


def main() -> None:
    """Run cells, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="TextSummary-v0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="ALGO-SEED")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=20.0)
    length.add_argument("--steps", type=int)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--no-frontier", action="store_true", help="leave out the best of n")
    parser.add_argument("--curves", type=Path, metavar="PNG", help="draw training feedback and second judge by update")
    args = parser.parse_args()
    for cell in () if args.table else args.cells:
        run_cell(args.env, cell, args.out / f"{args.env}-{cell}", args.steps, args.minutes)
    if args.curves:
        draw(args.curves, {cell: args.out / f"{args.env}-{cell}" for cell in args.cells})
    rows = [row(args.env, cell, args.out / f"{args.env}-{cell}") for cell in args.cells]
    if not args.no_frontier:
        rows += frontier(args.env, args.out, args.table)
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


def run_cell(env: str, cell: str, folder: Path, steps: int | None, minutes: float) -> None:
    """Run a cell; see `train`."""
    algo, seed = cell.rsplit("-", 1)
    length = ["--steps", str(steps)] if steps else ["--minutes", str(minutes)]
    train(folder, [env, "--algo", algo, "--seed", seed, *length])


def train(folder: Path, arguments: list[str]) -> None:
    """Let `llm-gym train` run, go on with what was interrupted, or leave alone what is finished."""
    if (folder / "report.json").exists():
        return
    begun = (folder / "config.json").exists()
    how = ["--resume", str(folder)] if begun else [*arguments, "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "llm_gym.cli", "train", *how], check=True, stdout=subprocess.DEVNULL)


def row(env: str, cell: str, folder: Path) -> list[str]:
    """Return the cells of a run's row."""
    if not (folder / "report.json").exists():
        return [cell, "not run", *[""] * (len(HEADER) - 2)]
    report = json.loads((folder / "report.json").read_text())
    before, after = (read(folder / f"{when}.jsonl") for when in ("before", "after"))
    spent = divergence(env, folder, after)
    made = [str(report["updates"]), f"{report['train_seconds'] / 60:.1f}"]
    return [cell, *made, *compared(before, after), f"{spent:.1f}", *measured(after)]


def read(path: Path) -> Evaluation:
    """Return what a run kept of its evaluation."""
    return Evaluation.from_jsonl(path.read_text(encoding="utf-8"), TEXTS)


def compared(before: Evaluation, after: Evaluation) -> list[str]:
    """Return the win rate of the texts after against those before, plain and at equal length."""
    return [shown(estimate) for estimate in win_rates(after, before)]


def measured(evaluation: Evaluation) -> list[str]:
    """Return feedback, second judge, copied share, distinct-2 and length."""
    found = measures(evaluation)
    places = {"feedback": 2, "judge": 3, "copied_share": 3, "distinct_2": 2, "words": 0}
    return [f"{found[name]:.{digits}f}" for name, digits in places.items()]


def shown(estimate: Estimate) -> str:
    """Return a share with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def divergence(env: str, folder: Path, after: Evaluation) -> float:
    """Return the mean over texts of log p(trained) - log p(untrained), in nats; kept once it is known."""
    kept = folder / "divergence.json"
    if not kept.exists():
        source = find_policy(str(folder))
        envs = make_envs(env, 1, "test", environment_arguments(env, source))
        policy: Any = load_policy(source, envs)
        with policy.reference():
            write_aside(kept, json.dumps(divergences(after.episodes, policy)))
    return float(np.mean(json.loads(kept.read_text())))


def frontier(env: str, out: Path, only_table: bool) -> list[list[str]]:
    """Return the rows of the references, the untrained model and the best of several of its texts."""
    kept = out / f"{env}-untrained.jsonl"
    most = TEXTS + max(FRONTIER)
    if not kept.exists():
        if only_table:
            return [["untrained, best of n", "not run", *[""] * (len(HEADER) - 2)]]
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_aside(kept, write_untrained(env, most).to_jsonl())
    drawn = Evaluation.from_jsonl(kept.read_text(encoding="utf-8"), most)
    documents, odd = divmod(len(drawn.episodes), most)
    if odd:
        raise LLMGymError(f"{kept} holds {len(drawn.episodes)} texts, not {most} for each document; delete it")
    against = part(drawn, documents, range(TEXTS))
    rows = [["untrained", "", "", "", "", "0.0", *measured(against)]]
    for n in FRONTIER:
        # The texts that are compared with are not among those that are chosen from.
        starts = range(TEXTS, most - n + 1, n)
        best = [choose(drawn, documents, range(start, start + n)) for start in starts][:TEXTS]
        chosen = Evaluation([e for b in best for e in b.episodes], [s for b in best for s in b.judged], len(best))
        rows.append([f"best of {n}", "", "", *compared(against, chosen), f"≤ {bound(n):.1f}", *measured(chosen)])
    return rows


def write_untrained(env: str, most: int) -> Evaluation:
    """Let the untrained model write `most` texts for each held-out document."""
    source = find_policy("smollm2-135m")
    arguments = environment_arguments(env, source)
    task = find_task(env)
    ids = held_out([example["id"] for example in load_examples(None, "test", task)])
    envs = make_envs(env, len(ids), "test", arguments)
    policy = load_policy(source, envs)
    with sampling_from(policy, 1):
        # A row that goes on with the document that it has read does not read it again.
        by_document = play(policy, envs, [name for name in ids for _ in range(most)]) or []
    episodes = [episode for text in range(most) for episode in by_document[text::most]]
    return Evaluation(episodes, judged_by(build(task.judge), episodes), most)


def part(drawn: Evaluation, documents: int, texts: Any) -> Evaluation:
    """Return some of the texts of each document."""
    places = [text * documents + document for text in texts for document in range(documents)]
    return Evaluation([drawn.episodes[i] for i in places], [drawn.judged[i] for i in places], len(texts))


def choose(drawn: Evaluation, documents: int, texts: Any) -> Evaluation:
    """Return for each document that of some texts which the training feedback likes best."""
    places = []
    for document in range(documents):
        candidates = [text * documents + document for text in texts]
        places.append(max(candidates, key=lambda i: drawn.episodes[i].reward or 0.0))
    return Evaluation([drawn.episodes[i] for i in places], [drawn.judged[i] for i in places], 1)


def draw(path: Path, folders: dict[str, Path]) -> None:
    """Draw training feedback and second judge of the texts that were trained on, means of five updates."""
    figure = Figure(figsize=(11, 4.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    styles = itertools.cycle(itertools.product(("-", "--"), ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")))
    for (cell, folder), (dashes, colour) in zip(folders.items(), styles, strict=False):
        if not (folder / "metrics.jsonl").exists():
            continue
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        updates = [row["update"] for row in metrics]
        for panel, name in zip(panels, ("reward", "judge"), strict=True):
            panel.plot(updates, smoothed([row[name] for row in metrics]), dashes, color=colour, label=cell)
    for panel, title in zip(panels, ("training feedback", "second judge, on the texts of training"), strict=True):
        panel.set(title=title, xlabel="update")
        panel.grid(color="0.92")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
