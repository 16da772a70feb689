"""A scorer of your own: any function of the text, batched, by name.

python examples/own_scorer.py
"""

from collections.abc import Sequence

import gymnasium as gym

import llm_gym  # noqa: F401  registers the environments
from llm_gym.episode import Episode
from llm_gym.feedback import Scorer


class ShortWords(Scorer):
    """Share of words of at most `letters` letters."""

    def __init__(self, letters: int = 5) -> None:
        self.letters = letters

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return a share for each text, of all that ended together."""
        words = [episode.text.split() for episode in episodes]
        return [sum(len(word) <= self.letters for word in row) / max(1, len(row)) for row in words]


if __name__ == "__main__":
    feedback = {"own_scorer:ShortWords": {"weight": 2.0, "letters": 4}, "likelihood": 1.0}
    env = gym.make("TextSummary-v0", feedback=feedback).unwrapped
    env.reset(seed=0)
    for token in [*env.tokenizer("The sea fell and the old pier came up.")["input_ids"], env.tokenizer.eos_token_id]:
        _, reward, done, _, info = env.step(token)
    print(f"{info['text']!r} scores {reward:.2f}: {info['parts']}")
