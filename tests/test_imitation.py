"""Learning from what others wrote, prefer or would write: SFT, DPO and distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from agents import DPO, GRPO, SFT, Distillation, LLMPolicy
from agents.dpo import best_and_worst
from agents.evaluate import environment_arguments, find_policy, make_envs
from agents.reference import recite
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from test_grpo import collect, logged, naive_log_probs

SGD = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
SHOWN = "Say this: {summary}"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Documents of several lengths with summaries, of which one does not fit into six tokens."""
    summaries = [
        "a bridge",
        "rain fell",
        "the council met to talk about rain and a bridge",
        "new river",
        "noon",
        "road",
    ]
    rows = [
        {"id": f"doc-{i}", "document": " ".join(tiny.WORDS[i : i + 2 + 2 * i]), "summary": summary}
        for i, summary in enumerate(summaries)
    ]
    path = tmp_path / "summaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(cls: Any, model: str, folder: Path, data: str, n_envs: int = 8, moved: bool = True, **kwargs: Any) -> Any:
    """Return an algorithm with plain gradient descent."""
    env_kwargs = {"feedback": {"tiny:LetterShare": 1.0}, **kwargs.pop("env_kwargs", {})}
    env = tiny.make_env(model, folder, n_envs=n_envs, data=data, **env_kwargs)
    policy_kwargs = {"model": model, "lora": 4, **SGD, **kwargs.pop("policy_kwargs", {})}
    arguments = {"seed": 0, "device": "cpu", "learning_rate": 0.1, "max_grad_norm": 1e9, **kwargs}
    algorithm = cls(LLMPolicy, env, policy_kwargs=policy_kwargs, **arguments)
    if moved:
        tiny.perturb(algorithm.policy)
    return algorithm


def gradients_of(algorithm: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    algorithm.policy.zero_grad()
    loss.backward()
    return tiny.gradients(algorithm.policy)


def without_critic(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in gradients.items() if "value_head" not in name}


# -------------------------------------------------------------------- SFT


def test_references_are_recited_as_a_policy_would_have_written_them(tiny_model, tmp_path, data) -> None:
    algorithm = make(SFT, tiny_model, tmp_path, data)
    envs = algorithm._envs()
    for e in recite(envs, envs.example_ids) or []:
        ids = envs.tokenizer(e.reference, add_special_tokens=False)["input_ids"]
        stop = envs.single_action_space.stop_ids[0]
        assert e.response_ids.tolist() == [*ids, stop][: envs.max_new_tokens] and e.agent_mask.all()
        assert e.finish_reason == ("stop" if len(ids) < envs.max_new_tokens else "length")
        assert e.reward is None and e.log_probs is None
    assert {e.finish_reason for e in recite(envs, envs.example_ids) or []} == {"stop", "length"}


@pytest.mark.parametrize("tokens", [1, 10**9])
def test_sft_descends_the_mean_negative_log_likelihood(tiny_model, tmp_path, data, tokens) -> None:
    algorithm = make(SFT, tiny_model, tmp_path, data, tokens_per_pass=tokens)
    collect(algorithm)
    assert algorithm.episodes == [] and len(algorithm.references) == 8
    loss = -torch.cat([naive_log_probs(algorithm.policy, e) for e in algorithm.references]).mean()
    expected = gradients_of(algorithm, loss)
    algorithm.train()
    assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    tiny.assert_same(without_critic(expected), without_critic(tiny.gradients(algorithm.policy)))
    assert algorithm.num_timesteps == sum(len(e.response_ids) for e in algorithm.references)


def test_sft_sees_every_reference_once_before_any_twice(tiny_model, tmp_path, data) -> None:
    algorithm = make(SFT, tiny_model, tmp_path, data, n_envs=3)
    seen = []
    for _ in range(4):
        collect(algorithm)
        seen += [e.example["id"] for e in algorithm.references]
    assert set(seen[:6]) == set(seen[6:]) == {f"doc-{i}" for i in range(6)}


def test_sft_without_references_says_what_is_missing(tiny_model, tmp_path) -> None:
    algorithm = make(SFT, tiny_model, tmp_path, tiny.write_data(tmp_path))
    with pytest.raises(LLMGymError, match="the data has no references"):
        collect(algorithm)


def test_sft_learns_the_turns_of_a_conversation(tiny_model) -> None:
    env = tiny.make_vec_env("Dialogue-v0", n_envs=4, seed=0, tokenizer=tiny_model, max_prompt_tokens=700,
                            max_new_tokens=8, feedback={"brevity": -1.0})  # fmt: skip
    algorithm = SFT(LLMPolicy, env, 1e-2, seed=0, device="cpu", policy_kwargs={"model": tiny_model, "lora": 2})
    losses = []
    for _ in range(3):
        collect(algorithm)
        algorithm._queue = []
        algorithm._order = np.random.default_rng(0)
        algorithm.train()
        losses.append(logged(algorithm)["loss"])
    assert all(sum(turn["role"] == "agent" for turn in e.turns) > 1 for e in algorithm.references)
    assert not any(e.agent_mask.all() for e in algorithm.references)
    assert losses[0] > losses[1] > losses[2]


# -------------------------------------------------------------------- DPO


def episode(reward: float, number: int = 0) -> Episode:
    return Episode({"id": f"a{number}"}, source="", text=str(number), reward=reward)


def test_the_best_and_the_worst_of_a_group_are_a_pair_and_equals_are_none() -> None:
    rewards = [1.0, 3.0, 2.0, 5.0, 5.0, 5.0]
    found = best_and_worst([episode(reward, i) for i, reward in enumerate(rewards)], 3)
    assert [e.text for e in found] == ["1", "0"]


def naive_dpo(algorithm: Any, texts: list[Episode]) -> torch.Tensor:
    """By the book: Rafailov et al. 2023."""
    ratios = []
    for e in texts:
        with torch.no_grad(), algorithm.policy.reference():
            reference = naive_log_probs(algorithm.policy, e).sum()
        ratios.append(naive_log_probs(algorithm.policy, e).sum() - reference)
    margins = torch.stack([better - worse for better, worse in zip(ratios[::2], ratios[1::2], strict=True)])
    return -functional.logsigmoid(algorithm.beta * margins).mean()


@pytest.mark.parametrize("tokens", [1, 90, 10**9])
def test_dpo_descends_its_loss_however_pairs_are_packed(tiny_model, tmp_path, data, tokens) -> None:
    algorithm = make(DPO, tiny_model, tmp_path, data, n_envs=16, beta=0.7, tokens_per_pass=tokens)
    collect(algorithm)
    loss = naive_dpo(algorithm, algorithm._compared())
    expected = gradients_of(algorithm, loss)
    algorithm.train()
    assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert 0 < logged(algorithm)["pairs"] <= 4 and logged(algorithm)["kl"] > 0
    tiny.assert_same(without_critic(expected), without_critic(tiny.gradients(algorithm.policy)))


def test_dpo_makes_the_better_text_likelier_than_the_worse(tiny_model, tmp_path, data) -> None:
    algorithm = make(DPO, tiny_model, tmp_path, data, beta=0.5)
    collect(algorithm)
    for _ in range(4):
        algorithm.train()
    assert logged(algorithm)["accuracy"] == 1 and logged(algorithm)["loss"] < np.log(2)
    assert logged(algorithm)["chosen_reward"] > logged(algorithm)["rejected_reward"]


def test_where_all_are_equal_dpo_learns_nothing(tiny_model, tmp_path, data) -> None:
    algorithm = make(DPO, tiny_model, tmp_path, data)
    before = tiny.trained(algorithm.policy)
    collect(algorithm)
    for e in algorithm.episodes:
        e.reward = 0.5
    algorithm.train()
    assert logged(algorithm) == {"pairs": 0}
    assert all(torch.equal(value, before[name]) for name, value in algorithm.policy.state_dict().items())


def pairs_file(folder: Path, data: str, **changes: Any) -> str:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    pairs = [
        {
            "id": row["id"],
            "source": row["document"],
            "chosen": f"rain {i}",
            "rejected": "noon",
            "margin": 1.0,
            **changes,
        }
        for i, row in enumerate(rows)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


def test_dpo_takes_pairs_from_a_file(tiny_model, tmp_path, data) -> None:
    algorithm = make(DPO, tiny_model, tmp_path, data, n_envs=4, pairs=pairs_file(tmp_path, data))
    seen = []
    for _ in range(3):
        collect(algorithm)
        texts = algorithm._compared()
        assert algorithm.episodes == [] and len(texts) == 4
        for better, worse in zip(texts[::2], texts[1::2], strict=True):
            assert better.example == worse.example and worse.text == "noon"
            assert better.text == f"rain {better.example['id'][4:]}" and better.finish_reason == "stop"
            seen.append(better.example["id"])
        loss = naive_dpo(algorithm, texts)
        algorithm.train()
        assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5) and "kl" not in logged(algorithm)
    assert len(set(seen)) == 6


def test_pairs_that_do_not_fit_are_errors(tiny_model, tmp_path, data) -> None:
    for changes, message in (
        ({"id": "elsewhere"}, "is about 'elsewhere', which is no training example here"),
        ({"source": "another"}, "which is no training example here or has another source"),
        ({"chosen": None}, "column 'chosen' must be a string"),
    ):
        with pytest.raises(LLMGymError, match=message):
            make(DPO, tiny_model, tmp_path, data, pairs=pairs_file(tmp_path, data, **changes))
    for option, message in (
        ({"beta": 0.0}, "beta=0.0 must be positive"),
        ({"group_size": 1}, "group_size=1 .at least 2."),
    ):
        with pytest.raises(LLMGymError, match=message):
            make(DPO, tiny_model, tmp_path, data, **option)


@pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
def test_the_loss_and_gradient_of_dpo_are_those_of_trl(tiny_model, tmp_path, data) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from llm_gym.models.load import load_tokenizer

    exact = tiny.exact_model(tiny.ragged_model(tiny_model, tmp_path))
    algorithm = make(DPO, exact, tmp_path, data, n_envs=16, beta=0.3, moved=False)
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        beta=0.3, disable_dropout=True,
    )  # fmt: skip
    rows = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    theirs = DPOTrainer(
        model=algorithm.policy.lm, args=config, train_dataset=Dataset.from_dict(rows),
        processing_class=load_tokenizer(tiny_model),
    )  # fmt: skip
    tiny.perturb(algorithm.policy)  # only now: TRL's reference is the adapter that it was given
    collect(algorithm)
    texts = algorithm._compared()
    loss = theirs._compute_loss(theirs.model, padded([*texts[::2], *texts[1::2]]), False)
    expected = gradients_of(algorithm, loss)
    algorithm.train()
    assert logged(algorithm)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    found = {name: value for name, value in tiny.gradients(algorithm.policy).items() if name in expected}
    tiny.assert_same(expected, found, 1e-5)


def padded(episodes: list[Episode]) -> dict[str, torch.Tensor]:
    """Return episodes as TRL has them: whole sequences, padded on the right."""
    length = max(len(e.prompt_ids) + len(e.response_ids) for e in episodes)
    shape = (len(episodes), length)
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask", "completion_mask")}
    for row, e in enumerate(episodes):
        ids = np.concatenate([e.prompt_ids, e.response_ids]).astype(np.int64)
        batch["input_ids"][row, : len(ids)] = torch.from_numpy(ids)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["completion_mask"][row, len(e.prompt_ids) : len(ids)] = 1
    return batch


# -------------------------------------------------------------------- distillation


def next_log_probs(policy: Any, prompt: np.ndarray, e: Episode) -> torch.Tensor:
    """Return the distributions at each token of a text behind a prompt, `(T, V)`, by one plain forward."""
    ids = torch.from_numpy(np.concatenate([prompt, e.response_ids]).astype(np.int64))
    logits = policy.lm(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits[:, : policy.actions] / policy.temperature).log_softmax(-1)


@pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_and_gradient_of_distillation_are_those_of_trl(tiny_model, tmp_path, data, beta) -> None:
    """The policy as it was is the teacher, and is shown the reference; TRL gets both distributions."""
    from trl.experimental.gkd import GKDTrainer

    algorithm = make(Distillation, tiny_model, tmp_path, data, instruction=SHOWN, beta=beta, tokens_per_pass=200)
    collect(algorithm)
    builder = algorithm._envs().prompt_builder.instructed(SHOWN, 200)
    losses, tokens = torch.zeros(()), 0
    for e in algorithm.episodes:
        prompt = builder(e.example).ids
        assert e.reference in algorithm._envs().tokenizer.decode(prompt)
        with torch.no_grad(), algorithm.policy.reference():
            teacher = next_log_probs(algorithm.policy, prompt, e)
        student = next_log_probs(algorithm.policy, e.prompt_ids, e)
        losses = losses + GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
        tokens += len(student)
    expected = gradients_of(algorithm, losses / tokens)
    algorithm.train()
    assert logged(algorithm)["loss"] == pytest.approx(losses.item() / tokens, abs=1e-5)
    tiny.assert_same(without_critic(expected), without_critic(tiny.gradients(algorithm.policy)), 1e-5)


def test_a_run_is_a_teacher_and_the_policy_comes_to_write_like_it(tiny_model, tmp_path, data) -> None:
    """The divergence from a model that learnt to write its letter falls; the policy's share of the letter rises."""
    teacher = trained_teacher(tiny_model, tmp_path, data)
    policy_kwargs = {"model": tiny_model, "lora": 4, "temperature": 0.5}
    env = tiny.make_env(tiny_model, tmp_path, n_envs=16, data=data, feedback={"tiny:LetterShare": 1.0})
    algorithm = Distillation(LLMPolicy, env, 2e-2, teacher=teacher, seed=0, device="cpu", policy_kwargs=policy_kwargs)
    losses, rewards = [], []
    for _ in range(30):
        collect(algorithm)
        rewards.append(np.mean([e.reward for e in algorithm.episodes]))
        algorithm.train()
        losses.append(logged(algorithm)["loss"])
    assert losses[-1] < losses[0] / 4
    assert np.mean(rewards[-3:]) > 3 * rewards[0]


def trained_teacher(model: str, folder: Path, data: str) -> str:
    """Return the run folder of a policy that writes the letter e."""
    from agents.training import TrainArguments, train

    asked = TrainArguments(
        "tiny_task:TinySummary-v0", policy=model, data=data, steps=20, temperature=0.25, out=str(folder / "teacher"),
        feedback="tiny:LetterShare", hyperparams={"learning_rate": 2e-2, "kl_coef": 0.0, "n_envs": 32},
    )  # fmt: skip
    return str(train(asked).folder)


def test_among_legal_tokens_alone_both_are_compared(tiny_model, tmp_path) -> None:
    source = find_policy(tiny_model)
    arguments = environment_arguments("tiny_task:Colours-v0", source, feedback="brevity")
    path = tmp_path / "colours.jsonl"
    path.write_text("".join(json.dumps({"id": c, "document": f"{c} here"}) + "\n" for c in ("red", "grey", "free")))
    env = tiny.make_vec_env("tiny_task:Colours-v0", n_envs=8, seed=0, split="all", **{**arguments, "data": str(path)})
    algorithm = Distillation(
        LLMPolicy, env, 0.1, instruction="Not {document}", seed=0, device="cpu",
        policy_kwargs={"model": tiny_model, "lora": 4, **SGD},
    )  # fmt: skip
    tiny.perturb(algorithm.policy)
    collect(algorithm)
    algorithm.train()
    values = tiny.gradients(algorithm.policy)
    assert 0 < logged(algorithm)["loss"] < 1 and all(torch.isfinite(value).all() for value in values.values())


def test_a_teacher_that_cannot_teach_is_an_error(tiny_model, tmp_path, data) -> None:
    for option, message in (
        ({}, "the policy cannot learn from itself"),
        ({"teacher": "tiny-1k"}, "number tokens differently"),
        ({"teacher": "reference"}, "is no language model"),
        ({"instruction": "x", "beta": 1.5}, "beta=1.5 must be from 0 to 1"),
    ):
        with pytest.raises(LLMGymError, match=message):
            make(Distillation, tiny_model, tmp_path, data, **option)
    algorithm = make(Distillation, tiny_model, tmp_path, tiny.write_data(tmp_path), instruction=SHOWN)
    collect(algorithm)
    with pytest.raises(LLMGymError, match="the instruction shows 'summary', and example 'doc-.' has no such text"):
        algorithm.train()


# -------------------------------------------------------------------- what they share


@pytest.mark.parametrize(("cls", "options"), [(SFT, {}), (DPO, {"beta": 0.4}), (Distillation, {"instruction": SHOWN})])
def test_a_folder_brings_back_policy_and_arguments(tiny_model, tmp_path, data, cls, options) -> None:
    algorithm = make(cls, tiny_model, tmp_path, data, **options)
    algorithm.learn(30)
    algorithm.save(tmp_path / "one")
    loaded = cls.load(tmp_path / "one", tiny.make_env(tiny_model, tmp_path, n_envs=8, data=data), device="cpu")
    for name in cls.options() - {"policy_kwargs", "learning_rate"}:
        assert getattr(loaded, name) == getattr(algorithm, name), name
    trained = tiny.trained(loaded.policy)
    assert all(torch.equal(value, trained[name]) for name, value in algorithm.policy.state_dict().items())


@pytest.mark.parametrize("cls", [GRPO, DPO])
def test_a_continued_adapter_is_compared_with_itself_as_it_was(tiny_model, tmp_path, data, cls) -> None:
    first = make(SFT, tiny_model, tmp_path, data)
    first.save(tmp_path / "first")
    policy_kwargs = {"model": tiny_model, "adapter": str(tmp_path / "first")}
    env = tiny.make_env(tiny_model, tmp_path, n_envs=8, data=data, feedback={"tiny:LetterShare": 1.0})
    algorithm = cls(LLMPolicy, env, 1e-2, group_size=4, seed=0, device="cpu", policy_kwargs=policy_kwargs)
    collect(algorithm)
    algorithm.train()
    assert logged(algorithm)["kl"] == pytest.approx(0, abs=1e-9)
    collect(algorithm)
    algorithm.train()
    assert logged(algorithm)["kl"] > 0


def test_an_evaluation_that_never_kept_a_reference_compares_with_the_base_model(tiny_model, tmp_path, data) -> None:
    first = make(SFT, tiny_model, tmp_path, data)
    first.save(tmp_path / "first")
    envs = make_envs("TextSummary-v0", 2, "all", environment_arguments("TextSummary-v0", find_policy(tiny_model), data))
    spaces = envs.single_observation_space, envs.single_action_space
    policy = LLMPolicy(*spaces, lambda _: 0.0, model=tiny_model, lora=None, adapter=str(tmp_path / "first"))
    base = LLMPolicy(*spaces, lambda _: 0.0, model=tiny_model, lora=None)
    obs, actions = tiny.tensors(envs.reset()[0]), torch.tensor([20, 21])
    with torch.no_grad(), policy.reference():
        found = policy.evaluate_actions(obs, actions)[1]
    torch.testing.assert_close(found, base.evaluate_actions(obs, actions)[1], atol=1e-6, rtol=1e-5)
