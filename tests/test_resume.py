"""A run that was killed goes on from its last checkpoint and ends as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_task
from agents import checkpoint
from agents.training import TrainArguments, resume, train
from llm_gym.errors import LLMGymError
from llm_gym.feedback import memory
from llm_gym.models.version import version
from test_training import ENV, documents, lines, untimed


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Leave other tests no memories that were brought back here."""
    yield
    memory.restore({})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return documents(tmp_path_factory.mktemp("data") / "docs.jsonl", references=True)


def asked(folder: Path, model: str, data: str, **changes: Any) -> TrainArguments:
    return TrainArguments(**{"env": ENV, "policy": model, "data": data, "steps": 4, "out": str(folder), **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / checkpoint.FOLDER).iterdir())[-1]
    return load_file(last / "tensors.safetensors")


def assert_equal_runs(left: Path, right: Path) -> None:
    """Weights, optimiser and generator to the bit, metrics but for timings, texts and reports."""
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys() and any("exp_avg" in name or "lora" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert rows_of(left) == rows_of(right)
    assert (left / "samples.jsonl").read_text() == (right / "samples.jsonl").read_text()
    assert (left / "after.jsonl").read_text() == (right / "after.jsonl").read_text()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (left, right)]
    for report in reports:
        report.pop("train_seconds")
        report.pop("continued_from")
    assert reports[0] == reports[1]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return untimed(type("Run", (), {"folder": folder}))


class Killed(BaseException):
    """Stands for a kill where a real one would only be slower: nothing that a run tidies up may be needed."""


def kill_after(monkeypatch: pytest.MonkeyPatch, update: int, written: bool) -> None:
    """Break off in the middle of writing the checkpoint of an update, or right after it."""
    whole = checkpoint.save_checkpoint

    def save(run: Path, algorithm: Any, number: int, elapsed: float) -> None:
        if number == update and not written:
            (run / checkpoint.FOLDER / ".00000009-half").mkdir(parents=True)
            raise Killed
        whole(run, algorithm, number, elapsed)
        if number == update:
            raise Killed

    monkeypatch.setattr("agents.recorder.save_checkpoint", save)


OPTIONS = {
    "grpo": {},
    "rloo": {"hyperparams": {"learning_rate": "lin_1e-2"}},
    "reinforce": {"hyperparams": {"policy_kwargs.optimizer_class": "rmsprop", "kl_target": 0.5}},
    "dqn": {"hyperparams": {"n_step": 2, "target_update_interval": 3, "tau": 0.5, "buffer_size": 24, "top_k": 6}},
    "a2c": {"hyperparams": {"policy_kwargs.last_layers": 1, "policy_kwargs.lora": None}},
    "ppo": {"hyperparams": {"kl_target": 0.5}},
    "sft": {},
    "dpo": {},
    "distillation": {"hyperparams": {"instruction": "Say this: {summary}"}},
}


@pytest.mark.parametrize("algo", OPTIONS)
@pytest.mark.parametrize("written", [True, False])
def test_a_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch, algo: str, written: bool
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(asked(whole, tiny_model, data, algo=algo, **OPTIONS[algo]))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3, written)
        train(asked(cut, tiny_model, data, algo=algo, **OPTIONS[algo]))
    assert len(lines(cut / "metrics.jsonl")) == 3 and not (cut / "report.json").exists()
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "rew')  # a line that was being written
    resume(cut)
    assert_equal_runs(whole, cut)
    assert len(list((cut / checkpoint.FOLDER).iterdir())) == checkpoint.KEPT
    assert not [path for path in cut.rglob("*") if path.name.startswith(".")]


def test_a_run_goes_on_from_where_its_watched_texts_were_written(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(asked(tmp_path / "whole", tiny_model, data, steps=12))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 10, written=True)
        train(asked(tmp_path / "cut", tiny_model, data, steps=12))
    resume(tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_can_be_made_longer(tmp_path: Path, tiny_model: str, data: str) -> None:
    train(asked(tmp_path / "long", tiny_model, data, steps=3))
    train(asked(tmp_path / "short", tiny_model, data, steps=2))
    report = resume(tmp_path / "short", steps=3).report
    assert report["updates"] == 3
    assert_equal_runs(tmp_path / "long", tmp_path / "short")


def test_a_process_that_is_killed_goes_on(tmp_path: Path, tiny_model: str, data: str) -> None:
    """The real thing: another process, SIGKILL while it trains, `--resume` by command line."""
    arguments = [ENV, "--policy", tiny_model, "--data", data, "--steps", "6", "--out"]
    command = [sys.executable, "-m", "llm_gym.cli", "train"]
    place = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    env = {**os.environ, "PYTHONPATH": place}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = subprocess.Popen([*command, *arguments, str(cut)], env=env, stderr=subprocess.DEVNULL)
    while not (cut / "metrics.jsonl").exists() or len((cut / "metrics.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "report.json").exists()
    subprocess.run([*command, "--resume", str(cut)], env=env, check=True, capture_output=True)
    subprocess.run([*command, *arguments, str(whole)], env=env, check=True, capture_output=True)
    assert_equal_runs(whole, cut)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(asked(tmp_path / "whole", tiny_model, data, steps=1))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("report.json", "report.md", "curve.png", "after.jsonl", "before.jsonl", "samples.jsonl"):
        (tmp_path / "cut" / name).unlink()
    shutil.rmtree(tmp_path / "cut" / checkpoint.FOLDER)
    resume(tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_what_cannot_be_gone_on_with_is_an_error(tmp_path: Path, tiny_model: str, data: str) -> None:
    with pytest.raises(LLMGymError, match="is no run that can be gone on with"):
        resume(tmp_path)
    train(asked(tmp_path / "run", tiny_model, data, steps=1))
    config = tmp_path / "run" / "config.json"
    stored = json.loads(config.read_text())
    for change, message in (
        ({"algo": "sb3-ppo"}, "leaves no checkpoints"),
        ({"llm_gym_run": 0}, "another version of llm_gym"),
        ({"versions": {**stored["versions"], "torch": "1.0"}}, "begun with other versions .torch 1.0 -> "),
    ):
        config.write_text(json.dumps({**stored, **change}))
        with pytest.raises(LLMGymError, match=message):
            resume(tmp_path / "run")
    config.write_text(json.dumps(stored))
    newest = sorted((tmp_path / "run" / checkpoint.FOLDER).iterdir())[-1]
    tensors = newest / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LLMGymError, match="delete it to go on from an older checkpoint"):
        resume(tmp_path / "run")
    (newest / "state.json").write_text("{")
    with pytest.raises(LLMGymError, match="delete it to go on from an older checkpoint"):
        resume(tmp_path / "run")


def test_a_checkpoint_holds_nothing_but_tensors_and_json(tmp_path: Path, tiny_model: str, data: str) -> None:
    train(asked(tmp_path / "run", tiny_model, data, steps=1))
    files = [path.name for path in (tmp_path / "run" / checkpoint.FOLDER).rglob("*") if path.is_file()]
    assert sorted(files) == ["memory.json", "state.json", "tensors.safetensors"]


def test_memories_come_back_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    first = memory.Memory("test/first")
    first["a", "b"] = 0.1 + 0.2
    first["vector"] = np.array([0.1, -3e-9], np.float32)
    first["long vector"] = np.array([1 / 3, -3e-9])
    first["shares"] = (0.25, 1 / 3)
    first["text"] = "Good."
    state = json.loads(json.dumps(memory.remembered()))
    first["a", "b"], first["other"] = 7.0, 1.0
    memory.restore(state)
    later, gone = memory.Memory("test/first"), memory.Memory("test/first")
    del gone
    assert "test/first" in memory.remembered()
    for known in (first, later):
        assert known["a", "b"] == 0.1 + 0.2 and "other" not in known
        assert known["vector"].tolist() == np.array([0.1, -3e-9], np.float32).tolist()
        assert known["long vector"].tolist() == [1 / 3, -3e-9]
        assert known["shares"] == (0.25, 1 / 3) and known["text"] == "Good."
    memory.restore({})


def test_what_the_scorers_of_a_run_know_is_kept(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several environments build the same feedback; what any of them learned is in the checkpoint."""
    feedback = json.dumps({"likelihood": {"weight": 1.0, "model": tiny_model}, "brevity": -1.0})
    train(asked(tmp_path / "whole", tiny_model, data, steps=2, feedback=feedback))
    stored = json.loads(next((tmp_path / "whole" / checkpoint.FOLDER).glob("*2/memory.json")).read_text())
    assert len(stored[f"likelihood/{version(tiny_model)}"]) > 30
    memory.restore({})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 1, written=True)
        train(asked(tmp_path / "cut", tiny_model, data, steps=2, feedback=feedback))
    memory.restore({})
    resume(tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    again = json.loads(next((tmp_path / "cut" / checkpoint.FOLDER).glob("*2/memory.json")).read_text())
    assert again[f"likelihood/{version(tiny_model)}"] == stored[f"likelihood/{version(tiny_model)}"]


def test_early_stop_ends_a_run_whose_judge_falls(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback and judge are made to go apart by a scorer whose value rises with time, and one whose value falls."""
    monkeypatch.setattr(tiny_task.Rising, "calls", 0)
    monkeypatch.setattr(tiny_task.TinySummary, "judge", {"tiny_task:Rising": {"weight": -1.0}})
    options = {"feedback": '{"tiny_task:Rising": 1.0}', "steps": 20}
    done = train(asked(tmp_path / "run", tiny_model, data, early_stop=True, **options))
    rows = lines(done.folder / "metrics.jsonl")
    assert len(rows) == done.report["diverged"] < 20
    assert rows[-1]["diverged"] and not rows[-2]["diverged"]
    assert any("rose while the second judge fell" in note for note in done.report["notes"])
