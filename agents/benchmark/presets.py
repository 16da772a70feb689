"""Benchmarks by name: how much there is to run, from minutes to days."""

from __future__ import annotations

from typing import Any

from agents.algorithms import ALGORITHMS
from llm_gym.registration import ENVIRONMENTS

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "agents": ("random", "greedy", "best-of-4", "grpo", "rloo"),
        "envs": ("llm_gym.tasks.ladder:CopySymbol-v0", "llm_gym.tasks.ladder:ReverseWord-v0"),
        "seeds": 2,
        "policy": "tiny-1k",
        "tokens": 8_000,
    },
    "cpu": {
        "agents": ("greedy", "best-of-4", "grpo", "rloo"),
        "envs": ("TextSummary-v0", "SentimentMonitoring-v0"),
        "seeds": 3,
        "policy": "smollm2-135m",
        "tokens": 8_000,
    },
    "full": {
        # Distillation wants to be told of a teacher, which no preset can know.
        "agents": ("random", "greedy", "best-of-4", *(algo for algo in ALGORITHMS if algo != "distillation")),
        "envs": tuple(ENVIRONMENTS),
        "seeds": 5,
        "policy": "smollm2-135m",
        "minutes": 30.0,
    },
}
"""What `llm-gym benchmark --preset` takes: a small random model on toy tasks; two tasks on two cores; everything."""
