"""Environments of another package: summaries whose second judge needs no model, and constrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

import llm_gym
from llm_gym.choices import Choices
from llm_gym.episode import Episode
from llm_gym.feedback import Scorer
from llm_gym.tasks.summary import TextSummary


class TinySummary(TextSummary):
    """Summarise a document, tiny."""

    feedback = {"brevity": -1.0, "repetition": {"weight": -0.5}}
    judge = {"chrf": 0.5, "key_facts": 0.5}
    max_prompt_tokens = 200
    max_new_tokens = 12


class TinyAnswer(TinySummary):
    """Summarise a document in the words of its reference, which training may read."""

    feedback = {"chrf": 1.0}
    judge = {"key_facts": 0.5, "chrf": 0.5}
    verifiable = True


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


class Shy(Scorer):
    """Abstains from some examples."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [None if e.example["id"] in self.ids else float(len(e.text)) for e in episodes]


COLOURS = ("red", "green", "greenish", "dark red", "dark blue", "grey")


class Colours(TinySummary):
    """Name up to three colours that the document does not begin with; in `free` documents, write what you like."""

    worst = -9.0

    def choices(self, example: dict[str, Any], turns: list[dict[str, str]]) -> Choices | None:
        first = example["document"].split()[0]
        return None if first == "free" else Choices(COLOURS, 3, frozenset({first}))


class ColourTalk(TinySummary):
    """Name a colour, and another one once it was answered."""

    worst = -9.0
    max_turns = 2
    max_reply_tokens = 24

    def choices(self, example: dict[str, Any], turns: list[dict[str, str]]) -> Choices | None:
        said = frozenset(turn["text"] for turn in turns if turn["role"] == "agent")
        return Choices(COLOURS, 1, said)

    def reply(self, example: dict[str, Any], turns: list[dict[str, str]]) -> str | None:
        return "And another one?" if len(turns) == 1 else None


for env_id, task in {
    "TinySummary-v0": TinySummary,
    "TinyAnswer-v0": TinyAnswer,
    "Colours-v0": Colours,
    "ColourTalk-v0": ColourTalk,
}.items():
    if env_id not in gym.registry:
        llm_gym.register(env_id, f"tiny_task:{task.__name__}")
