"""Stock SB3 PPO with and without the sequence buffer, on the same rollout.

    python benchmarks/sb3_buffer.py

One rollout is stored in both buffers. `PPO.train`, unmodified, then makes one update from each with the same weights
and all transitions in one minibatch; printed are the tokens the language model ran, the seconds, and the largest
differences between the two losses and gradients.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import configure

from agents import LLMPolicy, SequenceRolloutBuffer, make_vec_env


class BothBuffers(SequenceRolloutBuffer):
    """Fills a stock buffer with the same rollout."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stock = DictRolloutBuffer(*args, **kwargs)
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Empty both."""
        self.stock.reset()
        super().reset()

    def add(self, *args: Any) -> None:
        """Add to both."""
        self.stock.add(*copy.deepcopy(args))
        super().add(*args)

    def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
        """Compute for both."""
        self.stock.compute_returns_and_advantage(*args, **kwargs)
        super().compute_returns_and_advantage(*args, **kwargs)


def update(model: PPO, buffer: Any) -> dict[str, Any]:
    """Let stock `train` make one update from `buffer`, then put the weights back."""
    weights = copy.deepcopy(model.policy.state_dict())
    tokens = [0]
    handle = model.policy.backbone.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: tokens.append(inputs[0].numel())
    )
    model.rollout_buffer = buffer
    started = time.perf_counter()
    model.train()
    seconds = time.perf_counter() - started
    handle.remove()
    gradients = {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}
    model.policy.load_state_dict(weights)
    loss = model.logger.name_to_value["train/loss"]
    return {"tokens": sum(tokens), "seconds": seconds, "loss": loss, "gradients": gradients}


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-envs", type=int, default=4)
    parser.add_argument("--n-steps", type=int, default=17, help="one more than an episode, so that a segment is cut")
    parser.add_argument("--max-prompt-tokens", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    env = make_vec_env(
        "TextSummary-v0",
        n_envs=args.n_envs,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.n_steps - 1,
        feedback={"repetition": -1.0, "brevity": -1.0},
    )
    model = PPO(
        LLMPolicy,
        env,
        rollout_buffer_class=BothBuffers,
        n_steps=args.n_steps,
        batch_size=args.n_envs * args.n_steps,
        n_epochs=1,
        gamma=1.0,
        max_grad_norm=1e9,
        seed=0,
    )
    with torch.no_grad():  # adapters start as zeros; make every gradient flow
        for name, p in model.policy.named_parameters():
            if p.requires_grad and ("lora_B" in name or "value_head" in name):
                p.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(args.n_envs * args.n_steps)
    model.collect_rollouts(env, callback, model.rollout_buffer, args.n_steps)
    ours, stock = update(model, model.rollout_buffer), update(model, model.rollout_buffer.stock)

    scale = max(g.abs().max().item() for g in stock["gradients"].values())
    differs = max((stock["gradients"][n] - g).abs().max().item() for n, g in ours["gradients"].items())
    result = {
        "transitions": args.n_envs * args.n_steps,
        "tokens": {"sequence": ours["tokens"], "stock": stock["tokens"]},
        "seconds": {"sequence": ours["seconds"], "stock": stock["seconds"]},
        "loss": {"sequence": ours["loss"], "stock": stock["loss"], "difference": abs(ours["loss"] - stock["loss"])},
        "gradient": {"largest": scale, "largest_difference": differs},
    }
    if args.json:
        print(json.dumps(result))
        return
    print("| one update of stock PPO | SequenceRolloutBuffer | DictRolloutBuffer | ratio |\n|---|---|---|---|")
    for key in ("tokens", "seconds"):
        a, b = ours[key], stock[key]
        print(f"| {key} | {a:.4g} | {b:.4g} | {b / a:.1f} |")
    print(f"\nloss {ours['loss']:.6f} against {stock['loss']:.6f}, difference {result['loss']['difference']:.1e}")
    print(f"largest gradient {scale:.3g}, largest difference {differs:.1e}")


if __name__ == "__main__":
    main()
