"""The environment by itself: a loop over tokens, as with any Gymnasium environment.

python examples/gymnasium_loop.py
"""

from __future__ import annotations

import gymnasium as gym

import llm_gym  # noqa: F401  registers the environments


def main() -> None:
    """Write one reference summary token by token and show how it is scored."""
    env = gym.make("TextSummary-v0", render_mode="ansi")
    _, info = env.reset(seed=1)
    inner = env.unwrapped
    example = next(e for e in inner.vector.examples if e["id"] == info["example"])
    tokens = inner.tokenizer(example["summary"])["input_ids"] + [inner.tokenizer.eos_token_id]
    for token in tokens:
        _, reward, terminated, _, info = env.step(token)
        if terminated:
            break
    print(env.render())
    print(f"\nreward {reward:.3f}, ended by {info['finish_reason']}")
    env.close()


if __name__ == "__main__":
    main()
