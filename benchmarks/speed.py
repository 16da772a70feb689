"""How fast are environment, decoding and linear layers, each against what people use, in one run on one machine?

    python benchmarks/speed.py

Both sides of a row run the same model, prompts and numbers of tokens in float32, one after the other, `--repeat`
times. Printed are medians, ranges and the ratio of the medians; for decoding also the largest difference between the
log-probabilities of our greedy tokens and those that transformers computes for them.
"""

from __future__ import annotations

import argparse
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
from agents.decoder import PackedLinear
from llm_gym.models.load import load_causal_lm, load_tokenizer

MODEL = "smollm2-135m"
RL4LMS = 2256  # steps/s of RL4LMs' TextGenEnv, measured once with a trivial reward, 256-token prompt, 64 steps


def seconds(run: Callable[[], Any], repeat: int) -> list[float]:
    """Return the time of each of `repeat` calls, after one that warms up."""
    run()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


# -------------------------------------------------------------------- environment


def environment(repeat: int) -> dict[str, Any]:
    """Token steps a second of 256 rows with a context of 256 tokens and trivial feedback."""
    rows, prompt, new = 256, 192, 64
    envs = _envs(rows, prompt, new, feedback={"brevity": -1.0}, template="plain")
    actions = np.random.default_rng(0).integers(3, 1000, (new, rows))  # the first ids are special, some of them stop

    def episode() -> None:
        envs.reset(seed=0)
        for step in actions:
            envs.step(step)

    times = seconds(episode, repeat)
    rates = [rows * new / value for value in times]
    return {
        "what": f"environment, {rows} rows, context {prompt + new}: token steps/s against RL4LMs' {RL4LMS}",
        "ours": rates,
        "theirs": [RL4LMS],
        "ratio": float(np.median(rates) / RL4LMS),
    }


def single(repeat: int) -> dict[str, Any]:
    """Token steps a second of one environment through `gym.make`."""
    new = 64
    env = gym.make(
        "TextSummary-v0", max_prompt_tokens=192, max_new_tokens=new, feedback={"brevity": -1.0}, template="plain"
    )
    actions = np.random.default_rng(0).integers(3, 1000, new)

    def episodes() -> None:
        for seed in range(20):
            env.reset(seed=seed)
            for action in actions:
                env.step(int(action))

    rates = [20 * new / value for value in seconds(episodes, repeat)]
    return {
        "what": f"one environment through gym.make: token steps/s against RL4LMs' {RL4LMS}",
        "ours": rates,
        "theirs": [RL4LMS],
        "ratio": float(np.median(rates) / RL4LMS),
    }


def _envs(rows: int, prompt: int, new: int, documents: int | None = None, **kwargs: Any) -> Any:
    """Return a vector environment whose prompts fill the room there is for them."""
    random = np.random.default_rng(1)
    words = "river council paper winter market harbour letter garden engine window teacher station bridge story".split()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "documents.jsonl"
        texts = [" ".join(random.choice(words, 400)) + "." for _ in range(documents or 8)]
        data.write_text("".join(json.dumps({"id": f"d{i}", "document": text}) + "\n" for i, text in enumerate(texts)))
        return gym.make_vec(
            "TextSummary-v0",
            num_envs=rows,
            autoreset_mode="Disabled",
            data=str(data),
            split="all",
            max_prompt_tokens=prompt,
            max_new_tokens=new,
            **kwargs,
        ).unwrapped


# -------------------------------------------------------------------- decoding


def rollout_equal(repeat: int) -> dict[str, Any]:
    """32 different prompts, 32 tokens each, through `env.step`."""
    return _rollout("32 prompts of 128 tokens, 32 new each, through env.step", 32, 1, np.full(32, 32), repeat)


def rollout_ragged(repeat: int) -> dict[str, Any]:
    """4 prompts, 8 texts each, of different lengths; rows that have ended cost us nothing."""
    lengths = np.random.default_rng(3).integers(1, 65, 32)
    return _rollout("4 prompts of 128 tokens, 8 texts each of 1 to 64 tokens", 4, 8, lengths, repeat)


def _rollout(what: str, prompts: int, group: int, lengths: np.ndarray, repeat: int) -> dict[str, Any]:
    rows, new = prompts * group, int(lengths.max())
    envs = _envs(rows, 128, new, documents=prompts, feedback={"brevity": -1.0})
    examples = [name for name in envs.example_ids for _ in range(group)]
    torch.manual_seed(0)
    policy = LLMPolicy(envs.single_observation_space, envs.single_action_space, lambda _: 0.0, model=MODEL)
    stops = list(envs.single_action_space.stop_ids)
    texts: list[list[int]] = [[] for _ in range(rows)]
    chances: list[list[float]] = [[] for _ in range(rows)]

    def ours() -> None:
        policy.forget()
        envs.reset(options={"example": examples})
        for record in (*texts, *chances):
            record.clear()
        for step in range(new):
            running = np.flatnonzero(lengths > step)
            actions, log_probs = policy.act(envs.observation(), running, deterministic=True)
            for row, action, log_prob in zip(running, actions, log_probs, strict=True):
                texts[row].append(int(action))
                chances[row].append(float(log_prob))
            # A text ends when its length says so: another stop token is not one, and the last token is one.
            actions = np.where(np.isin(actions, stops), 5, actions)
            actions[lengths[running] == step + 1] = stops[0]
            everyone = np.zeros(rows, np.int64)
            everyone[running] = actions
            envs.step(everyone)

    model = load_causal_lm(MODEL, device="cpu").eval()
    envs.reset(options={"example": examples})
    observation = envs.observation()
    sizes = (observation["roles"] > 0).sum(1)
    width = int(sizes.max())
    ids = torch.zeros(rows, width, dtype=torch.long)
    for row, size in enumerate(sizes):
        ids[row, width - size :] = torch.from_numpy(observation["input_ids"][row, :size].astype(np.int64))
    mask = torch.arange(width)[None] >= width - torch.from_numpy(sizes)[:, None]
    ends = torch.from_numpy(lengths)

    def enough(sequences: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return sequences.shape[1] - width >= ends

    def theirs() -> None:
        with torch.no_grad():
            model.generate(
                ids,
                attention_mask=mask.long(),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[enough],
            )

    mine, others = seconds(ours, repeat), seconds(theirs, repeat)
    row = int(lengths.argmax())
    played = envs.episodes[row]
    with torch.no_grad():
        whole = torch.from_numpy(np.concatenate([played.prompt_ids, played.response_ids]).astype(np.int64))[None]
        logits = model(whole).logits[0, len(played.prompt_ids) - 1 : -1].log_softmax(-1)
    expected = logits[torch.arange(len(texts[row])), torch.tensor(texts[row])]
    return {
        "what": f"{what}: seconds against transformers' generate",
        "ours": mine,
        "theirs": others,
        "ratio": float(np.median(others) / np.median(mine)),
        "difference": float((expected - torch.tensor(chances[row])).abs().max()),
    }


# -------------------------------------------------------------------- linear layers


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

    mine, others = seconds(lambda: run(packed), repeat), seconds(lambda: run(layers), repeat)
    return {
        "what": "all linear layers, 16 rows: seconds against torch's own",
        "ours": mine,
        "theirs": others,
        "ratio": float(np.median(others) / np.median(mine)),
    }


ROWS = {"S1": environment, "S1-single": single, "S3": rollout_equal, "S4": rollout_ragged, "linear": linear}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, nargs="*", help="rows to measure; all without it")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    load_tokenizer(MODEL)
    measured = {name: ROWS[name](args.repeat) for name in args.only or ROWS}
    if args.json:
        print(json.dumps(measured))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| | what | ours | theirs | ratio |\n|{'---|' * 5}")
    for name, row in measured.items():
        what = row["what"]
        if "difference" in row:
            what += f" (log-probabilities differ by {row['difference']:.1e})"
        print(f"| {name} | {what} | {_span(row['ours'])} | {_span(row['theirs'])} | {row['ratio']:.2f} |")


def _span(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:,.4g}"
    return f"{np.median(values):,.4g} ({min(values):,.4g} to {max(values):,.4g})"


if __name__ == "__main__":
    main()
