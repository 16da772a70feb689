"""Does the feedback prefer long texts?

    python benchmarks/length.py

The untrained model writes eight texts for each of some documents; printed is the mean over documents of Spearman's
correlation between score and number of words within a document.
"""

from __future__ import annotations

import argparse
import json

import gymnasium as gym
import numpy as np
import torch

from agents import LLMPolicy
from agents.rollout import play
from llm_gym.feedback.rules import words
from llm_gym.statistics import spearman


def main() -> None:
    """Print the correlation of the score and of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="TextSummary-v0")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(args.seed)  # the policy takes the seed of its own generator from here, as under SB3
    envs = gym.make_vec(args.env, num_envs=args.samples, split="validation", autoreset_mode="Disabled").unwrapped
    policy = LLMPolicy(envs.single_observation_space, envs.single_action_space, lambda _: 0.0)
    correlations: dict[str, list[float]] = {}
    for name in envs.example_ids[: args.documents]:
        episodes = play(policy, envs, [name] * args.samples) or []
        length = [float(len(words(e.text))) for e in episodes]
        columns = {"score": [e.reward or 0.0 for e in episodes]}
        columns |= {part: [e.parts[part] for e in episodes] for part in episodes[0].parts}
        for part, values in columns.items():
            correlations.setdefault(part, []).append(spearman(np.array(values), np.array(length)))
    means = {part: float(np.nanmean(v)) if np.isfinite(v).any() else None for part, v in correlations.items()}
    if args.json:
        print(json.dumps({"documents": len(correlations["score"]), "samples": args.samples, "spearman": means}))
        return
    print(f"{len(correlations['score'])} documents, {args.samples} samples each\n")
    print("| | mean Spearman with the number of words |\n|---|---|")
    for part, value in means.items():
        print(f"| {part} | {'constant' if value is None else f'{value:+.2f}'} |")


if __name__ == "__main__":
    main()
