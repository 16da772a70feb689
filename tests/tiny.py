"""What the tests of `agents` share: small environments, perturbed policies, and the naive way to run a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import LLMPolicy, make_vec_env
from llm_gym.episode import Episode
from llm_gym.feedback import Scorer

WORDS = (
    "the council met to talk about a new bridge over river rain fell all night and road was closed until noon".split()
)
RULES = {"brevity": -1.0, "repetition": -1.0}


class LetterShare(Scorer):
    """Share of the letter e among the characters: a reward that anything can learn."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        return [e.text.lower().count("e") / max(1, len(e.text)) for e in episodes]


class Picky(Scorer):
    """Abstains from some documents."""

    refused: set[str] = set()

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [None if e.example["id"] in self.refused else e.text.count("e") / max(1, len(e.text)) for e in episodes]


def write_data(folder: Path, count: int = 6) -> str:
    """Write documents of 2, 4, 6, ... words, so that prompts differ in length."""
    path = folder / "data.jsonl"
    rows = [{"id": f"doc-{i}", "document": " ".join(WORDS[i : i + 2 + 2 * i])} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text_envs(model: str, folder: Path, rows: int, **kwargs: Any) -> Any:
    """Return the `TextVectorEnv` inside of `make_env`, whose texts have at most 20 tokens."""
    return make_env(model, folder, n_envs=rows, **{"max_new_tokens": 20, **kwargs}).unwrapped.envs.unwrapped


def ragged_model(model: str, folder: Path, share: int = 5) -> str:
    """Copy a model with every `share`-th token declared a stop token, so that random texts end at random times."""
    target = folder / "ragged"
    shutil.copytree(model, target)
    config = target / "generation_config.json"
    settings = json.loads(config.read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(10, 300, share)]
    config.write_text(json.dumps(settings))
    return str(target)


def exact_model(ragged: str) -> str:
    """Give a ragged model as many logits as its tokenizer has tokens: TRL does not cut off those beyond."""
    from transformers import AutoModelForCausalLM

    from llm_gym.models.load import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(ragged)
    stops = model.generation_config.eos_token_id
    model.resize_token_embeddings(len(load_tokenizer(ragged)))
    model.generation_config.eos_token_id = stops
    model.save_pretrained(ragged)
    return ragged


def make_env(model: str, folder: Path, n_envs: int = 3, seed: int | None = 0, **kwargs: Any) -> Any:
    """Return a small summary environment as SB3's."""
    arguments = {
        "tokenizer": model,
        "data": write_data(folder),
        "split": "all",
        "feedback": RULES,
        "instruction": "Sum up:",
        "max_prompt_tokens": 64,
        "max_new_tokens": 6,
    }
    return make_vec_env("TextSummary-v0", n_envs=n_envs, seed=seed, **{**arguments, **kwargs})


def make_policy(env: Any, model: str, seed: int = 0, **kwargs: Any) -> LLMPolicy:
    """Return a perturbed policy for `env`."""
    torch.manual_seed(seed)
    arguments = {"model": model, "lora": 4, **kwargs}
    policy = LLMPolicy(env.observation_space, env.action_space, lambda _: 1e-2, **arguments)
    perturb(policy)
    return policy


def perturb(policy: Any, seed: int = 7, scale: float = 0.1) -> None:
    """Move every trained weight, so that adapters and value head do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=generator))


def tensors(obs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return an observation as SB3 hands it to a policy."""
    return {key: torch.as_tensor(value) for key, value in obs.items()}


def naive(policy: Any, obs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities `(N, V)` and values `(N,)`, row by row, without padding or cache."""
    log_probs, values = [], []
    for ids, roles in zip(obs["input_ids"], obs["roles"], strict=True):
        length = int((roles > 0).sum())
        row = torch.as_tensor(ids)[None, :length].long()
        out = policy.lm(input_ids=row, use_cache=False, output_hidden_states=True)
        log_probs.append((out.logits[0, -1, : policy.actions] / policy.temperature).log_softmax(-1))
        values.append(policy.value_head(out.hidden_states[-1][0, -1].detach()))
    return torch.stack(log_probs), torch.cat(values)


def gradients(policy: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the gradients of all trained weights."""
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad and p.grad is not None}


def trained(policy: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the trained weights."""
    return {name: value.clone() for name, value in policy.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Assert that two dicts of tensors agree, and are not all zero."""
    assert left.keys() == right.keys() and left
    assert any(value.abs().max() > 100 * tolerance for value in left.values())
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def run(env: Any, policy: Any, steps: int) -> list[dict[str, np.ndarray]]:
    """Step `env` with sampled actions and return the observations."""
    obs = env.reset()
    seen = []
    for _ in range(steps):
        seen.append(obs)
        with torch.no_grad():
            actions, _, _ = policy(tensors(obs))
        obs, *_ = env.step(actions.numpy())
    return seen
