"""An ordinary agent, a small MLP, steers a language model that stays as it is.

python examples/steer_frozen_lm.py ppo dqn --out runs/steer

SmolLM2 goes on with the opening of a text. At each token the agent sees the model's hidden state and chooses among its
eight likeliest tokens. It is paid for a whole sentence that fits into sixteen tokens, and pays for what the model would
hardly have written. Without it, the model is cut off in the middle of a longer sentence.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import DQN, PPO

from agents import make_vec_env
from agents.wrappers import VectorHiddenStateObservation, VectorKLPenalty, VectorTopKActions
from llm_gym.data.files import write_jsonl
from llm_gym.statistics import interval

K, ENVS, SURPRISE = 8, 16, 0.02
ON_POLICY = {"n_steps": 16, "batch_size": 64, "learning_rate": 1e-3, "gamma": 1.0}
CLIPPED = {**ON_POLICY, "n_epochs": 8, "ent_coef": SURPRISE}
OFF_POLICY = {
    "learning_rate": 5e-4,
    "learning_starts": 512,
    "batch_size": 128,
    "train_freq": 1,
    "gradient_steps": 8,
    "target_update_interval": 512,
    "exploration_fraction": 0.4,
    "gamma": 1.0,
}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (PPO, CLIPPED),
    "maskable-ppo": (MaskablePPO, CLIPPED),
    "trpo": (TRPO, ON_POLICY),
    "dqn": (DQN, OFF_POLICY),
    "qr-dqn": (QRDQN, OFF_POLICY),
}


def make_env(split: str, model: str = "smollm2-135m", k: int = K, n_envs: int = ENVS, seed: int = 0) -> Any:
    """Return openings to be gone on with, as an environment that any algorithm for boxes and few actions takes."""

    def wrapped(envs: Any) -> Any:
        return VectorHiddenStateObservation(VectorTopKActions(VectorKLPenalty(envs, SURPRISE, model), k, model), model)

    return make_vec_env(
        "TextGeneration-v0",
        n_envs=n_envs,
        seed=seed,
        wrapper_class=wrapped,
        tokenizer=model,
        split=split,
        instruction="Go on with this text in one short sentence.",
        feedback={"complete": 2.0, "brevity": {"weight": -2.0, "words": 6}, "repetition": -1.0},
        max_prompt_tokens=96,
        max_new_tokens=16,
    )


def held_out(env: Any, choose: Any) -> list[dict[str, Any]]:
    """Return a text for each example of the environment's split, written by `choose(observation)`."""
    ids, rows, texts = env.get_attr("example_ids")[0], env.num_envs, []
    for start in range(0, len(ids), rows):
        batch = [ids[(start + row) % len(ids)] for row in range(rows)]
        env.set_options([{"example": name} for name in batch])
        observation, ended = env.reset(), {}
        surprise = np.zeros(rows)
        while len(ended) < rows:
            observation, _, dones, infos = env.step(choose(observation))
            for row, info in enumerate(infos):
                if row not in ended:
                    surprise[row] -= info["reference_log_prob"]
                if dones[row] and row not in ended:
                    ended[row] = {"example": batch[row], "text": info["text"], "score": info["score"]}
                    ended[row] |= {"complete": info["parts"]["complete"], "surprise": surprise[row]}
        texts += [ended[row] for row in range(min(rows, len(ids) - start))]
    return texts


def train(algo: str, model: str, steps: int, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Return a trained agent, and the return of each episode that it was trained on."""
    algorithm, settings = ALGORITHMS[algo]
    agent = algorithm("MlpPolicy", make_env("train", model), seed=seed, device="cpu", **settings)
    curve = []

    def note(local: dict[str, Any], _: Any) -> bool:
        returns = [info["episode"]["r"] for info in local["infos"] if "episode" in info]
        curve.extend({"tokens": agent.num_timesteps, "return": float(value)} for value in returns)
        return True

    agent.learn(steps, callback=note)
    return agent, curve


def report(by: str, texts: list[dict[str, Any]], out: Path) -> None:
    """Print and keep what was written on held-out openings."""
    write_jsonl(out / f"{by}-texts.jsonl", texts)
    score, whole, surprise = (np.array([row[key] for row in texts]) for key in ("score", "complete", "surprise"))
    low, high = interval(score)
    print(f"{by}: score {score.mean():.2f} [{low:.2f}, {high:.2f}], whole sentences {whole.mean():.2f}", end="")
    print(f", surprise {surprise.mean():.1f} nats; {json.dumps(texts[0]['text'])}", flush=True)


def main() -> None:
    """Train, and compare agents on held-out openings with chance and with the model left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algo", nargs="+", choices=ALGORITHMS)
    parser.add_argument("--steps", type=int, default=6144, help="tokens to train on")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/steer"))
    args = parser.parse_args()

    env, rng = make_env("test", args.model), np.random.default_rng(args.seed)
    for algo in args.algo:
        begun = time.monotonic()
        agent, curve = train(algo, args.model, args.steps, args.seed)
        print(f"{algo}: {agent.num_timesteps} tokens in {time.monotonic() - begun:.0f} s")
        write_jsonl(args.out / f"{algo}-curve.jsonl", curve)
        report(algo, held_out(env, lambda seen: agent.predict(seen, deterministic=True)[0]), args.out)  # noqa: B023
    report("chance", held_out(env, lambda _: rng.integers(K, size=ENVS)), args.out)
    report("likeliest", held_out(env, lambda _: np.zeros(ENVS, np.int64)), args.out)


if __name__ == "__main__":
    main()
