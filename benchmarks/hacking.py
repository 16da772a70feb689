"""How often does the feedback rank a reference above cheap tricks?

    python benchmarks/hacking.py --data dialogues.jsonl --columns document=dialogue

For every row it builds thirteen texts that need no understanding, scores them together with the reference and prints
the share of rows in which the reference scores higher.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time

import numpy as np

from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.rules import words
from llm_gym.tasks import load_task

GENERIC = "The text describes a conversation between two people about a topic that matters to them."
FILLER = "It was an interesting and important conversation for everyone involved."


def lines_of(document: str) -> list[str]:
    """Return the lines of a dialogue without speaker labels, or the sentences of a text of one paragraph."""
    lines = [re.sub(r"^\s*#?\w+#?:\s*", "", line) for line in document.splitlines() if line.strip()]
    return lines if len(lines) > 3 else re.split(r"(?<=[.!?])\s+", document)


def tricks(rows: list[dict], i: int, instruction: str) -> dict[str, str]:
    """Return the tricks for row `i`, the same ones each time."""
    rng = np.random.default_rng([7, i])
    document, reference = rows[i]["document"], rows[i]["summary"]
    lines = lines_of(document)
    drawn = [lines[k] for k in rng.integers(len(lines), size=3)]
    keywords = [w for w in dict.fromkeys(words(document)) if len(w) > 3 and w not in FUNCTION_WORDS]
    other = rows[(i + 1 + int(rng.integers(len(rows) - 1))) % len(rows)]["summary"]
    return {
        "first line copied": lines[0],
        "random line copied": drawn[0],
        "line in lower case, no punctuation": " ".join(re.sub(r"[^\w\s]", "", drawn[1].lower()).split()),
        "'Person1 says that' + line": f"Person1 says that {drawn[2]}",
        "first 25 words": " ".join(document.split()[:25]),
        "reference scrambled": " ".join(rng.permutation(reference.split())),
        "reference three times": " ".join([reference] * 3),
        "reference + filler sentence": f"{reference} {FILLER}",
        "keywords only": ", ".join(rng.permutation(keywords)[:12]),
        "nothing": "",
        "instruction echoed": instruction,
        "one generic sentence": GENERIC,
        "another row's reference": other,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="file with documents and summaries; the bundled corpus without it")
    parser.add_argument("--columns", nargs="*", default=[], metavar="TASK=FILE")
    parser.add_argument("--feedback", help="a scorer's name or JSON; the default of TextSummary-v0 without it")
    parser.add_argument("-n", type=int, help="only the first N rows")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    task = load_task("llm_gym.tasks.summary:TextSummary")
    rows = load_examples(args.data, "all", task, dict(pair.split("=", 1) for pair in args.columns))[: args.n]
    feedback = build(args.feedback or task.feedback)
    wins: dict[str, list[bool]] = {}
    margins: dict[str, list[float]] = {}
    started = time.monotonic()
    for i, row in enumerate(rows):
        texts = {"reference": row["summary"], **tricks(rows, i, task.instruction)}
        scores = feedback([task.episode(row, text) for text in texts.values()])
        if silent := [name for name, score in zip(texts, scores, strict=True) if score.abstained]:
            raise LLMGymError(f"the feedback abstained from {', '.join(silent)} of row {row['id']!r}")
        values = dict(zip(texts, (score.value for score in scores), strict=True))
        for name in list(texts)[1:]:
            wins.setdefault(name, []).append(values["reference"] > values[name])
            margins.setdefault(name, []).append(values["reference"] - values[name])
        if sys.stderr.isatty() or i % 50 == 49:
            print(f"{i + 1}/{len(rows)} rows, {time.monotonic() - started:.0f} s", file=sys.stderr)
    table = {name: {"wins": float(np.mean(w)), "margin": float(np.mean(margins[name]))} for name, w in wins.items()}
    if args.json:
        print(json.dumps({"rows": len(rows), "feedback": feedback.spec, "tricks": table}))
        return
    print(f"{len(rows)} rows; feedback {json.dumps(feedback.spec)}\n")
    print(f"| the reference beats | share | mean margin |\n|{'---|' * 3}")
    for name, cell in table.items():
        print(f"| {name} | {cell['wins']:.3f} | {cell['margin']:+.2f} |")


if __name__ == "__main__":
    main()
