"""A task of your own: its prompt, its data, who judges.

python examples/own_task.py
"""

import json
from pathlib import Path

import gymnasium as gym

import llm_gym
from llm_gym.tasks import Task


class Headline(Task):
    """Write a headline for a report."""

    name = "headline"
    required = ("report",)
    optional = ("headline",)
    source_column = "report"
    reference_column = "headline"
    instruction = "Write a headline of at most eight words for this report."
    feedback = {"grounding": 1.5, "similarity": 4.0, "copying": -1.0, "brevity": {"weight": -2.0, "words": 5}}
    judge = {"chrf": 1.0}
    max_new_tokens = 16


llm_gym.register("Headline-v0", f"{__name__}:Headline")

if __name__ == "__main__":
    rows = [{"id": "a", "report": "Rain closed the lower road at noon. Buses take the bridge until the water falls."}]
    Path("reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = gym.make("Headline-v0", data="reports.jsonl", split="all").unwrapped
    env.reset(seed=0)
    for token in [*env.tokenizer("Flooded road sends buses over the bridge")["input_ids"], env.tokenizer.eos_token_id]:
        _, reward, done, _, info = env.step(token)
    print(f"{info['text']!r} scores {reward:.2f}: {info['parts']}")
