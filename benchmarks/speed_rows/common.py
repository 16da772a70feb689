"""What the rows share: the model, environments of a given size, a policy, and a clock."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents import LLMPolicy
from llm_gym.models.load import load_causal_lm

MODEL = "smollm2-135m"
WORDS = "river council paper winter market harbour letter garden engine window teacher station bridge story".split()
TRIVIAL = {"brevity": -1.0}


def write_documents(folder: Path, count: int) -> str:
    """Write documents of 400 words, which fill any prompt, and return the file."""
    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(random.choice(WORDS, 400)) + "." for _ in range(count)]
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "document": text}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def write_adapter(folder: Path, model: str = MODEL) -> str:
    """Write an adapter for both sides to begin with, rank 8 on the query and value layers, and return its folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_causal_lm(model, device="cpu"), config).save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


def make_envs(rows: int, prompt: int, new: int, documents: int | None = None, **kwargs: Any) -> Any:
    """Return a vector environment whose prompts fill the room there is for them."""
    with tempfile.TemporaryDirectory() as folder:
        return gym.make_vec(
            "TextSummary-v0",
            num_envs=rows,
            autoreset_mode="Disabled",
            data=write_documents(Path(folder), documents or 8),
            split="all",
            max_prompt_tokens=prompt,
            max_new_tokens=new,
            feedback=TRIVIAL,
            **kwargs,
        ).unwrapped


def make_policy(envs: Any, model: str = MODEL) -> LLMPolicy:
    """Return a model with adapters, as training has it."""
    torch.manual_seed(0)
    return LLMPolicy(envs.single_observation_space, envs.single_action_space, lambda _: 0.0, model=model)


def seconds(run: Callable[[], Any], repeat: int) -> list[float]:
    """Return the time of each of `repeat` calls, after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def against(what: str, ours: list[float], theirs: list[float], **notes: Any) -> dict[str, Any]:
    """Return a row of two clocks: the ratio says how many times longer theirs ran."""
    return {"what": what, "ours": ours, "theirs": theirs, "ratio": float(np.median(theirs) / np.median(ours)), **notes}
