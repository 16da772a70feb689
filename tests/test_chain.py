"""Chains: each stage is a run that begins with the policy of the one before, and any of them can be gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.chain import resume_chain, train_chain
from agents.training import TrainArguments
from llm_gym.cli import main
from llm_gym.errors import LLMGymError
from test_resume import Killed, assert_equal_runs, kill_after
from test_training import ENV, documents, lines

STAGES = """
- algo: sft
  steps: 2
  hyperparams: {learning_rate: 1.0e-2, policy_kwargs.lora: 4}
- algo: grpo
  steps: 3
"""


@pytest.fixture
def asked(tmp_path: Path, tiny_model: str) -> TrainArguments:
    data = documents(tmp_path / "docs.jsonl", references=True)
    return TrainArguments(ENV, policy=tiny_model, data=data, feedback='{"brevity": -2.0}', temperature=0.7)


def stages(folder: Path, text: str = STAGES) -> Path:
    path = folder / "stages.yml"
    path.write_text(text)
    return path


def texts(run: Any, when: str) -> list[str]:
    return [row[when] for row in run.report["texts"]]


def test_each_stage_begins_where_the_last_one_ended(tmp_path: Path, asked: TrainArguments) -> None:
    first, second = train_chain(replace(asked, out=str(tmp_path / "chain")), stages(tmp_path))
    assert [run.folder.name for run in (first, second)] == ["1-sft", "2-grpo"]
    assert texts(second, "before") == texts(first, "after") != texts(first, "before")
    rows = lines(second.folder / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[2]["kl"] > 0  # to the policy of the first stage
    configs = [json.loads((run.folder / "config.json").read_text()) for run in (first, second)]
    assert configs[0]["env_kwargs"] == configs[1]["env_kwargs"]
    assert [config["policy"]["temperature"] for config in configs] == [0.7, 0.7]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_chain_goes_on_with_the_stage_that_was_interrupted(
    tmp_path: Path, asked: TrainArguments, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Bit-equal to one that was not, and finished stages are left alone."""
    whole, cut = tmp_path / "whole" / "chain", tmp_path / "cut" / "chain"
    train_chain(replace(asked, out=str(whole)), stages(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2 if stage == 1 else 3, written=True)
        train_chain(replace(asked, out=str(cut)), stages(tmp_path))
    assert (cut / "2-grpo").exists() == (stage == 2)
    stamp = (cut / "1-sft" / "metrics.jsonl").stat().st_mtime_ns
    resume_chain(cut)
    assert stage == 1 or (cut / "1-sft" / "metrics.jsonl").stat().st_mtime_ns == stamp
    for name in ("1-sft", "2-grpo"):
        assert_equal_runs(whole / name, cut / name)


def test_a_stage_that_had_not_begun_is_begun(tmp_path: Path, asked: TrainArguments) -> None:
    out = tmp_path / "chain"
    train_chain(replace(asked, out=str(out)), stages(tmp_path, "- {algo: sft, steps: 1}\n- {algo: dpo, steps: 1}"))
    for path in (out / "2-dpo").iterdir():
        if path.is_file():
            path.unlink()
    assert [run.report["algo"] for run in resume_chain(out)] == ["sft", "dpo"]


def test_the_command_line_trains_a_chain_and_goes_on_with_it(
    tmp_path: Path, asked: TrainArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = str(tmp_path / "chain"), stages(tmp_path, "- {algo: sft, steps: 1}\n- {algo: grpo, steps: 1}")
    shared = ["train", ENV, "--policy", asked.policy, "--data", str(asked.data), "--out", out, "--chain", str(path)]
    assert main([*shared, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [stage["algo"] for stage in told["stages"]] == ["sft", "grpo"]
    assert main(["train", "--resume", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    for wrong, message in (
        (["train", "--resume", out, "--steps", "3"], "a chain's stages have lengths of their own; leave out steps=3"),
        ([*shared, "--algo", "ppo"], "--chain takes it from the file's stages; leave out algo='ppo'"),
        (shared, "exists already and nothing is overwritten"),
    ):
        assert main(wrong) != 0
        assert message in capsys.readouterr().err


def test_a_chain_that_cannot_be_is_an_error_before_anything_runs(tmp_path: Path, asked: TrainArguments) -> None:
    for text, message in (
        ("- algo: dream", "algorithm 'dream' is unknown"),
        ("algo: sft", "must be a list of stages"),
        (
            "- algo: sft\n- algo: grpo\n  hyperparams: {policy_kwargs.lora: 8}",
            "stage 2: policy_kwargs.lora does not apply: it goes on with the adapter before it",
        ),
        ("- {algo: sft, step: 3}", "stage 1 is .*'step': 3"),
        ("- {algo: sft, steps: 3, minutes: 1}", "has steps and minutes; give one"),
        ("- {algo: sft, steps: 0}", "steps=0 must be positive"),
        ("- {algo: sft, hyperparams: {group_size: 2}}", "'group_size' does not apply to sft"),
        ("- {algo: sb3-ppo}", "sb3-ppo leaves no checkpoints"),
        ("- [", "cannot be read as YAML"),
    ):
        with pytest.raises(LLMGymError, match=message):
            train_chain(replace(asked, out=str(tmp_path / "chain")), stages(tmp_path, text))
    with pytest.raises(LLMGymError, match="cannot be trained"):
        train_chain(replace(asked, policy="reference", out=str(tmp_path / "chain")), stages(tmp_path))
    assert not (tmp_path / "chain").exists()
    with pytest.raises(LLMGymError, match="is no chain that can be gone on with"):
        resume_chain(tmp_path)
