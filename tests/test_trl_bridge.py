"""Environments as prompts and rewards of TRL, by its own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llm_gym  # noqa: F401  (registers the ids)
from agents.evaluate import make_envs
from agents.trl_bridge import trl_dataset, trl_reward
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Scorer
from llm_gym.models.load import load_tokenizer

FEEDBACK = {
    "QuestionAnswering-v0": {"answer": 4.0, "brevity": -1.0},
    "Dialogue-v0": {"goals": 30.0, "brevity": -1.0},
    "Recommendation-v0": {"hits": 6.0, "variety": 1.0},
}


class Hesitant(Scorer):
    """Abstains from texts with an even number of characters."""

    def __call__(self, episodes: Any) -> list[float | None]:
        return [float(len(e.text)) if len(e.text) % 2 else None for e in episodes]


def own_reward(env_id: str, example: str, ids: list[int], **arguments: Any) -> float:
    """What the single environment gives for the tokens, until its turn is over."""
    env = gym.make(env_id, **arguments)
    env.reset(options={"example": example})
    for action in ids:
        _, reward, terminated, _, info = env.step(action)
        if terminated or "score" in info:
            return float(reward)
    raise AssertionError("the turn is not over")


@pytest.mark.parametrize("env_id", FEEDBACK)
def test_a_reward_is_the_environments_own_for_the_same_tokens(env_id: str) -> None:
    arguments = {"tokenizer": "sp-1k", "feedback": FEEDBACK[env_id], "max_new_tokens": 12}
    envs = make_envs(env_id, 1, "train", arguments)
    examples = [example for example in envs.example_ids[:4] for _ in range(3)]
    rng = np.random.default_rng(0)
    completions = [rng.integers(3, 1000, 12).tolist() for _ in examples]  # up to the cap
    for k, example in enumerate(examples):
        if k % 3 == 1:  # what a person wrote, then a stop token and what must not count
            envs.reset(options={"example": example})
            completions[k] = [*envs.encode(0, envs.reference_turn(0))[:11], 2, 5, 6]
        elif k % 3 == 2:  # special tokens within
            completions[k] = [1, *completions[k][:5], 2]
    reward = trl_reward(env_id, **arguments)
    found = reward(None, None, completion_ids=completions, example=examples, topic=["x"] * 12)
    own = [own_reward(env_id, e, ids, **arguments) for e, ids in zip(examples, completions, strict=True)]
    assert found == own and len(set(own)) >= 2
    assert reward(None, None, completion_ids=completions[::-1], example=examples[::-1]) == own[::-1]


def test_a_turn_that_the_trainer_cut_before_the_cap_is_scored_as_cut() -> None:
    reward = trl_reward("Dialogue-v0", tokenizer="sp-1k", feedback={"complete": 1.0})
    names = trl_dataset("Dialogue-v0", tokenizer="sp-1k")["example"][:2]
    dot = load_tokenizer("sp-1k").convert_tokens_to_ids(".")
    assert reward(None, None, completion_ids=[[300, dot], [300, dot, 2]], example=list(names))[0] == 0


def test_an_abstaining_judge_and_tokens_that_are_none_give_none() -> None:
    reward = trl_reward("TextSummary-v0", tokenizer="sp-1k", feedback={f"{__name__}:Hesitant": 1.0})
    names = list(trl_dataset("TextSummary-v0", tokenizer="sp-1k")["example"][:2])
    a, b = load_tokenizer("sp-1k").convert_tokens_to_ids(["a", "b"])
    assert reward(None, None, completion_ids=[[a, b, 2], [a, 2]], example=names) == [None, 1.0]
    assert reward(None, None, completion_ids=[[a, 1000, 2], [a, 2]], example=names) == [None, 1.0]
    assert reward(None, None, completion_ids=[[], [a, 2]], example=names) == [None, 1.0]
    with pytest.raises(LLMGymError, match="'nobody' is not in this split"):
        reward(None, None, completion_ids=[[a]], example=["nobody"])


@pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("env_id", ["QuestionAnswering-v0", "Dialogue-v0"])
def test_trl_trains_on_the_same_prompts_and_rewards(
    env_id: str, template: str, tiny_model: str, tmp_path: Path
) -> None:
    from trl import GRPOConfig, GRPOTrainer

    arguments: dict[str, Any] = {"tokenizer": tiny_model, "template": template, "max_new_tokens": 6}
    arguments |= {"feedback": FEEDBACK[env_id], "max_prompt_tokens": 480}
    dataset, given = trl_dataset(env_id, **arguments), trl_reward(env_id, **arguments)
    calls: list[Any] = []

    def reward(**columns: Any) -> list[float | None]:
        calls.append((columns["example"], columns["completion_ids"], given(**columns)))
        return calls[-1][2]

    config = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, max_steps=1, report_to="none", save_strategy="no",
        logging_steps=1,
    )  # fmt: skip
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.padding_side = "left"
    trainer = GRPOTrainer(tiny_model, reward, config, dataset, processing_class=tokenizer)
    envs = make_envs(env_id, 1, "train", arguments)
    for row in dataset.select(range(3)):
        envs.reset(options={"example": row["example"]})
        assert (
            trainer._tokenize_prompts([row["prompt"]])[0][0]
            == envs.observation()["input_ids"][0][: envs.length(0)].tolist()
        )
    trainer.train()
    (examples, written, rewards), *_ = calls
    assert len(rewards) == 4 and len(set(examples)) == 2
    own = [
        None if max(ids) >= len(tokenizer) else own_reward(env_id, e, ids, **arguments)
        for e, ids in zip(examples, written, strict=True)
    ]
    assert rewards == own and any(value is not None for value in own)
    assert f"rewards/{reward.__name__}/mean" in trainer.state.log_history[0]
