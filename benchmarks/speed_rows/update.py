"""S2: an update of stock SB3 PPO with either buffer; S7: how much of an update is matrix products."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import configure

from agents import LLMPolicy, SequenceRolloutBuffer
from agents.vec_env import GymVecEnv
from llm_gym.models.packing import Packed, Segment, pack
from speed_rows.common import MODEL, against, make_envs, make_policy, seconds, write_adapter

EPISODES, PROMPT, NEW = 4, 64, 64


class InOrder(DictRolloutBuffer):
    """SB3's buffer, served in the order in which the rollout was collected."""

    def get(self, batch_size: int | None = None) -> Any:
        """Yield the episodes one after the other."""
        order = np.random.permutation
        np.random.permutation = np.arange  # type: ignore[assignment]
        try:
            yield from super().get(batch_size)
        finally:
            np.random.permutation = order


class BothBuffers(SequenceRolloutBuffer):
    """Fills a stock buffer with the same rollout, and serves its own in order too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stock = InOrder(*args, **kwargs)
        super().__init__(*args, **kwargs)
        self._random = type("Order", (), {"permutation": staticmethod(np.arange)})()  # type: ignore[assignment]

    def reset(self) -> None:
        """Empty both."""
        self.stock.reset()
        super().reset()

    def add(self, *args: Any) -> None:
        """Add to both."""
        self.stock.add(*copy.deepcopy(args))
        super().add(*args)

    def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
        """Compute for both."""
        self.stock.compute_returns_and_advantage(*args, **kwargs)
        super().compute_returns_and_advantage(*args, **kwargs)


def stock_ppo(repeat: int) -> dict[str, Any]:
    """Seconds and tokens of one epoch of unmodified PPO on the same rollout, weights and order."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(write_adapter(Path(folder)))
    _, callback = model._setup_learn(EPISODES * NEW)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, NEW)
    buffers = {"ours": model.rollout_buffer, "theirs": model.rollout_buffer.stock}
    done = {name: [_update(model, buffer) for _ in range(repeat)] for name, buffer in buffers.items()}
    ours, theirs = done["ours"][-1], done["theirs"][-1]
    largest = max(g.abs().max().item() for g in theirs["gradients"].values())
    differs = max((theirs["gradients"][n] - g).abs().max().item() for n, g in ours["gradients"].items())
    return against(
        f"stock PPO's update, {EPISODES} episodes of {PROMPT} + {NEW} tokens, batch_size={NEW}: seconds against its "
        "own DictRolloutBuffer",
        [update["seconds"] for update in done["ours"]],
        [update["seconds"] for update in done["theirs"]],
        **{
            "tokens run": [ours["tokens"], theirs["tokens"]],
            "fewer tokens": round(theirs["tokens"] / ours["tokens"], 1),
            "losses differ by": abs(ours["loss"] - theirs["loss"]),
            "gradients differ by, relative": differs / largest,
            "bytes a transition": [_size(buffers["ours"]), _size(buffers["theirs"])],
        },
    )


def _model(adapter: str) -> Any:
    """Return PPO over episodes of 64 tokens each, with an adapter that does something."""
    envs = make_envs(EPISODES, PROMPT, NEW, documents=EPISODES)
    envs._stops[:] = False
    model = PPO(
        LLMPolicy,
        GymVecEnv(envs),
        rollout_buffer_class=BothBuffers,
        n_steps=NEW,
        batch_size=NEW,
        n_epochs=1,
        gamma=1.0,
        learning_rate=1e-5,
        max_grad_norm=1e9,
        seed=0,
        policy_kwargs={"model": MODEL, "lora": 8, "adapter": adapter},
    )
    with torch.no_grad():  # adapters start as zeros; make every gradient flow
        for name, p in model.policy.named_parameters():
            if p.requires_grad and ("lora_B" in name or "value_head" in name):
                p.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    model.set_logger(configure(None, []))
    return model


def _update(model: Any, buffer: Any) -> dict[str, Any]:
    """Let stock `train` go through `buffer` once, then put weights and optimiser back."""
    weights = copy.deepcopy(model.policy.state_dict())
    tokens = [0]
    handle = model.policy.backbone.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: tokens.append(inputs[0].numel())
    )
    model.rollout_buffer = buffer
    started = time.perf_counter()
    model.train()
    taken = time.perf_counter() - started
    handle.remove()
    gradients = {name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None}
    model.policy.load_state_dict(weights)
    model.policy.optimizer.state.clear()
    loss = model.logger.name_to_value["train/loss"]
    return {"tokens": sum(tokens), "seconds": taken, "loss": loss, "gradients": gradients}


def _size(buffer: Any) -> int:
    """Return the bytes that a buffer holds for each transition."""
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    observations = getattr(buffer, "observations", None)
    arrays += list(observations.values()) if isinstance(observations, dict) else []
    arrays += [ids for stretch in getattr(buffer, "_stretches", ()) for ids in stretch.ids]
    return round(sum(array.nbytes for array in arrays) / (EPISODES * NEW))


def share(repeat: int) -> dict[str, Any]:
    """Share of a pass with gradient that is the products of its linear layers and its output layer, and attention."""
    envs = make_envs(1, 160, 32)
    policy = make_policy(envs)
    random = np.random.default_rng(0)
    prompts = random.integers(3, 1000, (4, 160))
    segments = [Segment(p, random.integers(3, 1000, 32), np.ones(32, bool)) for p in prompts for _ in range(8)]
    packed = pack(segments)

    def update() -> None:
        _, log_probs, _ = policy.evaluate_actions(packed, packed.targets)
        log_probs.sum().backward()

    layers = [layer.base_layer for layer in policy.backbone.modules() if hasattr(layer, "base_layer")]
    weight, _ = policy._head()
    hidden, gradients = (torch.randn(packed.tokens, 1536) for _ in range(2))

    def products() -> None:
        with torch.no_grad():
            for layer in layers:
                out, width = layer.weight.shape
                hidden[:, :width] @ layer.weight.T
                gradients[:, :out] @ layer.weight
            for part in hidden[: len(packed.targets), : weight.shape[1]].split(256):
                (part @ weight.T) @ weight

    attention = _attention(policy.lm.config, packed)
    whole, alone, attending = (float(np.median(seconds(run, repeat))) for run in (update, products, attention))
    return {
        "what": "a pass with gradient, 4 prompts of 160 tokens x 8 texts of 32, LoRA on all linear layers",
        "seconds": round(whole, 2),
        "its linear and output layers alone, seconds": round(alone, 2),
        "its attention alone, seconds": round(attending, 2),
        "share of linear and output layers": round(alone / whole, 2),
        "share of matrix products": round((alone + attending) / whole, 2),
    }


def _attention(config: Any, packed: Packed) -> Any:
    """Return a call of the attention of all layers at the shapes of a batch, with gradient."""
    heads = config.num_attention_heads
    shape = (len(packed.input_ids), heads, packed.input_ids.shape[1], config.hidden_size // heads)
    query, keys, values = (torch.randn(shape, requires_grad=True) for _ in range(3))

    def run() -> None:
        for _ in range(config.num_hidden_layers):
            out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=packed.mask)
            torch.autograd.grad(out.sum(), (query, keys, values))

    return run
