from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import llm_gym
import tiny_task  # noqa: F401  # so that "tiny_task:..." can be imported by name
from agents.evaluate import PolicySource, environment_arguments, find_policy, make_envs
from llm_gym.cli import main
from llm_gym.data import load_examples
from llm_gym.registration import find_task

ENV = "TextSummary-v0"
RULES = '{"brevity": -1.0, "repetition": {"weight": -0.5}}'


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{"id": f"d{i}", "dialogue": f"The council met {i} times to talk about bridge {i}."} for i in range(24)]
    return write(tmp_path_factory.mktemp("docs") / "docs.jsonl", rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, docs: str) -> str:
    out = str(tmp_path_factory.mktemp("cli") / "run")
    assert main(asking("train", tiny_model, docs, "--steps", "2", "--out", out)) == 0
    return out


def asking(command: str, model: str, docs: str, *more: str) -> list[str]:
    data = ("--data", docs, "--columns", "document=dialogue", "--feedback", RULES)
    return [command, ENV, "--policy", model, *data, *more]


def environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that the last command told, and make sure that it was one."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("llm-gym: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err and captured.out == ""
    return lines[0]


# -------------------------------------------------------------------- list, fetch


def test_list_shows_environments_models_and_scorers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in (ENV, "Summarise a document.", "smollm2-135m", "minilm-l6", "likelihood", "key_facts"):
        assert name in shown
    assert main(["list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert set(tables) == {"environments", "models", "scorers"}
    assert all(isinstance(row["fetched"], bool) for row in tables["models"])


def test_list_shows_the_columns_of_each_environments_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--columns", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)["columns"]}
    assert list(rows) == list(llm_gym.ENVIRONMENTS)
    assert rows["TextSummary-v0"]["required"] == "document" and rows["TextSummary-v0"]["optional"] == "summary, facts"
    assert "squad_v2 (rajpurkar/squad_v2)" in rows["QuestionAnswering-v0"]["known"]
    assert main(["list", "--columns"]) == 0
    assert "answers" in capsys.readouterr().out


def test_list_loads_no_model_library() -> None:
    code = (
        "import sys; from llm_gym.cli import main; main(['list']); main(['list', '--columns']);"
        "sys.exit(bool({'torch', 'transformers', 'pandas', 'agents'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True).returncode == 0


@pytest.mark.models
def test_fetch_prints_where_each_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "minilm-l6", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["name"] == "minilm-l6" and (Path(row["path"]) / "config.json").is_file()


# -------------------------------------------------------------------- train


def test_train_prints_texts_changes_and_paths(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(asking("train", tiny_model, docs, "--steps", "1", "--out", str(out))) == 0
    captured = capsys.readouterr()
    for words in ("before", "after", "training feedback", "copied share", "brevity (weight -1)", "no reference column"):
        assert words in captured.out
    assert str(out) in captured.out and str(out / "curve.png") in captured.out
    assert captured.err.count("update 1 ·") == 1 and "KL to the start 0.000" in captured.err


def test_train_for_machines_prints_one_object(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(asking("train", tiny_model, docs, "--steps", "1", "--json", "--algo", "sb3-a2c", "--seed", "3")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["run"] == "runs/TextSummary-v0-sb3-a2c-3" and Path(report["curve"]).is_file()
    assert report["updates"] == 1 and report["seed"] == 3
    config = json.loads(Path(report["run"], "config.json").read_text())
    assert config["settings"]["gamma"] == 1.0 and config["settings"]["n_steps"] == 48
    assert config["env_kwargs"]["columns"] == {"document": "dialogue"} and "torch" in config["versions"]


def test_hyperparams_reach_the_algorithm_and_the_policy(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    changes = ["learning_rate:lin_1e-3", "n_envs:8", "kl_coef:0", "policy_kwargs.lora:4", "normalize_advantage:true"]
    arguments = asking("train", tiny_model, docs, "--steps", "1", "--algo", "rloo", "--out", str(out), "--hyperparams")
    assert main([*arguments, *changes]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["learning_rate"] == "lin_1e-3" and config["settings"]["normalize_advantage"] is True
    assert config["n_envs"] == 8 and config["policy"]["lora"] == 4
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 4
    capsys.readouterr()
    for change, message in (
        ("vf_coef:0.5", "hyper-parameter 'vf_coef' does not apply to rloo; it takes"),
        ("policy_kwargs.rank:4", "hyper-parameter 'policy_kwargs.rank' is unknown; the policy takes"),
        ("learning_rate:fast", "learning_rate='fast' is neither a number nor of the form lin_3e-4"),
        ("learning_rate:-1", "learning_rate=-1.0 must be a positive number"),
        ("n_epochs:0", "n_epochs=0 must be a positive integer"),
        ("learning_rate", "is not of the form KEY:VALUE"),
    ):
        other = asking("train", tiny_model, docs, "--steps", "1", "--algo", "rloo", "--out", str(tmp_path / "other"))
        assert main([*other, "--hyperparams", change]) != 0
        assert message in capsys.readouterr().err
        assert not (tmp_path / "other").exists()


def test_resume_takes_everything_from_the_run(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(asking("train", tiny_model, docs, "--steps", "1", "--out", str(out))) == 0
    assert main(["train", "--resume", str(out), "--steps", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out[captured.out.rindex('{"env"') :])["updates"] == 2
    assert main(["train", "--resume", str(out), "--seed", "3"]) != 0
    assert "leave out seed=3" in capsys.readouterr().err
    assert main(["train", "--resume", str(out), "--seed", "0"]) != 0  # what it would have been without
    assert "leave out seed=0" in capsys.readouterr().err
    assert main(["train", "--steps", "2"]) != 0
    assert "which environment? Pass its id" in capsys.readouterr().err
    assert main(asking("train", tiny_model, docs, "--algo", "dreamer", "--out", str(tmp_path / "other"))) != 0
    assert "algorithm 'dreamer' is unknown; expected one of grpo, rloo" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_130_and_keeps_its_adapter(tmp_path: Path, tiny_model: str, docs: str) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "llm_gym.cli", *asking("train", tiny_model, docs, "--out", str(out))]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was started in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "llm-gym: interrupted" and "Traceback" not in errors
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert [json.loads(line)["update"] for line in (out / "metrics.jsonl").read_text().splitlines()][0] == 1


@pytest.mark.parametrize("largest", [100, 20_000])  # bytes of a file: stops the config, and then the adapter
def test_a_disk_that_takes_no_more_is_told_in_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, tiny_model: str, docs: str, largest: int
) -> None:
    code = (
        "import resource, sys; from llm_gym.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}));"
        "sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "run"
    asked = asking("train", tiny_model, docs, "--steps", "1", "--out", str(out))
    done = subprocess.run([sys.executable, "-c", code, *asked], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("llm-gym: ") and "run it again" in done.stderr
    assert out.exists() == (largest > 100)  # an update had been made: the run can be gone on with
    assert not out.exists() or main(["train", "--resume", str(out)]) == 0


# -------------------------------------------------------------------- evaluate


def test_evaluate_starts_from_a_run_with_its_settings(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ENV, "--policy", trained, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    report = json.loads(Path(trained, "report.json").read_text())
    assert [item["text"] for item in shown["items"]] == [row["after"] for row in report["texts"]]
    assert [item["score"] for item in shown["items"]] == pytest.approx([row["score_after"] for row in report["texts"]])
    assert shown["low"] <= shown["mean"] <= shown["high"]
    assert set(shown["feedback"]) == set(shown["items"][0]["parts"]) == {"brevity", "repetition"}


def test_flags_override_the_run(trained: str, docs: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data", docs, "--columns", "document=dialogue", "--feedback", "length", "--split", "train", "-n", "3")
    assert main(["evaluate", ENV, "--policy", trained, "--greedy", "--json", *more]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["items"]) == shown["documents"] == 3 and shown["mode"] == "greedy"
    assert all(item["score"] == item["parts"]["length"] for item in shown["items"])


def test_the_temperature_of_a_run_is_kept_and_may_be_overridden(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*more: str) -> dict:
        assert main([*evaluating, "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    run, further = str(tmp_path / "run"), str(tmp_path / "further")
    cold = ("--steps", "1", "--temperature", "0.5")
    assert main(asking("train", tiny_model, docs, *cold, "--out", run)) == 0
    assert main([*asking("train", run, docs, "--steps", "1", "--out", further)]) == 0
    for folder in (run, further):
        assert json.loads(Path(folder, "config.json").read_text())["policy"]["temperature"] == 0.5
    capsys.readouterr()
    evaluating = ["evaluate", ENV, "--policy", run]
    kept, same, hotter = shown(), shown("--temperature", "0.5"), shown("--temperature", "2")
    assert kept == same and kept["temperature"] == 0.5 and hotter["temperature"] == 2
    assert kept["items"] != hotter["items"]
    assert shown("--greedy")["temperature"] is None
    assert main([*evaluating, "--greedy", "--temperature", "1"]) != 0
    assert "leave it out with --greedy" in told(capsys)


def test_evaluating_greedily_does_not_depend_on_the_seed_but_sampling_does(
    tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def texts(*more: str) -> list[str]:
        assert main(asking("evaluate", tiny_model, docs, "--json", "-n", "2", *more)) == 0
        return [item["text"] for item in json.loads(capsys.readouterr().out)["items"]]

    assert texts("--greedy") == texts("--greedy", "--seed", "1")
    assert texts() == texts("--sample") != texts("--seed", "1")


def test_evaluate_prints_every_text_with_score_and_parts(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ENV, "--policy", trained, "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "brevity=" in shown and "over 1 documents" in shown and "copied share" in shown


# -------------------------------------------------------------------- score

ROWS = [
    {"id": "a", "document": "Rain fell.", "text": "It rained all day and all night in the old town by the sea."},
    {"id": "b", "document": "Rain fell.", "text": "It rained."},
    {"id": "a", "document": "Snow fell.", "text": ""},
]


def test_score_prints_a_json_line_a_row_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS * 50)
    assert main(["score", ENV, "--input", path, "--feedback", "brevity", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "a"] * 50
    assert [row["score"] for row in rows[:3]] == [0.125, 0.875, 1.0]
    assert rows[1]["parts"] == {"brevity": rows[1]["score"]}


def test_a_text_of_a_conversation_is_scored_as_its_first_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = find_task("Dialogue-v0")
    row = next(row for row in load_examples(None, "all", task) if row["id"] == "travel-mountain-hut")
    path = write(tmp_path / "rows.jsonl", [{**row, "text": text} for text in ("Sleep in the attic.", "Good night.")])
    assert main(["score", "Dialogue-v0", "--input", path, "--feedback", "goals", "--json"]) == 0
    met, unmet = (json.loads(line)["score"] for line in capsys.readouterr().out.splitlines())
    assert met > 0 == unmet


def test_score_maps_columns_the_text_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"dialogue": "Rain.", "output": "It rained.", "gold": "Rain came down."}])
    columns = ["document=dialogue", "text=output", "summary=gold"]
    assert main(["score", ENV, "--input", path, "--columns", *columns, "--feedback", "chrf", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["score"] < 1


def test_score_prints_a_table_and_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", ENV, "--input", write(tmp_path / "r.jsonl", ROWS), "--feedback", "brevity"]) == 0
    shown = capsys.readouterr().out
    assert "It rained." in shown and "mean of 3 rows: 0.667" in shown


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS * 5000)
    command = f"{sys.executable} -m llm_gym.cli score {ENV} --input {path} --feedback brevity --json | head -n 1"
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, text=True)
    assert json.loads(done.stdout)["id"] == "a" and done.stderr == ""


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "TextSumary-v0"], "did you mean 'TextSummary-v0'?"),
        (["train", "CartPole-v1"], "is no text environment"),
        (["train", "nothing_here:Summary-v0"], "No module named 'nothing_here'"),
        (["train", ENV, "--policy", "smolm2-135m"], "did you mean 'smollm2-135m'?"),
        (["train", ENV, "--policy", "TINY", "--feedback", "brevty"], "did you mean 'brevity'?"),
        (["train", ENV, "--policy", "TINY", "--feedback", '{"brevity": }'], "is not JSON"),
        (["train", ENV, "--policy", "TINY", "--feedback", "{}"], "JSON object of names and weights"),
        (["train", ENV, "--policy", "TINY", "--feedback", "brevity", "--data", "none.jsonl"], "no such file"),
        (["train", ENV, "--policy", "TINY", "--feedback", "brevity", "--data", "DOCS"], "no column 'document'"),
        (["train", ENV, "--steps", "0"], "not a positive integer"),
        (["train", ENV, "--minutes", "nan"], "not a positive number"),
        (["train", ENV, "--steps", "1", "--minutes", "1"], "not allowed with argument"),
        (["train", ENV, "--columns", "document"], "not of the form A=B"),
        (["train", ENV, "--algo", "sarsa"], "algorithm 'sarsa' is unknown"),
        (["train", ENV, "--seed", "-1"], "from 0 to 2**32 - 1"),
        (["evaluate", ENV, "--policy", "TINY", "--feedback", "brevity", "--columns", "t=x"], "unknown column 't'"),
        (["score", ENV], "required: --input"),
        (["score", ENV, "--input", "none.jsonl", "--feedback", "brevity"], "no such file"),
        (["fetch", "minilm"], "unknown model 'minilm'"),
        (["evaluate", "./my_task:Headline-v0"], "unknown environment './my_task:Headline-v0'"),
        (["play", ENV, "--policy", "TINY", "--tokenizer", "sp-1k"], "--tokenizer is for writing yourself"),
        (["evaluate", ENV, "--policy", "random", "--temperature", "0.5"], "--temperature is for sampling a model"),
        (["benchmark", "--seeds", "5", "report", "x"], "--seeds is for running a benchmark; leave it out with report"),
        (["benchmark", "report", "x", "--markdown", "--json"], "leave out one"),
        (["play"], "--help"),
        ([], "--help"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    expected: str,
    tiny_model: str,
    docs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([{"TINY": tiny_model, "DOCS": docs}.get(a, a) for a in arguments]) == 2
    assert expected in told(capsys)
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"document": "Rain fell.", "text": ', "rows.jsonl:2: malformed JSON"),
        ('{"document": "Rain fell."}', "rows.jsonl:2: column 'text' is missing"),
        ('{"document": "Rain fell.", "text": 3}', "rows.jsonl:2: column 'text' is no string but 3"),
        ('{"text": "It rained."}', "rows.jsonl:2: column 'document' is missing"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(
    tmp_path: Path, line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    assert main(["score", ENV, "--input", str(path), "--feedback", "brevity", "--json"]) == 2
    assert expected in told(capsys)


def test_a_score_that_is_not_finite_is_an_error_and_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_task.Broken, "left", 1)  # the first batch can be scored
    rows = [{"document": "Rain fell.", "text": f"It rained {i} times."} for i in range(100)]
    path = write(tmp_path / "rows.jsonl", rows)
    assert main(["score", ENV, "--input", path, "--feedback", "tiny_task:Broken", "--json"]) == 2
    assert "a reward must be finite" in told(capsys)


def test_a_run_folder_that_exists_is_not_overwritten(
    trained: str, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asking("train", tiny_model, docs, "--steps", "1", "--out", trained)) == 2
    assert "nothing is overwritten" in told(capsys)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_partner_where_nobody_answers_is_an_error(
    command: str, tiny_model: str, docs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--steps", "1", "--out", str(tmp_path / "run")] if command == "train" else []
    assert main([*asking(command, tiny_model, docs), "--partner", "script", *out]) == 2
    assert "partner='script' does not apply" in told(capsys)
    assert not (tmp_path / "run").exists()


def test_an_instruction_is_what_the_policy_reads_and_is_kept_by_its_run(
    tmp_path: Path, tiny_model: str, docs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, asked = str(tmp_path / "run"), ("--instruction", "Say it {in_braces} once more:")
    assert main(asking("train", tiny_model, docs, "--steps", "1", "--out", run, *asked)) == 0
    kept = json.loads(Path(run, "config.json").read_text())["env_kwargs"]
    assert kept["instruction"] == asked[1]
    seen = make_envs(ENV, 1, "all", kept).unwrapped
    assert asked[1] in seen.tokenizer.decode(seen.reset()[0]["input_ids"][0])
    source = find_policy(run)
    assert environment_arguments(ENV, source)["instruction"] == asked[1]
    assert environment_arguments(ENV, source, instruction="")["instruction"] == ""


def test_the_partner_is_part_of_what_rebuilds_the_environment() -> None:
    source = find_policy("tiny-1k")
    assert "partner" not in environment_arguments("Dialogue-v0", source)
    assert environment_arguments("Dialogue-v0", source, partner="smollm2-135m")["partner"] == "smollm2-135m"


# --- play ---------------------------------------------------------------------------------------------------


def played(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["play", *arguments]) == 0
    return capsys.readouterr().out


DIALOGUE = ["Dialogue-v0", "--tokenizer", "sp-1k", "--example", "travel-mountain-hut"]
GOALS = ["--feedback", '{"goals": 30, "complete": 2}']


def test_a_person_plays_a_dialogue_and_sees_replies_and_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "Sleep in the attic.\nDry them by the boiler.\nWhat?\nGo down the Erlen valley.\n"
    out = played(monkeypatch, capsys, said, *DIALOGUE, *GOALS)
    assert "You are the warden" in out and "partner: You're an angel." in out and "partner: So which way" in out
    assert out.count("your turn") == 4
    assert "episode · stop" in out and "a person wrote: The bunks are full" in out
    rows = [
        json.loads(line) for line in played(monkeypatch, capsys, said, *DIALOGUE, *GOALS, "--json").splitlines() if line
    ]
    assert [row["over"] for row in rows] == [False, False, False, True]
    assert rows[0]["reply"].startswith("You're an angel") and rows[-1]["reply"].startswith("Thank you.")
    assert rows[-1]["parts"]["goals"] == pytest.approx(1 / 5)


def test_play_that_runs_out_of_input_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    assert main(["play", *DIALOGUE, *GOALS]) != 0
    assert "the input ended before the episode did" in capsys.readouterr().err


def test_an_agent_is_watched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["TextGeneration-v0", "--policy", "tiny-1k", "--feedback", "length", "--seed", "3"]
    out = played(monkeypatch, capsys, "", *arguments)
    assert "── prompt" in out and "score" in out and "\033[31m" in out  # a random model thinks little of its tokens
    assert out == played(monkeypatch, capsys, "", *arguments)


@pytest.mark.parametrize("policy", ["reference", "random"])
def test_an_agent_that_is_no_model_is_watched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    # The tokenizer of a model is all that is needed of it.
    monkeypatch.setattr("agents.evaluate.find_policy", lambda name: PolicySource("sp-1k", agent=name))
    arguments = ["TextGeneration-v0", "--policy", policy, "--feedback", "length", "--seed", "3"]
    out = played(monkeypatch, capsys, "", *arguments)
    assert "── prompt" in out and "score" in out


@pytest.mark.models
def test_the_reference_is_evaluated_like_a_policy_but_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "TextGeneration-v0", "--policy", "reference", "-n", "4", "--feedback", "length", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["mean"] > 20
    assert main(["train", "TextGeneration-v0", "--policy", "reference", "--out", str(tmp_path / "run")]) != 0
    assert "'reference' cannot be trained" in capsys.readouterr().err
