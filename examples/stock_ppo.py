"""Stock Stable-Baselines3 PPO trains a language model.

python examples/stock_ppo.py --iterations 20
"""

from __future__ import annotations

import argparse

from stable_baselines3 import PPO

from agents import LLMPolicy, SequenceRolloutBuffer, make_vec_env


def main() -> None:
    """Train for a number of rollouts and log to the terminal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20, help="rollouts of 48 tokens in each environment")
    parser.add_argument("--n-envs", type=int, default=16, help="texts side by side")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    env = make_vec_env("TextSummary-v0", n_envs=args.n_envs, tokenizer=args.model)
    model = PPO(
        LLMPolicy,
        env,
        rollout_buffer_class=SequenceRolloutBuffer,
        n_steps=48,
        batch_size=256,
        n_epochs=2,
        gamma=1.0,
        learning_rate=1e-4,
        policy_kwargs={"model": args.model, "lora": 16},
        seed=args.seed,
        verbose=1,
    )
    model.learn(args.n_envs * 48 * args.iterations)


if __name__ == "__main__":
    main()
