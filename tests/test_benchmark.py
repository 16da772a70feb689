"""A benchmark: what its names stand for, its cells, and that it goes on after a kill as if there had been none."""

from __future__ import annotations

import csv
import io
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
from filelock import FileLock
from rich.console import Console

import judge_server
from agents.algorithms import ALGORITHMS
from agents.benchmark.board import Board
from agents.benchmark.cells import read_evaluation, state
from agents.benchmark.matrix import Cell, Plan, find_contestant, make_plan, read_plan, slug, write_plan
from agents.benchmark.presets import PRESETS
from agents.benchmark.report import write_report
from agents.benchmark.runner import run_benchmark
from agents.evaluate import environment_arguments, find_policy, make_envs
from agents.training import TrainArguments, train
from llm_gym.cli import main
from llm_gym.errors import LLMGymError
from test_training import documents

ENV = "tiny_task:TinySummary-v0"
TOKENS = 900  # of training: some updates of GRPO's 16 texts of at most 12 tokens


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file that makes `own_agents:Mended` work, named in an environment variable that is set late."""
    path = tmp_path_factory.mktemp("mended") / "yes"
    os.environ["LLM_GYM_TEST_MENDED"] = str(path)
    yield path
    del os.environ["LLM_GYM_TEST_MENDED"]


def plan(tiny_model: str, *agents: str, **changes: Any) -> Plan:
    return make_plan(agents, [ENV], **{"seeds": 1, "policy": tiny_model, "tokens": TOKENS, **changes})


def cell(out: Path, agent: str, seed: int = 0) -> Cell:
    return next(c for c in read_plan(out).cells(out) if (c.agent, c.seed) == (agent, seed))


def result(out: Path, agent: str, seed: int = 0) -> dict[str, Any]:
    return json.loads((cell(out, agent, seed).folder / "result.json").read_text())


# -------------------------------------------------------------------- names


def test_names_stand_for_algorithms_policies_endpoints_and_classes(tiny_model: str) -> None:
    kinds = {name: find_contestant(name, tiny_model) for name in (*ALGORITHMS, "random", "best-of-4", "greedy")}
    assert all(kinds[algo].kind == "trained" for algo in ALGORITHMS)
    assert kinds["best-of-4"].best_of == 4 and kinds["greedy"].greedy
    assert kinds["random"].source.agent == "random" and kinds["random"].source.model == tiny_model
    assert find_contestant("http://host/v1#model", tiny_model).kind == "endpoint"
    assert find_contestant("own_agents:stock", tiny_model).kind == "own"
    assert find_contestant("tiny-1k", tiny_model).source.model == "tiny-1k"


def test_the_baselines_always_take_part_and_what_cannot_vary_runs_once(tiny_model: str, tmp_path: Path) -> None:
    found = plan(tiny_model, "greedy", "grpo", seeds=3)
    assert found.agents == ("untrained", "reference", "greedy", "grpo")
    seeds = {agent: [c.seed for c in found.cells(tmp_path) if c.agent == agent] for agent in found.agents}
    assert seeds == {"untrained": [0, 1, 2], "reference": [0], "greedy": [0], "grpo": [0, 1, 2]}


@pytest.mark.parametrize(
    ("agents", "envs", "message"),
    [
        (["own_agents:Missing"], [ENV], "cannot be loaded .*has no attribute 'Missing'"),
        (["nowhere:Agent"], [ENV], "cannot be loaded .*PYTHONPATH"),
        (["grop"], [ENV], "agent 'grop'.*algorithms are grpo, rloo"),
        (["http://127.0.0.1:9/v1"], [ENV], "names no model"),
        (["grpo"], ["TextSumary-v0"], "did you mean 'TextSummary-v0'"),
    ],
)
def test_a_slip_in_a_name_is_told_before_anything_runs(
    tiny_model: str, agents: list[str], envs: list[str], message: str
) -> None:
    with pytest.raises(LLMGymError, match=message):
        make_plan(agents, envs, policy=tiny_model)


def test_folders_of_different_agents_differ() -> None:
    names = ["a:b", "a-b", "a/b", "grpo", "http://h/v1#m", "http://h/v1#n"]
    assert len({slug(name) for name in names}) == len(names)
    assert all("/" not in slug(name) and ":" not in slug(name) for name in names)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_what_there_is(name: str) -> None:
    settings = PRESETS[name]
    assert make_plan(**{**settings, "policy": "tiny-1k"}).agents[2:] == settings["agents"]


# -------------------------------------------------------------------- cells


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, mended: Path) -> Path:
    """A benchmark of everything: two agents fail, one does not learn, two of the user's learn."""
    out = tmp_path_factory.mktemp("bench") / "b"
    own = [f"own_agents:{name}" for name in ("Constant", "Counting", "stock", "Mended", "Dying", "Hostile", "Mute")]
    failed = run_benchmark(plan(tiny_model, "random", "greedy", "best-of-2", "grpo", *own), out)
    assert [c.agent for c in failed] == own[3:]
    write_report(out)
    return out


def test_a_cell_that_fails_is_kept_apart_and_says_why(bench: Path) -> None:
    errors = {}
    for name in ("Mended", "Dying", "Hostile", "Mute"):
        errors[name] = json.loads((cell(bench, f"own_agents:{name}").folder / "error.json").read_text())
    assert errors["Mended"]["error"] == "RuntimeError: not mended <b>yet</b>"
    assert "own_agents.py" in errors["Mended"]["traceback"]
    assert errors["Dying"]["error"].startswith("the process of the cell ended with signal 9")
    assert "predicted float64 of shape (48,)" in errors["Hostile"]["error"]
    assert "has no predict" in errors["Mute"]["error"]
    rows = list(csv.DictReader((bench / "scores.csv").read_text().splitlines()))
    assert [row["state"] for row in rows].count("done") == len(rows) - 4
    assert {row["agent"]: row["error"] for row in rows}["own_agents:Mended"] == errors["Mended"]["error"]


def test_only_what_failed_is_run_again(
    bench: Path, tmp_path: Path, mended: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    shutil.copytree(bench, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    mended.touch()
    assert main(["benchmark", "--out", str(out), "--json"]) == 1  # three still fail
    mended.unlink()
    summary = json.loads(capsys.readouterr().out)
    states = {row["agent"]: row["state"] for row in summary["cells"]}
    assert states["own_agents:Mended"] == "done" and states["own_agents:Dying"] == "failed"
    assert not (cell(out, "own_agents:Mended").folder / "error.json").exists()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_trained_cell_is_a_run_folder_without_checkpoints(bench: Path) -> None:
    folder = cell(bench, "grpo").folder
    assert find_policy(str(folder)).adapter and (folder / "report.json").exists()
    assert not (folder / "checkpoints").exists()
    found = result(bench, "grpo")
    assert 0 < found["training"]["tokens"] <= TOKENS and found["training"]["updates"] > 1
    assert found["kl"] is not None and found["tokens_per_second"] > 0
    assert found["measures"]["feedback"] == pytest.approx(_mean(bench, "grpo"))
    assert set(found["versions"]) >= {"torch", "llm_gym"}


def test_a_run_that_training_starts_from_does_not_change_the_rules(tmp_path: Path, tiny_model: str) -> None:
    begun = tmp_path / "run"
    data = documents(tmp_path / "docs.jsonl", references=True)
    train(TrainArguments(ENV, policy=tiny_model, data=data, feedback="length", steps=1, out=str(begun)))
    out = tmp_path / "b"
    assert not run_benchmark(plan(str(begun), "greedy", "grpo"), out)
    config = json.loads((cell(out, "grpo").folder / "config.json").read_text())
    assert config["policy"]["adapter"] == str(begun / "adapter")
    own = cell(out, "grpo"), cell(out, "untrained")
    names = [{e.example["id"] for e in read_evaluation(c, result(out, c.agent)["texts"]).episodes} for c in own]
    assert names[0] == names[1]
    assert config["env_kwargs"]["data"] is None and "length" not in config["env_kwargs"]["feedback"]
    assert result(out, "greedy")["kl"] is None and result(out, "grpo")["kl"] is not None


def _mean(out: Path, agent: str) -> float:
    episodes = read_evaluation(cell(out, agent), result(out, agent)["texts"]).episodes
    return sum(e.reward or 0.0 for e in episodes) / len(episodes)


def test_agents_without_training_write_about_the_same_documents(bench: Path) -> None:
    ids = {}
    for agent in ("untrained", "reference", "random", "greedy", "best-of-2", "grpo", "own_agents:Constant"):
        found = read_evaluation(cell(bench, agent), result(bench, agent)["texts"])
        ids[agent] = [e.example["id"] for e in found.firsts]
    assert len(set(map(tuple, ids.values()))) == 1
    assert result(bench, "untrained")["kl"] == 0 and result(bench, "best-of-2")["kl_at_most"] == pytest.approx(0.1931)
    assert result(bench, "best-of-2")["measures"]["feedback"] > result(bench, "untrained")["measures"]["feedback"]
    assert result(bench, "greedy")["texts"] == 1 and result(bench, "random")["texts"] == 2


def test_a_class_of_the_users_predicts_and_learns_within_its_budget(bench: Path) -> None:
    constant = read_evaluation(cell(bench, "own_agents:Constant"), 2).episodes
    assert len({e.text for e in constant}) == 1 and "training" not in result(bench, "own_agents:Constant")
    for name in ("Counting", "stock"):
        learned = result(bench, f"own_agents:{name}")["training"]
        assert TOKENS - 16 < learned["tokens"] <= TOKENS + 128, name
        rows = (cell(bench, f"own_agents:{name}").folder / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == learned["updates"] > 1


def test_an_endpoint_is_asked_with_the_chat_and_cut_at_the_cap(tmp_path: Path, tiny_model: str) -> None:
    shown = io.StringIO()
    with judge_server.scripted(judge_server.says("The council talked about the bridge, and about rain.")) as server:
        name = f"{server.url}#some-model"
        board = Board(Console(file=shown, force_terminal=True, width=160))
        assert run_benchmark(plan(tiny_model, name), tmp_path, board) == []
    for word in ("3 cells, 0 done", "TinySummary-v0", "untrained", "3 of 3 cells", "●", "·"):
        assert word in shown.getvalue()
    asked = server.requests[0]
    assert asked["model"] == "some-model" and asked["max_tokens"] == 12 and len(server.requests) == 2 * 48
    found = read_evaluation(cell(tmp_path, name), 2).episodes
    assert all(e.text and "The council talked about the bridge".startswith(e.text[:8]) for e in found)
    envs = make_envs(ENV, 1, "test", environment_arguments(ENV, find_policy(tiny_model)))
    envs.reset(options={"example": found[0].example["id"]})
    assert envs.messages(0) in [request["messages"] for request in server.requests]
    prompt = envs.tokenizer.apply_chat_template(envs.messages(0), add_generation_prompt=True, tokenize=False)
    ids = envs.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids == found[0].prompt_ids.tolist()  # cut at the same word


# -------------------------------------------------------------------- going on


def test_a_benchmark_that_is_killed_goes_on_as_if_nothing_had_been(tmp_path: Path, tiny_model: str) -> None:
    """SIGKILL while GRPO trains: its cell's process ends too, and its run goes on from its checkpoint."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["benchmark", "--agents", "grpo", "random", "--envs", ENV, "--seeds", "1", "--policy", tiny_model]
    command = [sys.executable, "-m", "llm_gym.cli", *arguments, "--tokens", "1500", "--out", str(cut)]
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = cut / "TinySummary-v0" / "grpo-0" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_until_quiet(metrics)
    assert state(cell(cut, "untrained")) == "done" and state(cell(cut, "grpo")) == state(cell(cut, "random")) == "open"
    done = (cell(cut, "untrained").folder / "result.json").stat().st_mtime_ns
    rows = metrics.read_text().splitlines()

    assert run_benchmark(read_plan(cut), cut) == []
    assert done == (cell(cut, "untrained").folder / "result.json").stat().st_mtime_ns
    assert metrics.read_text().splitlines()[:2] == rows[:2]  # with their timings: they were not made again
    assert run_benchmark(plan(tiny_model, "grpo", "random", tokens=1500), whole) == []
    for one, other in zip(read_plan(whole).cells(whole), read_plan(cut).cells(cut), strict=True):
        assert (one.folder / "after.jsonl").read_text() == (other.folder / "after.jsonl").read_text()
    assert _untimed(whole) == _untimed(cut)
    assert not [path for path in cut.rglob(".*") if path.name != ".lock"]


def _wait_until_quiet(path: Path) -> None:
    """Wait until nobody writes: the cell's process ends by itself, and has no update of seconds to make."""
    size = -1
    while path.stat().st_size != size:
        size = path.stat().st_size
        time.sleep(0.5)


def _untimed(out: Path) -> list[dict[str, str]]:
    write_report(out)
    timed = {"tokens_per_second", "seconds", "training_seconds"}
    rows = csv.DictReader((out / "scores.csv").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_a_benchmark_grows_but_does_not_change(tmp_path: Path, tiny_model: str) -> None:
    out = tmp_path / "grown"
    assert run_benchmark(plan(tiny_model, "random"), out) == []
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert run_benchmark(plan(tiny_model, "greedy", seeds=2), out) == []
    grown = read_plan(out)
    assert grown.seeds == 2 and grown.agents == ("untrained", "reference", "random", "greedy")
    assert len(list(out.rglob("result.json"))) == 6 and before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(LLMGymError, match="begun with tokens=900, not 7"):
        run_benchmark(plan(tiny_model, "random", tokens=7), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(LLMGymError, match="exists and is no benchmark"):
        run_benchmark(grown, tmp_path / "other")


def test_a_benchmark_is_run_by_one_process_at_a_time(tmp_path: Path, tiny_model: str) -> None:
    with FileLock(tmp_path / ".lock"):
        write_plan(tmp_path, plan(tiny_model, "random"))
        with pytest.raises(LLMGymError, match="being run by another process"):
            run_benchmark(read_plan(tmp_path), tmp_path)


def test_the_command_line_asks_for_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        ([], "Pass --out DIR"),
        (["--out", str(tmp_path / "x")], "which agents"),
        (["--out", str(tmp_path / "x"), "--agents", "random"], "which envs"),
        (["--out", str(tmp_path / "x"), "--preset", "huge"], "expected one of smoke, cpu, full"),
        (["report", str(tmp_path)], "is no benchmark"),
        (["report", str(tmp_path / "results.json")], "cannot be read"),
        (["compare", str(tmp_path), str(tmp_path)], "is no benchmark"),
    ):
        assert main(["benchmark", *more]) == 2
        assert message in capsys.readouterr().err


def test_the_smoke_preset_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shorter than it is by itself, with one seed."""
    out = tmp_path / "smoke"
    assert main(["benchmark", "--preset", "smoke", "--seeds", "1", "--tokens", "500", "--out", str(out)]) == 0
    assert "CopySymbol-v0" in capsys.readouterr().out
    assert len(list(out.rglob("result.json"))) == 14
