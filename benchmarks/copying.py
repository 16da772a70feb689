"""Does copying pay?

    python benchmarks/copying.py --policy smollm2-135m

A policy writes eight texts for each of some training documents. Printed is, for each part of the feedback, how much
more weighted reward the texts have that share a run of four words with their document than the others about the same
document: a policy learns to copy where the sum is above 0.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from agents.evaluate import environment_arguments, find_policy, held_out, load_policy, make_envs, sampling_from
from agents.rollout import play
from llm_gym.feedback.rules import copied_words


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="smollm2-135m", help="model name or run folder")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    source = find_policy(args.policy)
    env_kwargs = environment_arguments("TextSummary-v0", source)
    envs = make_envs("TextSummary-v0", 4 * args.samples, "train", env_kwargs)
    policy = load_policy(source, envs)
    ids = held_out(envs.example_ids, args.documents)
    with sampling_from(policy, args.seed):
        episodes = play(policy, envs, [name for name in ids for _ in range(args.samples)]) or []
    shape = (len(ids), args.samples)
    copies = np.reshape([copied_words(e.text, e.source) > 0 for e in episodes], shape)
    mixed = copies.any(1) & ~copies.all(1)
    gains = {}
    for name, options in env_kwargs["feedback"].items():
        values = options["weight"] * np.reshape([e.parts[name] for e in episodes], shape)
        rows = zip(values[mixed], copies[mixed], strict=True)
        gains[name] = float(np.mean([row[which].mean() - row[~which].mean() for row, which in rows]))
    report = {"texts": copies.size, "copying": float(copies.mean()), "gain": gains, "sum": sum(gains.values())}
    if args.json:
        print(json.dumps(report))
        return
    print(f"{copies.size} texts, {copies.mean():.0%} copy; over {mixed.sum()} documents that have both kinds\n")
    print("| part | weighted gain of copying |\n|---|---|")
    for name, value in {**gains, "sum": report["sum"]}.items():
        print(f"| {name} | {value:+.2f} |")


if __name__ == "__main__":
    main()
