"""How often does a reference, or the reference agent, beat an empty text, random words and another row's reference?

    python benchmarks/references.py Retrieval-v0

Each is written into the environment token by token, turn by turn, for every row; printed is the share of rows in which
the reference has the higher reward under the default feedback.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play

SAYINGS = ("reference", "nothing", "random words", "another row's reference")


class Sayer(ReferenceAgent):
    """Says one of `SAYINGS` in each turn."""

    def __init__(self, envs: Any, saying: str) -> None:
        super().__init__(envs)
        self.saying = saying
        self.words = " ".join(envs.task.reference(row) or "" for row in envs.examples).split()

    def turn(self, row: int) -> str | None:
        """Return the text of the row's turn."""
        envs, rng = self.envs, np.random.default_rng([7, self.envs._example[row], len(self.envs._turns[row])])
        mine = envs.reference_turn(row)
        if self.saying == "reference":
            return mine
        if self.saying == "nothing":
            return ""
        if self.saying == "random words":
            return " ".join(rng.choice(self.words, max(1, len((mine or "").split()))))
        shift = 1 + int(np.random.default_rng([7, envs._example[row]]).integers(len(envs.examples) - 1))
        other = envs.examples[(envs._example[row] + shift) % len(envs.examples)]
        return envs.task.reference_turn(other, envs._turns[row])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", metavar="ID")
    parser.add_argument("-n", type=int, help="only the first N rows")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    envs = make_envs(args.env, 16, "all", {})
    ids = envs.example_ids[: args.n]
    rewards = {}
    for saying in SAYINGS:
        episodes = play(Sayer(envs, saying), envs, ids) or []
        rewards[saying] = np.array([episode.reward for episode in episodes], float)
    best = rewards["reference"]
    table = {
        name: {"mean": float(values.mean()), "beaten": float((best > values).mean())}
        for name, values in rewards.items()
        if name != "reference"
    }
    if args.json:
        print(json.dumps({"env": args.env, "rows": len(ids), "reference": float(best.mean()), "table": table}))
        return
    print(f"{args.env}, {len(ids)} rows, the reference scores {best.mean():.2f} on average\n")
    print(f"| the reference beats | share | mean score |\n|{'---|' * 3}")
    for name, cell in table.items():
        print(f"| {name} | {cell['beaten']:.3f} | {cell['mean']:.2f} |")


if __name__ == "__main__":
    main()
