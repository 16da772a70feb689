"""Hyper-parameters: files by algorithm, keys that are checked, schedules that fall."""

from __future__ import annotations

from importlib.resources import files

import pytest
import yaml

from agents.algorithms import ALGORITHMS, hyperparameters, learning_rate
from agents.recorder import Limit, diverging
from llm_gym.cli.arguments import ALGOS, make_parser
from llm_gym.errors import LLMGymError
from llm_gym.registration import ENVIRONMENTS
from llm_gym.tasks.ladder import LADDER


def test_the_command_line_names_the_algorithms_without_loading_them() -> None:
    assert tuple(ALGORITHMS) == ALGOS


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_file_has_a_default_and_known_environments_and_keys(algo: str) -> None:
    table = yaml.safe_load(files("agents").joinpath("hyperparams", f"{algo}.yml").read_text())
    assert table.pop("default")["n_envs"] > 0
    assert set(table) <= {*ENVIRONMENTS, *LADDER}
    for env_id in ("Unknown-v0", *table):
        found = hyperparameters(algo, env_id)
        assert isinstance(found["policy_kwargs"], dict)
        learning_rate(found["learning_rate"])


def test_changes_are_laid_over_the_file_and_nothing_else_is() -> None:
    plain = hyperparameters("ppo", "TextSummary-v0")
    changed = hyperparameters("ppo", "TextSummary-v0", {"n_epochs": 4, "policy_kwargs.lora": None})
    assert changed["n_epochs"] == 4 and changed["policy_kwargs"] == {"lora": None}
    assert {**plain, "n_epochs": 4, "policy_kwargs": {"lora": None}} == changed
    assert hyperparameters("ppo", "TextSummary-v0") == plain


def test_keys_that_do_not_apply_are_errors() -> None:
    for algo, key in (("reinforce", "n_epochs"), ("grpo", "gae_lambda"), ("sb3-ppo", "kl_coef"), ("a2c", "seed")):
        with pytest.raises(LLMGymError, match=f"'{key}' does not apply to {algo}; it takes"):
            hyperparameters(algo, "TextSummary-v0", {key: 1})
    with pytest.raises(LLMGymError, match="algorithm 'sarsa' is unknown"):
        hyperparameters("sarsa", "TextSummary-v0")


def test_schedules_fall_by_updates_or_by_time() -> None:
    assert learning_rate("lin_0.4")(0.25) == pytest.approx(0.1) and learning_rate("3e-4") == 3e-4
    assert [Limit(4, None).remaining(n, 0.0, 9) for n in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert Limit(None, 1.0).remaining(9, 45.0, 9) == 0.25


def test_divergence_needs_both_to_move_beyond_chance() -> None:
    up = [0.1 * i + 0.01 * (-1) ** i for i in range(12)]
    down = [-x for x in up]
    assert diverging(up, down)
    assert not diverging(up, up) and not diverging(down, down) and not diverging(down, up)
    assert not diverging(up, [0.01 * (-1) ** i for i in range(12)])
    assert not diverging(up[:7], down[:7]) and not diverging(up, [None] * 12)
    assert diverging([*up, None], [*down, None])


def test_a_sentence_is_a_value_too() -> None:
    parse = lambda text: make_parser().parse_args(["train", "X-v0", "--hyperparams", text]).hyperparams  # noqa: E731
    for value in ("Say this: {summary}", "{summary} is a summary of: it", "Sum up."):
        assert parse(f"instruction:{value}") == [("instruction", value)]
    assert parse("policy_kwargs.optimizer_kwargs:{alpha: 0.9}") == [("policy_kwargs.optimizer_kwargs", {"alpha": 0.9})]
    assert parse("policy_kwargs.lora:null") == [("policy_kwargs.lora", None)] and parse("beta:2") == [("beta", 2)]
