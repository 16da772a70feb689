"""Token steps a second of every environment, random legal tokens, one row through `gym.make` and many side by side.

    python benchmarks/steps.py [--only TextSummary-v0] [--feedback trivial] [--rows 32] [--repeat 3]

`trivial` feedback is a rule that counts words: what the environment itself costs. `default` is the task's own, with the
models it asks. A run makes whole episodes and begins anew where one ends; medians and ranges of the runs are printed.
Tokens are drawn before the clock runs, from all but the special ones, so that no text ends by itself; where a task
constrains its tokens, they are drawn from the mask, within the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

import llm_gym  # noqa: F401  (registers the ids)
from llm_gym.registration import ENVIRONMENTS

TRIVIAL = {"brevity": -1.0}


def ordinary(tokenizer: Any) -> np.ndarray:
    """Return the ids that are no special tokens."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)


def single(env: gym.Env, turns: int, repeat: int) -> list[float]:
    """Return the steps a second of `repeat` runs of at least `turns` capped turns in one environment."""
    envs: Any = env.unwrapped
    rng, steps = np.random.default_rng(0), turns * envs.vector.max_new_tokens

    def run(tokens: np.ndarray) -> None:
        env.reset(seed=0)
        for token in tokens[:, 0].tolist():
            if envs.vector.task.constrained:
                token = int(rng.choice(np.flatnonzero(envs.action_masks())))
            if env.step(token)[2]:
                env.reset()

    return rates(run, lambda: rng.choice(ordinary(envs.tokenizer), (steps, 1)), repeat)


def many(env: Any, turns: int, repeat: int) -> list[float]:
    """Return the steps a second of all rows together, in runs as long as `turns` capped turns of each."""
    envs = env.unwrapped
    rng, steps = np.random.default_rng(0), turns * envs.max_new_tokens

    def run(tokens: np.ndarray) -> None:
        env.reset(seed=0)
        for column in tokens:
            if envs.task.constrained:
                column = np.array([rng.choice(np.flatnonzero(mask)) for mask in envs.action_masks()])
            env.step(column)

    return rates(run, lambda: rng.choice(ordinary(envs.tokenizer), (steps, envs.num_envs)), repeat)


def rates(run: Callable[[np.ndarray], None], draw: Callable[[], np.ndarray], repeat: int) -> list[float]:
    """Return steps a second of each of `repeat` runs, after one that warms up; other tokens each: scores are kept."""
    run(draw())
    found = []
    for _ in range(repeat):
        tokens = draw()
        started = time.perf_counter()
        run(tokens)
        found.append(tokens.size / (time.perf_counter() - started))
    return found


def span(values: list[float]) -> str:
    """Return median and range."""
    return f"{np.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=ENVIRONMENTS, help="ids; all without it")
    parser.add_argument("--feedback", nargs="*", choices=("trivial", "default"), default=("trivial", "default"))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8, help="capped turns of each row in a run")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"| id | feedback | one row | {args.rows} rows |\n|---|---|---|---|")
    for env_id in args.only or ENVIRONMENTS:
        for name in args.feedback:
            chosen = {"feedback": TRIVIAL} if name == "trivial" else {}
            env = gym.make(env_id, **chosen)
            envs = gym.make_vec(env_id, num_envs=args.rows, autoreset_mode="SameStep", **chosen)
            one, all_rows = single(env, args.turns, args.repeat), many(envs, args.turns, args.repeat)
            print(f"| `{env_id}` | {name} | {span(one)} | {span(all_rows)} |", flush=True)
            env.close()
            envs.close()


if __name__ == "__main__":
    main()
