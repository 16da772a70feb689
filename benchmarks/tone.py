"""Does a policy learn a tone, and what does it forget for it? RL4LMs' experiment on our openings.

    python benchmarks/tone.py --out runs/tone

Every opening of TextGeneration-v0 is to be gone on with; that it be cheerfully is not in the prompt but in the reward:
a preference model, trained first on which of people's continuations are cheerful, tender or humorous and which are
gloomy, angry or suspenseful, how likely the text is, and that it does not repeat itself. As there, the policy first
imitates what people wrote, in whatever tone, then learns from the reward. Measured on held-out openings: how positive
the texts are by a classifier that training never sees, a logistic regression on MiniLM's embeddings of the labelled
news of SentimentMonitoring-v0; the perplexity of what people wrote after these openings; distinct-2 of texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from agents.evaluate import environment_arguments, evaluate, find_policy, load_policy, make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from learning import train
from llm_gym.data import load_examples
from llm_gym.data.files import write_jsonl
from llm_gym.episode import Episode
from llm_gym.feedback.rules import words
from llm_gym.feedback.similarity import embedder
from llm_gym.feedback.vocabulary import Distinct
from llm_gym.models.packing import Segment, pack
from llm_gym.registration import find_task
from llm_gym.statistics import interval

ENV = "TextGeneration-v0"
INSTRUCTION = "Continue this text with one or two short sentences. They must be about {topic}."
GLAD, SAD = ("cheerful", "tender", "humorous"), ("gloomy", "angry", "suspenseful")
PAIRS = 3  # for each opening of the training split
NEAR = 5  # of the gloomy texts, those whose length is nearest to the cheerful one's, so that length tells nothing
IMITATION = 18  # updates of 16 texts, three times through the training split
SAMPLES = 8  # texts that are measured for each opening
RIDGE = 0.1  # of the logistic regression, in units of one example


def main() -> None:
    """Train, unless it has been done, and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kl-coef", type=float, default=0.05, help="the price of leaving the imitation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    imitation, run = args.out / f"imitation-{args.seed}", args.out / f"run-{args.seed}"
    feedback = {
        "preference": {"path": str(cheerfulness(args.out)), "weight": 1.0},
        "likelihood": {"weight": 1.0, "ceiling": -2.5, "prompt": "{source}"},
        "repetition": {"weight": -3.0},
    }
    asked = [ENV, "--instruction", INSTRUCTION, "--feedback", json.dumps(feedback), "--seed", str(args.seed)]
    train(imitation, [*asked, "--algo", "sft", "--steps", str(IMITATION)])
    how = [
        "--policy",
        str(imitation),
        "--steps",
        str(args.steps),
        "--hyperparams",
        f"kl_coef:{args.kl_coef}",
        "n_envs:32",
    ]
    train(run, [*asked, *how])
    positive = classifier()
    continuations = load_examples(None, "all", find_task(ENV))
    glad, sad = (
        positive([r["continuation"] for r in continuations if r["tone"] == tone]) for tone in ("cheerful", "gloomy")
    )
    right = np.mean(glad[:, None] > sad[None])
    print(f"the classifier ranks a person's cheerful continuation above a gloomy one in {right:.2f} of the pairs")
    print("| | positive, by the classifier | perplexity of people's continuations | distinct-2 | words |")
    print("|---|---|---|---|---|")
    for when, policy in (("untrained", "smollm2-135m"), ("imitation", str(imitation)), ("trained", str(run))):
        texts = written(policy)
        together = Episode({"id": "all"}, source="", text=" ".join(texts))
        by_opening = positive(texts).reshape(SAMPLES, -1).mean(0)
        mean, (low, high) = float(by_opening.mean()), interval(by_opening)
        cells = (
            f"{mean:.2f} [{low:.2f}, {high:.2f}]",
            f"{perplexity(policy):.1f}",
            f"{Distinct(2)([together])[0]:.3f}",
            f"{len(words(together.text)) / len(texts):.0f}",
        )
        print(f"| {when} | {' | '.join(cells)} |", flush=True)


def cheerfulness(out: Path) -> Path:
    """Return the preference model, trained unless it has been, that tells people's cheerful texts from gloomy ones."""
    folder = out / "cheerfulness"
    if not folder.exists():
        rows, random = load_examples(None, "train", find_task(ENV)), Random(0)
        glad, sad = ([row["continuation"] for row in rows if row["tone"] in tones] for tones in (GLAD, SAD))
        pairs = []
        for row in rows:
            for chosen in random.sample(glad, PAIRS):
                alike = sorted(sad, key=lambda text, chosen=chosen: abs(len(text) - len(chosen)))[:NEAR]
                pairs.append({"source": row["prompt"], "chosen": chosen, "rejected": random.choice(alike)})
        write_jsonl(out / "pairs.jsonl", pairs)
        how = ["feedback", "train", "--data", str(out / "pairs.jsonl"), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "llm_gym.cli", *how], check=True)
    return folder


def classifier() -> Any:
    """Return a function from texts to the probabilities that they are positive, `(n,)`."""
    news = [r for r in load_examples(None, "all", find_task("SentimentMonitoring-v0")) if r["label"] != "neutral"]
    embed = embedder("minilm-l6")
    features = with_one(np.array(embed([row["news"] for row in news])))
    wanted = np.array([row["label"] == "positive" for row in news], float)
    weights = np.zeros(features.shape[1])
    for _ in range(30):  # Newton's steps: the loss is convex, a dozen of them are enough
        told = 1 / (1 + np.exp(-features @ weights))
        curvature = (features * (told * (1 - told))[:, None]).T @ features + RIDGE * np.eye(len(weights))
        weights -= np.linalg.solve(curvature, features.T @ (told - wanted) + RIDGE * weights)
    return lambda texts: 1 / (1 + np.exp(-with_one(np.array(embed(texts))) @ weights))


def with_one(features: np.ndarray) -> np.ndarray:
    """Return features and a constant, for the intercept."""
    return np.hstack([features, np.ones((len(features), 1))])


def policy_of(name: str) -> tuple[Any, Any]:
    """Return a policy that samples at temperature 1, and environments in which it reads the held-out openings."""
    arguments = environment_arguments(ENV, find_policy("smollm2-135m"), feedback="length", instruction=INSTRUCTION)
    rows = len(load_examples(None, "test", find_task(ENV)))
    envs = make_envs(ENV, rows, "test", arguments)
    policy: Any = load_policy(find_policy(name), envs)
    policy.temperature = 1.0
    return policy, envs


def written(name: str) -> list[str]:
    """Return what a policy writes after held-out openings, `SAMPLES` times round."""
    policy, envs = policy_of(name)
    return [e.text for e in evaluate(policy, envs, envs.example_ids, seed=0, texts=SAMPLES).episodes]


@torch.no_grad()
def perplexity(name: str) -> float:
    """Return the perplexity of people's continuations of held-out openings, in whatever tone they wrote."""
    policy, envs = policy_of(name)
    total, tokens = 0.0, 0
    for e in play(ReferenceAgent(envs), envs, envs.example_ids) or []:
        packed = pack([Segment(e.prompt_ids, e.response_ids, e.agent_mask)]).to(policy.device)
        _, log_probs, _ = policy.evaluate_actions(packed, packed.targets)
        total, tokens = total + float(log_probs.sum()), tokens + len(log_probs)
    return float(np.exp(-total / tokens))


if __name__ == "__main__":
    main()
