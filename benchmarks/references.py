"""How often does an environment's feedback rank a reference above texts that are worth nothing?

    python benchmarks/references.py Story-v0

Every example is played by an agent that writes its reference (the author's turns, in a conversation), nothing, as many
random words, or another example's reference, and, for some tasks, by cheap tricks. Printed are the share of examples
in which the reference scores higher, and what each scores on average.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.registration import find_task
from reference_tricks import TRICKS, Row

Writer = Callable[[int], str | None]


class Writes(ReferenceAgent):
    """An agent that writes what `writer` says for a row of `envs`."""

    def __init__(self, envs: Any, writer: Writer) -> None:
        super().__init__(envs)
        self.writer = writer

    def turn(self, row: int) -> str:
        """Return the text of the row's turn."""
        return self.writer(row) or ""


def writers(envs: Any, cheat: bool = True) -> dict[str, Writer]:
    """Return the agents by name, with `cheat` the task's tricks too; they look at the example and the turn alone."""
    task, examples = envs.task, envs.examples
    pool = [word for example in examples for word in str(task.reference(example)).split()]
    others = [other_example(task, examples, i) for i in range(len(examples))]

    def random_words(row: int) -> str:
        rng = np.random.default_rng([7, index(envs, row), len(turns(envs, row))])
        return " ".join(rng.choice(pool, len(str(envs.reference_turn(row)).split())))

    def other(row: int) -> str | None:
        return task.reference_turn(examples[others[index(envs, row)]], turns(envs, row))

    told: dict[str, Writer] = {
        "reference": envs.reference_turn,
        "nothing": lambda row: "",
        "random words": random_words,
        "another example's reference": other,
    }
    tricks = TRICKS.get(task.name, _none) if cheat else _none

    def trick(row: int, name: str) -> str:
        text = tricks(examples[index(envs, row)], examples)[name]
        plan = [text] if isinstance(text, str) else text
        said = sum(turn["role"] == "agent" for turn in turns(envs, row))
        return plan[said] if said < len(plan) else ""

    return {**told, **{name: partial(trick, name=name) for name in tricks(examples[0], examples)}}


def _none(row: Row, rows: list[Row]) -> dict[str, str]:
    return {}


def other_example(task: Any, examples: list[Row], i: int) -> int:
    """Return the place of another example, with another reference, the same one each time."""
    order = np.random.default_rng([7, i]).permutation(len(examples)).tolist()
    return next(k for k in order if task.reference(examples[k]) != task.reference(examples[i]))


def index(envs: Any, row: int) -> int:
    """Return which example a row is about."""
    return int(envs._example[row])


def turns(envs: Any, row: int) -> list[dict[str, str]]:
    """Return what has been said in a row."""
    return envs._turns[row]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", help="environment, such as Story-v0")
    parser.add_argument("--split", default="all", choices=("train", "validation", "test", "all"))
    parser.add_argument("--feedback", help="a scorer's name or JSON; the task's default without it")
    parser.add_argument("-n", type=int, help="only the first N examples")
    parser.add_argument("--no-tricks", action="store_true", help="only reference, nothing, random words and another's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    task, started = find_task(args.id), time.monotonic()
    envs = make_envs(args.id, 16, args.split, {"feedback": args.feedback or task.feedback})
    ids = envs.example_ids[: args.n]
    scores, parts = {}, {}
    for name, writer in writers(envs, not args.no_tricks).items():
        episodes = play(Writes(envs, writer), envs, ids) or []
        scores[name] = np.array([episode.reward for episode in episodes])
        parts[name] = {part: float(np.mean([e.parts[part] for e in episodes])) for part in episodes[0].parts}
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    best = scores["reference"]
    table = {
        name: {"wins": float((best > values).mean()), "score": float(values.mean()), "parts": parts[name]}
        for name, values in scores.items()
    }
    del table["reference"]["wins"]
    if args.json:
        print(json.dumps({"env": args.id, "examples": len(ids), "feedback": envs.feedback.spec, "table": table}))
        return
    print(f"{args.id}, {len(ids)} examples; feedback {json.dumps(envs.feedback.spec)}\n")
    print(f"| | the reference beats it in | mean score | {' | '.join(parts['reference'])} |")
    print("|---" * (3 + len(parts["reference"])) + "|")
    for name, cell in table.items():
        means = " | ".join(f"{value:.2f}" for value in cell["parts"].values())
        wins = f"{cell['wins']:.3f}" if "wins" in cell else ""
        print(f"| {name} | {wins} | {cell['score']:+.2f} | {means} |")


if __name__ == "__main__":
    main()
