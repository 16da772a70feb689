"""How often does a task's default feedback rank the reference above what needs no understanding?

    python benchmarks/references.py Translation-v0

For every row it scores the reference together with nothing, random words, another row's reference (in the same
language), a copy of the source, and the constant answers that a task invites. It prints the share of rows in which
the reference scores higher, and the mean score of each.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.registration import find_task
from llm_gym.tasks import Task

CONSTANT = {
    "SentimentMonitoring-v0": {
        "always negative and alarm": "negative | alarm | {first words}",
        "always neutral and no alarm": "neutral | no alarm | {first words}",
        "always negative and no alarm": "negative | no alarm | {first words}",
        "an alarm for a fixed reason": "negative | alarm | the plant leaked chlorine",
        "label and alarm right, whole news as reason": "{label} | {alarm} | {source}",
        "label and alarm right, first words as reason": "{label} | {alarm} | {first words}",
    },
    "Translation-v0": {
        "source three times": "{source} {source} {source}",
        "half translated": "{half} {source half}",
        "first half of the reference": "{half}",
        "reference three times": "{reference} {reference} {reference}",
        "reference and source": "{reference} {source}",
        "reference scrambled": "{scrambled}",
    },
}
"""Further tricks by environment; the words in braces stand for parts of the row."""


def tricks(env_id: str, task: Task, rows: list[dict[str, Any]], i: int) -> dict[str, str]:
    """Return the texts that row `i`'s reference must beat, the same ones each time."""
    rng = np.random.default_rng([11, i])
    row, reference = rows[i], task.reference(rows[i]) or ""
    alike = [other for other in rows if other is not row and other.get("languages") == row.get("languages")]
    other = alike[int(rng.integers(len(alike)))]
    known = sorted({word for other in alike for word in (task.reference(other) or "").split()})
    parts = {
        "source": task.source(row),
        "reference": reference,
        "half": " ".join(reference.split()[: len(reference.split()) // 2]),
        "source half": " ".join(task.source(row).split()[len(task.source(row).split()) // 2 :]),
        "scrambled": " ".join(rng.permutation(reference.split())),
        "first words": " ".join(task.source(row).split()[:8]),
        "label": reference.split(" | ")[0],
        "alarm": reference.split(" | ")[-2] if " | " in reference else "",
    }
    return {
        "nothing": "",
        "random words": " ".join(rng.choice(known, max(1, len(reference.split())))),
        "another row's reference": task.reference(other) or "",
        "source copied": task.source(row),
        **{name: _filled(text, parts) for name, text in CONSTANT.get(env_id, {}).items()},
    }


def _filled(text: str, parts: dict[str, str]) -> str:
    pieces = text.replace("}", "{").split("{")  # every second piece was in braces
    return "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", help="environment, of a task of one turn")
    parser.add_argument("--feedback", help="a scorer's name or JSON; the task's default without it")
    parser.add_argument("--split", default="all", choices=("train", "validation", "test", "all"))
    parser.add_argument("-n", type=int, help="only the first N rows")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    task = find_task(args.id)
    if task.max_turns > 1:
        raise LLMGymError(
            f"{args.id} has several turns, this table is for one; see llm-gym evaluate --policy reference"
        )
    rows = load_examples(None, args.split, task)
    feedback = build(args.feedback or task.feedback)
    scores: dict[str, list[float]] = {}
    for i, row in enumerate(rows[: args.n]):
        texts = {"the reference": task.reference(row) or "", **tricks(args.id, task, rows, i)}
        for name, score in zip(texts, feedback([task.episode(row, text) for text in texts.values()]), strict=True):
            scores.setdefault(name, []).append(score.value)
    best = np.array(scores["the reference"])
    table = {name: {"wins": float(np.mean(best > v)), "mean": float(np.mean(v))} for name, v in scores.items()}
    if args.json:
        print(json.dumps({"env": args.id, "rows": len(best), "feedback": feedback.spec, "texts": table}))
        return
    print(f"{len(best)} rows of {args.id}; feedback {json.dumps(feedback.spec)}\n")
    print(f"| the reference beats | share | mean score |\n|{'---|' * 3}")
    for name, cell in table.items():
        print(f"| {name} | {'' if name == 'the reference' else format(cell['wins'], '.3f')} | {cell['mean']:.2f} |")


if __name__ == "__main__":
    main()
