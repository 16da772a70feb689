"""Every algorithm climbs the toy tasks, from random weights, on fixed seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents import A2C, GRPO, PPO, REINFORCE, RLOO, LLMPolicy, make_vec_env
from agents.evaluate import make_envs
from llm_gym.episode import Episode
from llm_gym.tasks.ladder import LADDER, InPlace, RightLength
from test_grpo import collect

PREFIX = "llm_gym.tasks.ladder:"
OPTIONS: dict[Any, dict[str, Any]] = {
    REINFORCE: {},
    RLOO: {},
    A2C: {},
    PPO: {"normalize_advantage": False, "n_minibatches": 1},
    GRPO: {"scale_rewards": False},
}
RUNGS = {  # updates, and what the last five are worth on average; before training all are worth less than .35
    "CopySymbol-v0": (70, 0.9),
    "Alternate-v0": (60, 0.5),
    "CountUpwards-v0": (60, 0.5),
    "ReverseWord-v0": (60, 0.4),
    "MatchLength-v0": (50, 0.55),
}


@pytest.mark.parametrize("cls", OPTIONS)
@pytest.mark.parametrize("rung", RUNGS)
def test_every_algorithm_climbs(rung: str, cls: Any) -> None:
    updates, threshold = RUNGS[rung]
    env = make_vec_env(PREFIX + rung, n_envs=128, seed=0, tokenizer="tiny-1k", template="plain", split="all")
    algorithm = cls(
        LLMPolicy, env, 2e-3, group_size=32, kl_coef=0.0, ent_coef=0.05, seed=0, device="cpu",
        policy_kwargs={"model": "tiny-1k", "lora": None}, **OPTIONS[cls],
    )  # fmt: skip
    means = []
    for _ in range(updates):
        collect(algorithm)
        means.append(float(np.mean([e.reward for e in algorithm.episodes])))
        algorithm.train()
    assert means[0] < 0.35
    assert np.mean(means[-5:]) > threshold


def episode(text: str, answer: str) -> Episode:
    return Episode({"id": "a", "given": "", "answer": answer}, source="", text=text)


def test_the_answer_alone_is_worth_one() -> None:
    score = InPlace("taso")
    texts = ("tatata", "t a t a t a", "tatatat", "atatat", "xx", "")
    values = score([episode(text, "tatata") for text in texts])
    assert values[:2] == [1.0, 1.0] and values[2] < 1
    assert values[3:] == pytest.approx([0.2, 0.0, 0.0])
    assert RightLength()([episode(text, "4") for text in ("stop", "s t o p", "to", "")]) == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("rung", LADDER)
def test_answers_fit_into_the_cap_and_are_worth_one(rung: str) -> None:
    if rung == "MatchLength-v0":
        pytest.skip("its answer is a length, no text")
    arguments = {"tokenizer": "tiny-1k", "template": "plain"}
    envs = make_envs(PREFIX + rung, 4, "all", arguments)
    for example in envs.examples:
        ids = [envs.tokenizer.convert_tokens_to_ids(c) for c in example["answer"]]
        assert len(ids) <= envs.max_new_tokens
        assert envs.feedback([envs.task.episode(example, envs.tokenizer.decode(ids).strip())])[0].value == 1.0
