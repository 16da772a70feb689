"""S5: a whole GRPO step against TRL's `GRPOTrainer`, each side in a process of its own."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import GRPO, LLMPolicy, make_vec_env
from llm_gym.episode import Episode
from llm_gym.feedback import Scorer
from llm_gym.models.load import load_causal_lm, load_tokenizer
from speed_rows.common import MODEL, against, write_adapter, write_documents

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 4, 8, 160, 32
LEARNING_RATE = 1e-5
WARM_UP = 1
CUDA = torch.cuda.is_available()


class Letters(Scorer):
    """Share of the letter e: a reward that costs nothing, the same for both."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the shares."""
        return [share(e.text) for e in episodes]


def share(text: str) -> float:
    """Return the share of the letter e among the characters."""
    return text.count("e") / max(1, len(text))


def grpo_step(repeat: int, model: str = MODEL) -> dict[str, Any]:
    """Seconds a sample of a whole step: writing, reward, update."""
    sides = {side: _in_a_process(side, repeat, model) for side in SIDES}
    ours, theirs = sides["ours"], sides["theirs"]
    seconds = [[value / (PROMPTS * GROUP) for value in side["seconds"]] for side in (ours, theirs)]
    return against(
        f"GRPO step, {PROMPTS} prompts of {PROMPT_TOKENS} tokens x {GROUP} texts of at most {NEW_TOKENS}: seconds a "
        "sample against TRL's GRPOTrainer",
        *seconds,
        **{
            "tokens a step": [round(float(np.mean(side["tokens"]))) for side in (ours, theirs)],
            "peak memory, GB": [round(side["peak_gb"], 1) for side in (ours, theirs)],
            "memory ratio": round(ours["peak_gb"] / theirs["peak_gb"], 2),
            "gradients differ by, relative": sides["compare"]["gradient"],
        },
    )


def _in_a_process(side: str, repeat: int, model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "speed_rows.grpo", side, str(repeat), model]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _envs(folder: Path) -> Any:
    return make_vec_env(
        "TextSummary-v0",
        n_envs=PROMPTS * GROUP,
        data=write_documents(folder, 32),
        split="all",
        max_prompt_tokens=PROMPT_TOKENS,
        max_new_tokens=NEW_TOKENS,
        feedback={"speed_rows.grpo:Letters": 1.0},
    )


def _algorithm(folder: Path, model: str) -> GRPO:
    return GRPO(
        LLMPolicy,
        _envs(folder),
        learning_rate=LEARNING_RATE,
        group_size=GROUP,
        kl_coef=0.0,
        token_coef=0.0,
        seed=0,
        policy_kwargs={"model": model, "lora": 8, "adapter": write_adapter(folder / "adapter", model)},
    )


def _ours(folder: Path, repeat: int, model: str) -> dict[str, Any]:
    algorithm = _algorithm(folder, model)
    _, callback = algorithm._setup_learn(10**9)
    times, tokens = [time.perf_counter()], []
    for _ in range(WARM_UP + repeat):
        algorithm.collect(callback)
        algorithm.train()
        times.append(time.perf_counter())
        tokens.append(sum(int(e.agent_mask.sum()) for e in algorithm.episodes))
    return {"seconds": np.diff(times).tolist()[WARM_UP:], "tokens": tokens[WARM_UP:]}


def _trainer(folder: Path, adapter: str, steps: int, model: str) -> Any:
    """Return TRL's trainer over the same prompts, with the settings that are its fastest here."""
    from datasets import Dataset
    from peft import PeftModel
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not CUDA,
        bf16=CUDA,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        max_steps=steps,
        beta=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        disable_dropout=True,
        temperature=1.0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
    )
    envs: Any = _envs(folder).unwrapped
    prompts = []
    for example in envs.envs.unwrapped.example_ids:
        observation, _ = envs.envs.reset(options={"example": example})
        prompts.append(envs.envs.unwrapped.tokenizer.decode(observation["input_ids"][0, :PROMPT_TOKENS]))
    tokenizer = load_tokenizer(MODEL)
    tokenizer.padding_side = "left"
    return GRPOTrainer(
        model=PeftModel.from_pretrained(load_causal_lm(model), adapter, is_trainable=True),
        reward_funcs=lambda completions, **_: [share(text) for text in completions],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


def _theirs(folder: Path, repeat: int, model: str) -> dict[str, Any]:
    from transformers import TrainerCallback

    trainer = _trainer(folder, write_adapter(folder / "adapter", model), WARM_UP + repeat, model)
    times, tokens = [time.perf_counter()], []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())
            tokens.append(trainer._metrics["train"]["completions/mean_length"][-1] * PROMPTS * GROUP)

    trainer.add_callback(Clock())
    trainer.train()
    return {"seconds": np.diff(times).tolist()[WARM_UP:], "tokens": tokens[WARM_UP:]}


def _compare(folder: Path, repeat: int, model: str) -> dict[str, Any]:
    """Return how far the gradients of both losses are apart on one batch, in units of the largest."""
    algorithm = _algorithm(folder, model)
    _, callback = algorithm._setup_learn(10**9)
    algorithm.collect(callback)
    trainer = _trainer(folder, str(algorithm.policy.adapter), 1, model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer._compute_loss(trainer.model, _their_batch(algorithm.episodes, trainer)).backward()
    theirs = {_short(n): p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    algorithm.max_grad_norm = 1e9
    algorithm.train()
    ours = {_short(n): p.grad for n, p in algorithm.policy.lm.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and ours
    largest = max(value.abs().max() for value in theirs.values())
    return {"gradient": float(max((theirs[name] - ours[name]).abs().max() for name in ours) / largest)}


def _their_batch(episodes: list[Episode], trainer: Any) -> dict[str, torch.Tensor]:
    """Return our episodes as TRL's trainer holds its own: prompts padded on the left, completions on the right."""
    pad = trainer.processing_class.pad_token_id
    batch = {}
    for name, column, side in (("prompt", "prompt_ids", "left"), ("completion", "response_ids", "right")):
        rows = [torch.from_numpy(getattr(e, column).astype(np.int64)) for e in episodes]
        padded = [
            torch.nn.utils.rnn.pad_sequence(part, True, value, side)
            for part, value in ((rows, pad), ([torch.ones_like(row) for row in rows], 0))
        ]
        batch[f"{name}_ids"], batch[f"{name}_mask"] = (part.to(trainer.model.device) for part in padded)
    rewards = torch.tensor([e.reward for e in episodes]).view(PROMPTS, GROUP)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    advantages = advantages.flatten().to(trainer.model.device)
    return {**batch, "advantages": advantages, "num_items_in_batch": batch["completion_mask"].sum()}


def _short(name: str) -> str:
    return name[name.index("layers.") :]


SIDES = {"ours": _ours, "theirs": _theirs, "compare": _compare}


def main() -> None:
    """Measure one side and print it as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("repeat", type=int)
    parser.add_argument("model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = SIDES[args.side](Path(folder), args.repeat, args.model)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    peak = torch.cuda.max_memory_allocated() / 1e9 if CUDA else resident
    print(json.dumps({**found, "peak_gb": peak}))


if __name__ == "__main__":
    main()
