"""S8: on a GPU, in bf16, random weights of two shapes: a rollout against `generate`, a GRPO step against TRL."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_gym.models.load import load_tokenizer
from speed_rows.common import MODEL, against, make_envs, make_policy, seconds
from speed_rows.decoding import generate
from speed_rows.grpo import grpo_step

SHAPES: dict[str, dict[str, Any]] = {
    "135M": dict(hidden=576, layers=30, heads=9, groups=3, inner=1536),  # SmolLM2-135M
    "1.5B": dict(hidden=1536, layers=28, heads=12, groups=2, inner=8960),  # Qwen2.5-1.5B, with SmolLM2's vocabulary
}
ROWS, PROMPT, NEW = 32, 128, 32


def rollout(repeat: int, shape: str) -> dict[str, Any]:
    """32 different prompts, 32 tokens each, by whole turns; and the share of memory bandwidth that a step reaches."""
    what = f"{shape}, bf16 on a GPU: {ROWS} prompts of {PROMPT} tokens, {NEW} new each, seconds against generate"
    if not torch.cuda.is_available():
        return {"what": f"{what}: not measured, there is no CUDA device"}
    with tempfile.TemporaryDirectory() as folder:
        name = write_model(Path(folder), shape)
        envs = make_envs(ROWS, PROMPT, NEW + 1, documents=ROWS)
        policy = make_policy(envs, name).to("cuda")
        policy._stop_ids = []
        envs.reset(options={"example": envs.example_ids})
        observation = envs.observation()

        def write(tokens: int) -> None:
            policy.forget()
            policy.write(observation, np.arange(ROWS), tokens, deterministic=True)

        mine = seconds(lambda: write(NEW), repeat)
        step = (np.median(mine) - np.median(seconds(lambda: write(2), repeat))) / (NEW - 2)
        read = sum(p.numel() * p.element_size() for p in policy.lm.parameters())
        peak = torch.cuda.max_memory_allocated()
        others = seconds(generate(envs, envs.example_ids, np.full(ROWS, NEW), name, "cuda"), repeat)
        return against(
            what,
            mine,
            others,
            **{
                "a step, ms": round(1e3 * float(step), 2),
                "share of the memory's bandwidth": round(float(read / step / _bandwidth()), 2),
                "peak memory, GB": round(peak / 1e9, 1),
                "device": torch.cuda.get_device_name(),
            },
        )


def step(repeat: int, shape: str) -> dict[str, Any]:
    """A whole GRPO step, as S5."""
    if not torch.cuda.is_available():
        return {"what": f"{shape}, bf16 on a GPU: a GRPO step against TRL's: not measured, there is no CUDA device"}
    with tempfile.TemporaryDirectory() as folder:
        return grpo_step(repeat, write_model(Path(folder), shape))


def write_model(folder: Path, shape: str) -> str:
    """Write a model of a shape with random weights, and return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes, tokenizer = SHAPES[shape], load_tokenizer(MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["groups"],
        intermediate_size=sizes["inner"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _bandwidth() -> float:
    """Return the bytes a second that a copy of 2 GB reads and writes."""
    source = torch.zeros(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            target.copy_(source)
        torch.cuda.synchronize()
    return 10 * 2 * source.numel() * source.element_size() / (time.perf_counter() - started)
