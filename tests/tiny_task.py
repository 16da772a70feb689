"""An environment of another package: summaries whose second judge needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym

import llm_gym
from llm_gym.episode import Episode
from llm_gym.feedback import Scorer
from llm_gym.tasks.summary import TextSummary


class TinySummary(TextSummary):
    """Summarise a document, tiny."""

    feedback = {"brevity": -1.0, "repetition": {"weight": -0.5}}
    judge = {"chrf": 0.5, "key_facts": 0.5}
    max_prompt_tokens = 200
    max_new_tokens = 12


class Broken(Scorer):
    """A scorer that divides by zero after a while."""

    left = 10**9

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        type(self).left -= 1
        return [float("nan") if self.left < 0 else float(len(e.text)) for e in episodes]


class Rising(Scorer):
    """A scorer whose value rises with every text it sees."""

    calls = 0

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        type(self).calls += len(episodes)
        return [type(self).calls + 0.1 * i for i in range(len(episodes))]


if "TinySummary-v0" not in gym.registry:
    llm_gym.register("TinySummary-v0", "tiny_task:TinySummary")
