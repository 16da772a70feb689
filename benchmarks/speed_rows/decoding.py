"""S3, S4: rollouts against transformers' `generate`; S6: how the cost of a token grows, and with rows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from agents.decoder import PackedLinear
from llm_gym.models.load import load_causal_lm
from speed_rows.common import MODEL, against, make_envs, make_policy, seconds


def equal(repeat: int) -> dict[str, Any]:
    """32 different prompts, 32 tokens each, through `env.step`."""
    envs = make_envs(32, 128, 32, documents=32)
    policy, lengths = make_policy(envs), np.full(32, 32)
    written: list[np.ndarray] = []

    def ours() -> None:
        policy.forget()
        written.clear()
        envs.reset(options={"example": envs.example_ids})
        for _ in range(32):
            written.append(np.stack(policy.act(envs.observation(), np.arange(32), deterministic=True)))
            envs.step(_unstopped(envs, written[-1][0].astype(int)))

    mine, others = seconds(ours, repeat), seconds(generate(envs, envs.example_ids, lengths), repeat)
    tokens, chances = np.stack(written, 2)
    what = "32 prompts of 128 tokens, 32 new each, through env.step: seconds against transformers' generate"
    difference = _difference(envs, tokens[0].astype(int), chances[0], envs.example_ids[0], unstopped=True)
    return against(what, mine, others, **difference)


def ragged(repeat: int) -> dict[str, Any]:
    """4 prompts, 8 texts each, of different lengths; rows that have ended cost us nothing."""
    lengths = np.random.default_rng(3).integers(1, 65, 32)
    envs = make_envs(32, 128, 64, documents=4)
    examples = [name for name in envs.example_ids for _ in range(8)]
    policy = make_policy(envs)
    policy._stop_ids = []  # a text ends when its length says so
    written: list[np.ndarray] = []

    def ours() -> None:
        policy.forget()
        envs.reset(options={"example": examples})
        observation = {**envs.observation(), "tokens_left": lengths[:, None]}
        written[:] = policy.write(observation, np.arange(32), 64, deterministic=True)

    mine, others = seconds(ours, repeat), seconds(generate(envs, examples, lengths), repeat)
    row = int(lengths.argmax())
    tokens, chances = (values[row, : lengths[row]] for values in written)
    what = "4 prompts of 128 tokens, 8 texts each of 1 to 64 tokens: seconds against generate"
    return against(what, mine, others, **_difference(envs, tokens, chances, examples[row]))


def _unstopped(envs: Any, tokens: np.ndarray) -> np.ndarray:
    """Replace stop tokens, so that all texts have the same length on both sides."""
    return np.where(np.isin(tokens, envs.single_action_space.stop_ids), 5, tokens)


def generate(envs: Any, examples: list[str], lengths: np.ndarray, name: str = MODEL, device: str = "cpu") -> Any:
    """Return a call of transformers' `generate` on the same prompts, stopped at the same lengths."""
    model = load_causal_lm(name, device=device)
    envs.reset(options={"example": examples})
    observation = envs.observation()
    sizes = (observation["roles"] > 0).sum(1)
    width, rows = int(sizes.max()), len(sizes)
    ids = torch.zeros(rows, width, dtype=torch.long)
    for row, size in enumerate(sizes):
        ids[row, width - size :] = torch.from_numpy(observation["input_ids"][row, :size].astype(np.int64))
    mask = torch.arange(width)[None] >= width - torch.from_numpy(sizes)[:, None]
    ends = torch.from_numpy(lengths).to(model.device)

    def enough(sequences: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return sequences.shape[1] - width >= ends

    def run() -> None:
        with torch.no_grad():
            model.generate(
                ids.to(model.device),
                attention_mask=mask.long().to(model.device),
                max_new_tokens=int(lengths.max()),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[enough],
            )

    return run


def _difference(
    envs: Any, tokens: np.ndarray, chances: np.ndarray, example: str, unstopped: bool = False
) -> dict[str, float]:
    """Return how far our log-probabilities of a text are from a plain forward pass of it.

    With `unstopped`, others stood in the text for the stop tokens that were chosen.
    """
    envs.reset(options={"example": example})
    prompt = envs.observation()["input_ids"][0, : envs.length(0)]
    model = load_causal_lm(MODEL, device="cpu").eval()
    with torch.no_grad():
        read = _unstopped(envs, tokens) if unstopped else tokens
        whole = torch.from_numpy(np.concatenate([prompt, read]).astype(np.int64))[None]
        logits = model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits[torch.arange(len(tokens)), torch.from_numpy(tokens.astype(np.int64))]
    return {"log-probabilities differ by": float((expected - torch.from_numpy(chances)).abs().max())}


# -------------------------------------------------------------------- growth and share


def growth(repeat: int) -> dict[str, Any]:
    """Milliseconds of a step of 8 rows after 32 and after 512 tokens, with and without attention's own growth."""
    envs = make_envs(8, 128, 600, documents=8)
    policy = make_policy(envs)
    envs.reset(options={"example": envs.example_ids})
    policy._stop_ids = []
    observation = envs.observation()
    cost, attention = {}, {}
    for written in (32, 512):
        policy.write(observation, np.arange(8), written)
        engine = policy._engines["act"]
        cost[written] = _step(engine, np.arange(8), 5 * repeat)
        attention[written] = _attention(engine.cache, 8, 128 + written, policy.lm.config, 5 * repeat)
        policy.forget()
    beyond = (cost[512] - attention[512]) / (cost[32] - attention[32])
    return {
        "what": "a decoding step of 8 rows, milliseconds",
        "after 32 tokens": round(1e3 * cost[32], 1),
        "after 512 tokens": round(1e3 * cost[512], 1),
        "attention alone": [round(1e3 * value, 1) for value in attention.values()],
        "growth beyond attention": round(beyond, 2),
    }


def _step(engine: Any, rows: np.ndarray, repeat: int) -> float:
    """Return the seconds of one more token a row, always the same one."""

    def once() -> None:
        engine.append(rows, np.full(len(rows), 100))
        engine._read[: len(rows)] -= 1

    return float(np.median(seconds(once, repeat)))


def _attention(cache: Any, rows: int, width: int, config: Any, repeat: int) -> float:
    """Return the seconds of one token's attention in all layers, over the keys and values of a cache."""
    heads, dim = config.num_attention_heads, cache.keys[0].shape[-1]
    query = torch.randn(rows, cache.keys[0].shape[1], heads // cache.keys[0].shape[1], dim)
    mask = torch.zeros(rows, 1, 1, width)

    def once() -> None:
        for keys, values in zip(cache.keys, cache.values, strict=True):
            torch.nn.functional.scaled_dot_product_attention(
                query, keys[:rows, :, :width], values[:rows, :, :width], attn_mask=mask
            )

    return float(np.median(seconds(once, repeat)))


def throughput(repeat: int) -> dict[str, Any]:
    """Tokens a second as rows grow, and the share of a step of 32 rows that is matrix products."""
    rates = {}
    for rows in (1, 8, 32, 64):
        envs = make_envs(rows, 128, 64, documents=rows)
        policy = make_policy(envs)
        policy._stop_ids = []
        envs.reset(options={"example": envs.example_ids})
        observation = envs.observation()
        policy.write(observation, np.arange(rows), 2)
        started = time.perf_counter()
        policy.write(observation, np.arange(rows), 33)
        rates[f"{rows} rows"] = round(33 * rows / (time.perf_counter() - started))
        if rows == 32:
            share = _share_of_products(policy, rows, 33 * rows / rates["32 rows"] / 33, repeat)
    return {"what": "decoding after 128 tokens, tokens/s", **rates, **share}


def _share_of_products(policy: Any, rows: int, step: float, repeat: int) -> dict[str, Any]:
    decoder, engine = policy._decoder, policy._engines["act"]
    layers = [(packed, layer.base_layer.in_features) for layer, packed in decoder._layers]
    layers.append((decoder.head, policy.lm.config.hidden_size))
    inputs = {width: torch.randn(rows, width) for _, width in layers}

    def products() -> None:
        with torch.no_grad():
            for packed, width in layers:
                packed(inputs[width])

    alone = float(np.median(seconds(products, 5 * repeat)))
    attention = _attention(engine.cache, rows, 160, policy.lm.config, 5 * repeat)
    return {
        "a step of 32 rows, ms": round(1e3 * step, 1),
        "its linear layers alone, ms": round(1e3 * alone, 1),
        "its attention alone, ms": round(1e3 * attention, 1),
        "share of matrix products": round((alone + attention) / step, 2),
    }


def linear(repeat: int) -> dict[str, Any]:
    """All linear layers of the model once, for 16 rows: packed weights against torch's own `linear`."""
    model = load_causal_lm(MODEL, device="cpu")
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    packed = []
    for layer in layers:
        packed.append(PackedLinear())
        packed[-1].put(layer.weight, layer.bias)
    inputs = {width: torch.randn(16, width) for width in {layer.in_features for layer in layers}}

    def run(modules: list[Any]) -> None:
        with torch.no_grad():
            for layer, module in zip(layers, modules, strict=True):
                module(inputs[layer.in_features])

    what = "all linear layers, 16 rows: seconds against torch's own"
    return against(what, seconds(lambda: run(packed), repeat), seconds(lambda: run(layers), repeat))
