"""How often does a reference beat texts that need little understanding, in the tasks whose truth can be checked?

    python benchmarks/tricks.py KnowledgeGraph-v0
    python benchmarks/tricks.py Retrieval-v0

Every trick is one text a row, a single query in retrieval; the reference is the author's lines, or the best of the
author's queries. `benchmarks/hacking.py` does the same for summaries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_gym.data import load_examples
from llm_gym.feedback import build
from llm_gym.feedback.reference import FUNCTION_WORDS
from llm_gym.feedback.rules import words
from llm_gym.registration import find_task
from llm_gym.tasks.knowledge_graph import SHOWN_FACTS

Rows = list[dict[str, Any]]


def lines(triples: list[list[str]]) -> str:
    """Return triples as the agent writes them."""
    return "\n".join(" | ".join(triple) for triple in triples)


def graph_tricks(rows: Rows, i: int, instruction: str) -> dict[str, str]:
    """Return the tricks for a passage."""
    passage, triples = rows[i]["passage"], rows[i]["triples"]
    names = list(dict.fromkeys(name for subject, _, thing in triples for name in (subject, thing)))
    capitals = list(dict.fromkeys(re.findall(r"[A-Z]\w+(?: [A-Z]\w+)*", passage)))
    pairs = [[a, "located in", b] for a, b in itertools.permutations(names, 2)]
    moved = [triples[k - 1][2] for k in range(len(triples))]
    return {
        "passage copied": passage,
        "neighbouring capitalised names, 'located in'": lines(
            [[a, "located in", b] for a, b in zip(capitals, capitals[1:], strict=False)]
        ),
        "all pairs of true names, 'located in'": lines(pairs),
        "subject and object exchanged": lines([[c, b, a] for a, b, c in triples]),
        "relation always 'created'": lines([[a, "created", c] for a, _, c in triples]),
        "objects moved on by one": lines([[a, b, c] for (a, b, _), c in zip(triples, moved, strict=True)]),
        "first triple alone": lines(triples[:1]),
        "first triple, five times": lines(triples[:1] * 5),
        "reference twice": lines(triples + triples),
        "reference and three false ones": lines(triples + [["Lena Park", "born in", "Oakham"], *pairs[:2]]),
        "the instruction's example": SHOWN_FACTS,
        "bars only": "| | |\n" * 4,
    }


def search_tricks(rows: Rows, i: int, instruction: str) -> dict[str, str]:
    """Return the tricks for a need."""
    rng = np.random.default_rng([7, i])
    need, query = rows[i]["need"], rows[i]["query"].splitlines()[-1]
    content = [word for word in words(need) if word not in FUNCTION_WORDS]
    vocabulary = sorted({word for row in rows for word in words(row["query"])})
    return {
        "need copied": need,
        "key words of the need": " ".join(content),
        "one word of the need": max(content, key=len),
        "reference and ten random words": f"{query} {' '.join(rng.choice(vocabulary, 10))}",
        "forty random words": " ".join(rng.choice(vocabulary, 40)),
        "the corpus's words, all of them": " ".join(vocabulary),
        "reference three times": " ".join([query] * 3),
        "need and reference": f"{need} {query}",
        "instruction echoed": instruction,
        "nonsense": "qzx vrrp blorf nnn",
        "done": "done",
    }


TRICKS: dict[str, Callable[[Rows, int, str], dict[str, str]]] = {
    "KnowledgeGraph-v0": graph_tricks,
    "Retrieval-v0": search_tricks,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", metavar="ID", choices=sorted(TRICKS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    task = find_task(args.env)
    rows, feedback = load_examples(None, "all", task), build(task.feedback)
    values: dict[str, list[float]] = {}
    for i, row in enumerate(rows):
        reference = task.reference(row) or ""
        reference = reference.splitlines()[-1] if args.env == "Retrieval-v0" else reference
        texts = {"reference": reference, **TRICKS[args.env](rows, i, task.instruction)}
        for name, score in zip(texts, feedback([task.episode(row, text) for text in texts.values()]), strict=True):
            values.setdefault(name, []).append(score.value / task.max_turns)
    best_values = np.array(values.pop("reference"))
    table = {
        name: {"wins": float((best_values > v).mean()), "margin": float((best_values - v).mean())}
        for name, v in values.items()
    }
    if args.json:
        print(json.dumps({"env": args.env, "rows": len(rows), "feedback": feedback.spec, "tricks": table}))
        return
    print(f"{args.env}, {len(rows)} rows, the reference scores {best_values.mean():.2f} on average\n")
    print(f"| the reference beats | share | mean margin |\n|{'---|' * 3}")
    for name, cell in table.items():
        print(f"| {name} | {cell['wins']:.3f} | {cell['margin']:+.2f} |")


if __name__ == "__main__":
    main()
