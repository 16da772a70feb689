"""Every algorithm climbs the toy tasks, from random weights, on fixed seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import A2C, DPO, DQN, GRPO, PPO, REINFORCE, RLOO, SFT, Distillation, LLMPolicy, make_vec_env
from agents.evaluate import make_envs
from agents.rollout import play
from llm_gym.episode import Episode
from llm_gym.tasks.ladder import LADDER, InPlace, RightLength
from test_grpo import collect

PREFIX = "llm_gym.tasks.ladder:"
PLAIN: dict[Any, dict[str, Any]] = {
    REINFORCE: {},
    RLOO: {},
    A2C: {},
    PPO: {"normalize_advantage": False, "n_minibatches": 1},
    GRPO: {"scale_rewards": False},
}
SCALED: dict[Any, dict[str, Any]] = {
    REINFORCE: {"normalize_advantage": True},
    RLOO: {"normalize_advantage": True},
    A2C: {"normalize_advantage": True},
    PPO: {"n_epochs": 1, "n_minibatches": 1},
    GRPO: {},
}
RUNGS = {  # updates, weight of the entropy bonus, what the first batch is worth at most and the last three on average
    "CopySymbol-v0": (60, 0.05, 0.1, 0.65),
    "Alternate-v0": (25, 0.0, 0.1, 0.22),
    "CountUpwards-v0": (30, 0.0, 0.05, 0.25),
    "ReverseWord-v0": (25, 0.0, 0.15, 0.22),
    "MatchLength-v0": (20, 0.0, 0.32, 0.38),
}


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize("rung", RUNGS)
def test_every_algorithm_climbs(rung: str, cls: Any) -> None:
    """To be right of one prompt at the cost of another is a place to get stuck: copying needs rewards as they are."""
    updates, entropy, first, last = RUNGS[rung]
    env = make_vec_env(PREFIX + rung, n_envs=128, seed=0, tokenizer="tiny-1k", template="plain", split="all")
    options = (PLAIN if entropy else SCALED)[cls]
    algorithm = cls(
        LLMPolicy, env, 2e-3, group_size=32, kl_coef=0.0, ent_coef=entropy, seed=0, device="cpu",
        policy_kwargs={"model": "tiny-1k", "lora": None}, **options,
    )  # fmt: skip
    means = []
    for _ in range(updates):
        collect(algorithm)
        means.append(float(np.mean([e.reward for e in algorithm.episodes])))
        algorithm.train()
    assert means[0] < first
    assert np.mean(means[-3:]) > last


PAIRED = {  # updates, size of a group, beta, and what texts are worth after that at least
    "CopySymbol-v0": (60, 4, 0.5, 0.4),
    "Alternate-v0": (30, 8, 0.1, 0.22),
    "CountUpwards-v0": (25, 8, 0.1, 0.25),
    "ReverseWord-v0": (25, 8, 0.1, 0.22),
    "MatchLength-v0": (15, 8, 0.1, 0.38),
}
IMITATED = {  # what texts are worth after 20 updates at least; a length is no text that could be imitated
    "CopySymbol-v0": 0.9,
    "Alternate-v0": 0.5,
    "CountUpwards-v0": 0.55,
    "ReverseWord-v0": 0.8,
}


def make(cls: Any, rung: str, n_envs: int, **options: Any) -> Any:
    env = make_vec_env(PREFIX + rung, n_envs=n_envs, seed=0, tokenizer="tiny-1k", template="plain", split="all")
    return cls(LLMPolicy, env, 2e-3, seed=0, device="cpu", policy_kwargs={"model": "tiny-1k", "lora": None}, **options)


def worth(algorithm: Any, updates: int) -> float:
    """Return what texts are worth on average after some updates."""
    for _ in range(updates):
        collect(algorithm)
        algorithm.train()
    envs = algorithm._envs()
    episodes = play(algorithm.policy, envs, (envs.example_ids * 64)[:64]) or []
    return float(np.mean([e.reward for e in episodes]))


@pytest.mark.parametrize("rung", RUNGS)
def test_dpo_climbs_on_its_own_answers(rung: str) -> None:
    updates, group_size, beta, last = PAIRED[rung]
    algorithm = make(DPO, rung, 128, group_size=group_size, beta=beta)
    assert worth(algorithm, 0) < RUNGS[rung][2]
    assert worth(algorithm, updates) > last


@pytest.mark.parametrize("rung", IMITATED)
def test_sft_climbs(rung: str) -> None:
    algorithm = make(SFT, rung, 12)
    assert worth(algorithm, 0) < RUNGS[rung][2]
    assert worth(algorithm, 20) > IMITATED[rung]


@pytest.mark.parametrize(("rung", "updates", "last"), [("CopySymbol-v0", 20, 0.9), ("ReverseWord-v0", 35, 0.7)])
def test_distillation_climbs_after_its_teacher(rung: str, updates: int, last: float, tmp_path: Path) -> None:
    """The pupil never sees an answer: the teacher says what it would have written in the pupil's own texts."""
    teacher = make(SFT, rung, 12)
    worth(teacher, 20)
    teacher.policy.save_pretrained(tmp_path)
    assert worth(make(Distillation, rung, 32, teacher=str(tmp_path), beta=0.0), updates) > last


VALUED = {  # updates, what the first batch is worth at most and the last three on average
    "CopySymbol-v0": (40, 0.1, 0.45),
    "CountUpwards-v0": (30, 0.05, 0.1),
    "MatchLength-v0": (12, 0.32, 0.35),
}


@pytest.mark.parametrize("rung", VALUED)
def test_values_of_tokens_climb(rung: str) -> None:
    """Among all tokens: what a random model finds likely holds no answer."""
    updates, first, last = VALUED[rung]
    env = make_vec_env(PREFIX + rung, n_envs=128, seed=0, tokenizer="tiny-1k", template="plain", split="all")
    algorithm = DQN(
        LLMPolicy, env, 2e-3, top_k=None, advantage_scale=0.1, batch_size=128, exploration_initial_eps=1.0, seed=0,
        device="cpu", policy_kwargs={"model": "tiny-1k", "lora": None},
    )  # fmt: skip
    means = []
    for update in range(updates):
        collect(algorithm)
        means.append(float(np.mean([e.reward for e in algorithm.episodes])))
        algorithm._current_progress_remaining = 1 - (update + 1) / updates
        algorithm.train()
    assert means[0] < first
    assert np.mean(means[-3:]) > last


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
