"""A task of another field, whose answers are few: marking pupils' homework.

PYTHONPATH=examples llm-gym train custom_task:HomeworkMarking-v0 --data homework.jsonl
"""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym

import llm_gym
from llm_gym.choices import Choices
from llm_gym.tasks import Task


class HomeworkMarking(Task):
    """Mark a pupil's answer."""

    name = "homework_marking"
    required = ("question", "answer", "mark")
    source_column, reference_column, verifiable = "answer", "mark", True
    instruction = "A teacher asked: {question} Is this pupil's answer wrong, half right or right?"
    feedback = judge = {"exact": {"weight": 1.0}}
    max_new_tokens = 8

    def choices(self, example: dict[str, Any], turns: list[dict[str, str]]) -> Choices:
        """Return the marks; nothing else can be written."""
        return Choices(("wrong", "half right", "right"))


if "HomeworkMarking-v0" not in gym.registry:
    llm_gym.register("HomeworkMarking-v0", "custom_task:HomeworkMarking")

if __name__ == "__main__":
    rows = [
        {"question": "Why is the sea salt?", "answer": "Rivers wash salt out of rocks.", "mark": "right"},
        {"question": "Why is the sky blue?", "answer": "It mirrors the sea.", "mark": "wrong"},
        {"question": "Why do leaves fall?", "answer": "Because it is cold.", "mark": "half right"},
    ]
    Path("homework.jsonl").write_text("".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows)))
    env = gym.make("HomeworkMarking-v0", data="homework.jsonl", split="all").unwrapped
    env.reset(options={"example": "0"})
    for token in [*env.tokenizer("right")["input_ids"], env.tokenizer.eos_token_id]:
        _, reward, done, _, info = env.step(token)
    print(f"{info['text']!r} scores {reward:.2f}; legal at first: {int(env.reset()[1]['action_mask'].sum())} tokens")
