from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from stable_baselines3 import A2C

import tiny_task
from agents import GRPO, checkpoint
from agents.algorithms import hyperparameters
from agents.evaluate import environment_arguments, evaluate, find_policy, load_policy, make_envs, trained_on
from agents.progress import Progress, line
from agents.recorder import Limit
from agents.report import documents_table
from agents.training import TrainArguments, resume, train
from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError

ENV = "tiny_task:TinySummary-v0"
FILES = (
    "adapter after.jsonl before.jsonl config.json curve.png metrics.jsonl report.json report.md samples.jsonl".split()
)
FILES.append("tensorboard")


def documents(path: Path, references: bool) -> str:
    rows = []
    for i in range(24):
        row = {"id": f"doc-{i}", "document": f"The council met {i} times on Tuesday to talk about bridge {i}."}
        rows.append({**row, "summary": f"The council discussed bridge {i}."} if references else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return documents(tmp_path_factory.mktemp("data") / "docs.jsonl", references=True)


def run(tmp_path: Path, tiny_model: str, data: str, **changes: Any) -> Any:
    asked = {"env": ENV, "policy": tiny_model, "data": data, "steps": 2, "out": str(tmp_path / "run"), **changes}
    return train(TrainArguments(**asked))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, data: str) -> Any:
    return run(tmp_path_factory.mktemp("grpo"), tiny_model, data)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_every_file_and_nothing_else(grpo: Any) -> None:
    assert sorted(path.name for path in grpo.folder.iterdir()) == sorted([*FILES, "checkpoints"])
    assert any(path.name.startswith("events.out") for path in (grpo.folder / "tensorboard").iterdir())
    assert (grpo.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| training feedback |" in (grpo.folder / "report.md").read_text()


def test_metrics_have_a_line_an_update_with_reward_parts_kl_length_and_copying(grpo: Any) -> None:
    rows = lines(grpo.folder / "metrics.jsonl")
    assert [row["update"] for row in rows] == [1, 2]
    for row in rows:
        assert set(row["parts"]) == {"brevity", "repetition"}
        assert row["episodes"] == hyperparameters("grpo", ENV)["n_envs"]
        assert 0 < row["tokens"] <= 12 and row["tokens_per_second"] > 0
        assert row["reward"] == pytest.approx(-row["parts"]["brevity"] - 0.5 * row["parts"]["repetition"], abs=1e-4)
        assert row["kl"] == row["train"]["kl"] >= 0 and 0 <= row["copied_share"] <= 1
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[1]["kl"] > 0
    assert rows[1]["tokens_total"] == sum(round(row["tokens"] * row["episodes"]) for row in rows)


def test_samples_follow_the_same_texts_over_time(grpo: Any) -> None:
    rows = lines(grpo.folder / "samples.jsonl")
    assert [row["update"] for row in rows] == [0, 0, 2, 2]  # a tenth of 24 documents is for validation
    assert rows[0]["id"] == rows[2]["id"] and set(rows[0]) == {"update", "id", "text", "score", "parts"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_the_adapter_loads_with_peft_and_names_no_folder_of_a_cache(grpo: Any, tiny_model: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llm_gym.models.load import hub_id

    config = json.loads((grpo.folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub_id(tiny_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), grpo.folder / "adapter")
    moved = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert moved and any(bool(p.abs().max() > 0) for p in moved)


def test_the_config_rebuilds_environment_and_policy_and_the_report_is_met_again(grpo: Any) -> None:
    source = find_policy(str(grpo.folder))
    arguments = environment_arguments(ENV, source)
    texts = grpo.report["texts"]
    envs = make_envs(ENV, len(texts), "test", arguments)
    again = evaluate(load_policy(source, envs), envs, [text["id"] for text in texts], seed=0)
    assert [e.text for e in again.episodes] == [text["after"] for text in texts]
    assert [e.reward for e in again.episodes] == [text["score_after"] for text in texts]


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(
    grpo: Any, tmp_path: Path, tiny_model: str, data: str
) -> None:
    same = run(tmp_path / "same", tiny_model, data)
    other = run(tmp_path / "other", tiny_model, data, seed=1)
    assert untimed(same) == untimed(grpo) != untimed(other)
    assert same.report["texts"] == grpo.report["texts"]
    assert same.report["changes"] == grpo.report["changes"]


def untimed(run: Any) -> list[dict[str, Any]]:
    timings = {"seconds", "elapsed", "tokens_per_second", "phases"}
    return [{k: v for k, v in row.items() if k not in timings} for row in lines(run.folder / "metrics.jsonl")]


@pytest.mark.parametrize("algo", ["sb3-ppo", "sb3-a2c"])
def test_stock_algorithms_make_the_same_run(tmp_path: Path, tiny_model: str, data: str, algo: str) -> None:
    done = run(tmp_path, tiny_model, data, algo=algo)
    assert sorted(path.name for path in done.folder.iterdir()) == FILES
    rows = lines(done.folder / "metrics.jsonl")
    assert len(rows) == 2 and all(row["kl"] is None and row["episodes"] >= 16 for row in rows)
    assert all("value_loss" in row["train"] for row in rows)
    assert rows[-1]["tokens_total"] == done.report["tokens"] == 2 * 16 * 12
    assert "KL to the start -" in line(rows[0], "2 updates", 1.0)


def test_what_writes_no_texts_leaves_its_measures_empty(tmp_path: Path, tiny_model: str, data: str) -> None:
    done = run(tmp_path, tiny_model, data, algo="sft")
    rows = lines(done.folder / "metrics.jsonl")
    assert all(row["reward"] is row["judge"] is row["words"] is None and row["episodes"] == 0 for row in rows)
    assert rows[0]["train"]["loss"] > rows[1]["train"]["loss"] > 0 and rows[1]["tokens_total"] == done.report["tokens"]
    assert line(rows[0], "2 updates", 1.0).startswith("update 1 · loss ")
    assert (done.folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_second_judge_reads_the_reference_and_training_does_not(grpo: Any) -> None:
    measures = {change["measure"] for change in grpo.report["changes"]}
    assert {"judge", "judge/chrf", "judge/key_facts", "copied_share", "words"} <= measures
    assert set(grpo.report["feedback"]) == {"brevity", "repetition"} and grpo.report["notes"] == []


def test_the_report_says_where_training_read_the_reference(tmp_path: Path, tiny_model: str, data: str) -> None:
    done = run(tmp_path, tiny_model, data, steps=1, feedback='{"chrf": 1.0, "brevity": -1.0}')
    assert done.report["reads_reference"] == ["chrf"]
    assert "Training feedback read the references (chrf)" in done.report["notes"][0]


def test_without_references_the_report_says_so(tmp_path: Path, tiny_model: str) -> None:
    done = run(tmp_path, tiny_model, documents(tmp_path / "bare.jsonl", references=False), steps=1)
    assert "no reference column" in done.report["notes"][0]


def test_a_run_goes_on_from_another_run(grpo: Any, tmp_path: Path, tiny_model: str) -> None:
    done = run(tmp_path, str(grpo.folder), None, steps=1)  # type: ignore[arg-type]
    assert lines(done.folder / "metrics.jsonl")[0]["kl"] == pytest.approx(0, abs=1e-6)  # to itself as it began
    assert [t["before"] for t in done.report["texts"]] == [t["after"] for t in grpo.report["texts"]]
    config = json.loads((done.folder / "config.json").read_text())
    assert config["policy"]["model"] == tiny_model and config["policy"]["adapter"] == str(grpo.folder / "adapter")
    assert config["env_kwargs"]["data"] == json.loads((grpo.folder / "config.json").read_text())["env_kwargs"]["data"]
    base = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == json.loads((grpo.folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_a_teacher_named_from_here_is_found_from_anywhere(
    grpo: Any, tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(grpo.folder.parent)
    asked = {"teacher": grpo.folder.name}
    done = run(tmp_path, tiny_model, data, algo="distillation", steps=1, hyperparams=asked)
    monkeypatch.chdir(tmp_path)
    assert resume(done.folder, steps=2).report["updates"] == 2


def test_minutes_stop_before_the_update_that_would_overrun(tmp_path: Path, tiny_model: str, data: str) -> None:
    done = run(tmp_path, tiny_model, data, steps=None, minutes=0.02)
    rows = lines(done.folder / "metrics.jsonl")
    assert len(rows) == 1 or rows[-1]["elapsed"] <= 1.2 * 1.3


def test_limit_counts_updates_or_expected_seconds() -> None:
    assert [Limit(2, None).reached(n, 1.0, 9) for n in (0, 1, 2)] == [False, False, True]
    minute = Limit(None, 1.0)
    assert not minute.reached(0, 0.0, 0)  # one update is always made
    assert not minute.reached(5, 50.0, 9) and minute.reached(6, 51.5, 9)
    assert minute.left(5, 50.0, 9) == 10.0 and Limit(4, None).left(1, 3.0, 9) == 9.0
    assert Limit(None, None).most == 600
    thousand = Limit(None, None, 1000)
    assert not thousand.reached(0, 0.0, 0) and not thousand.reached(4, 9.0, 800) and thousand.reached(5, 9.0, 900)
    assert thousand.left(4, 8.0, 800) == 2.0 and thousand.remaining(4, 8.0, 800) == pytest.approx(0.2)


@pytest.mark.parametrize("algo", ["grpo", "sb3-ppo"])
def test_tokens_stop_before_the_update_that_would_overrun(
    tmp_path: Path, tiny_model: str, data: str, algo: str
) -> None:
    rows = lines(run(tmp_path, tiny_model, data, algo=algo, steps=None, tokens=600).folder / "metrics.jsonl")
    assert len(rows) > 1 and 400 < rows[-1]["tokens_total"] <= 600


def test_an_existing_run_is_not_overwritten(grpo: Any, tiny_model: str, data: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in grpo.folder.iterdir()}
    with pytest.raises(LLMGymError, match="exists already and nothing is overwritten: .* another --out"):
        run(grpo.folder.parent, tiny_model, data)
    assert before == {path: path.stat().st_mtime_ns for path in grpo.folder.iterdir()}


def test_a_reward_that_is_not_finite_ends_the_run_and_leaves_nothing(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_task.Broken, "left", 0)
    with pytest.raises(LLMGymError, match="a reward must be finite"):
        run(tmp_path, tiny_model, data, feedback="tiny_task:Broken")
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_later_keeps_whole_files_and_its_adapter(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Progress):
        def update(self, row: dict[str, Any], goal: str, seconds_left: float | None) -> None:
            monkeypatch.setattr(tiny_task.Broken, "left", 0)

    asked = TrainArguments(
        ENV, policy=tiny_model, data=data, steps=3, feedback="tiny_task:Broken", out=str(tmp_path / "run")
    )
    with pytest.raises(LLMGymError, match="a reward must be finite"):
        train(asked, Stopping())
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 1
    assert find_policy(str(tmp_path / "run")).adapter
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".")]


def test_a_run_that_diverges_keeps_its_checkpoint_and_no_broken_adapter(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend = GRPO._descend

    def breaking(self: GRPO) -> float:
        """A gradient that is not finite: the loss before it was, and the weights after it are not."""
        norm = descend(self)
        if checkpoint.checkpoints(tmp_path / "run"):
            with torch.no_grad():
                next(p for p in self.policy.parameters() if p.requires_grad).fill_(float("nan"))
        return norm

    monkeypatch.setattr(GRPO, "_descend", breaking)
    with pytest.raises(LLMGymError, match="training diverged, weights are not finite after update 2: use another seed"):
        run(tmp_path, tiny_model, data)
    assert not (tmp_path / "run" / "adapter").exists()
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["00000001"]
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2


def test_a_stock_run_that_diverges_keeps_what_it_has_written(
    tmp_path: Path, tiny_model: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(self: A2C) -> None:
        whole(self)
        with torch.no_grad():
            next(p for p in self.policy.parameters() if p.requires_grad).fill_(float("nan"))

    whole = A2C.train
    monkeypatch.setattr(A2C, "train", breaking)
    with pytest.raises(LLMGymError, match="training diverged"):
        run(tmp_path, tiny_model, data, algo="sb3-a2c")
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 1 and not (tmp_path / "run" / "adapter").exists()


def test_a_run_goes_on_where_the_feedback_abstains_from_a_text(tmp_path: Path, tiny_model: str, data: str) -> None:
    task = tiny_task.TinySummary()
    ids = [load_examples(data, split, task)[0]["id"] for split in ("validation", "test")]
    shy = json.dumps({"tiny_task:Shy": {"weight": 1.0, "ids": ids}, "brevity": -1.0})
    done = run(tmp_path, tiny_model, data, feedback=shy)
    scores = [row["score"] for row in lines(done.folder / "samples.jsonl")]
    assert None in scores and all(text["score_before"] is None or text["before"] for text in done.report["texts"])
    feedback = next(change for change in done.report["changes"] if change["measure"] == "feedback")
    assert 0 < feedback["documents"] < done.report["documents"]
    assert "abstained from 2 texts before and 2 after" in done.report["notes"][0]
    shown = io.StringIO()
    Console(file=shown, width=160).print(documents_table(done.report, done.sources, 24))
    assert "none: the feedback abstained" in shown.getvalue()


def test_a_rank_that_would_not_be_used_is_an_error(grpo: Any, tmp_path: Path, tiny_model: str, data: str) -> None:
    with pytest.raises(LLMGymError, match="policy_kwargs.lora:4 does not apply: the adapter gone on with has its own"):
        run(tmp_path, str(grpo.folder), data, hyperparams={"policy_kwargs.lora": 4})
    both = {"policy_kwargs.lora": 4, "policy_kwargs.last_layers": 1}
    with pytest.raises(LLMGymError, match="policy_kwargs.lora:4 does not apply where last_layers=1; leave out one"):
        run(tmp_path, tiny_model, data, hyperparams=both)
    assert not (tmp_path / "run").exists()


def test_what_a_run_was_trained_on_is_known_through_the_runs_before_it(
    grpo: Any, tmp_path: Path, tiny_model: str, data: str
) -> None:
    other = documents(tmp_path / "other.jsonl", references=True)
    second = run(tmp_path, str(grpo.folder), other, steps=1)
    assert trained_on(find_policy(str(second.folder))) == {os.path.realpath(data), os.path.realpath(other)}
    assert trained_on(find_policy(tiny_model)) == set()


def test_an_unfinished_run_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"llm_gym_run": 1, "policy": {"model": "x"}}))
    with pytest.raises(LLMGymError, match="has no adapter: it did not finish; go on with 'llm-gym train --resume"):
        find_policy(str(tmp_path))


def test_the_panel_of_a_terminal_shows_all_measures(grpo: Any) -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = Progress(console)
    progress.begin()
    for row in lines(grpo.folder / "metrics.jsonl"):
        progress.update(row, "2 updates", 3599.9)
    progress.end()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for name in ("reward", "brevity", "KL to the start", "words", "copied share", "tokens/s", "59:59 left of 2"):
        assert name in shown
