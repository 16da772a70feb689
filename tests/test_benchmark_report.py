"""What a benchmark reports: a page that needs nothing and runs nothing, tables, and what changed to another."""

from __future__ import annotations

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.benchmark import tables
from agents.benchmark.compare import compare
from agents.benchmark.matrix import make_plan
from agents.benchmark.report import markdown, page, write_report
from agents.benchmark.results import THRESHOLDS, read_outcomes, summarise
from agents.benchmark.runner import run_benchmark
from agents.evaluate import Evaluation
from llm_gym.cli import main
from llm_gym.episode import Episode

ENV = "tiny_task:TinyAnswer-v0"
AGENTS = ("untrained", "reference", "random", "best-of-2", "best-of-8", "grpo", "own_agents:Script", "own_agents:Dying")
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    out = tmp_path_factory.mktemp("report") / "b"
    run_benchmark(make_plan(AGENTS, [ENV], seeds=2, policy=tiny_model, tokens=600), out)
    write_report(out)
    return out


@pytest.fixture(scope="module")
def summary(bench: Path) -> dict[str, Any]:
    return json.loads((bench / "results.json").read_text())


class Page(HTMLParser):
    """Reads a page, and sees to it that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# -------------------------------------------------------------------- the page


def test_the_page_parses_and_needs_nothing_from_elsewhere(bench: Path) -> None:
    text = (bench / "report.html").read_text()
    found = Page(text)
    assert found.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in found.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(found.tags)
    assert "url(" not in text and "@import" not in text
    for address in found.addresses:
        picture = base64.b64decode(address.partition(",")[2]).decode()
        assert picture.rstrip().endswith("</svg>") and "<script" not in picture and "<image" not in picture
    words = " ".join(" ".join(found.text).split())
    for name in (*AGENTS, "Performance profile", "Probability of improvement", "Sample efficiency", "signal 9"):
        assert name in words, name


def test_what_models_write_is_shown_and_never_run(bench: Path) -> None:
    text = (bench / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;x" in text
    assert "<script>x" in " ".join(Page(text).text)


def test_markup_is_escaped_wherever_it_stands(summary: dict[str, Any]) -> None:
    hostile = "</div><script>alert('&amp;')</script><img src=http://example.org/x onerror=alert(1)>"
    told = json.loads(json.dumps(summary).replace("own_agents:Script", "own_agents:Script<script>"))
    told["notes"].append(hostile)
    told["cells"][0]["error"] = hostile
    text = {"agent": hostile, "score": 0.5, "judge": None, "turns": [{"role": "partner", "text": hostile}]}
    documents = [{"id": hostile, "source": hostile, "texts": [text]}]
    found = page(told, [{"env": hostile, "documents": documents}])
    read = Page(found)
    assert "script" not in read.tags and read.tags.count("img") == Page(page(summary, [])).tags.count("img")
    assert " ".join(read.text).count(hostile) == 7


def test_a_page_of_a_benchmark_that_has_hardly_begun(tmp_path: Path, tiny_model: str) -> None:
    from agents.benchmark.matrix import write_plan

    write_plan(tmp_path, make_plan(["random"], [ENV], policy=tiny_model))
    written = write_report(tmp_path)
    assert "7 of 7 cells have not been run yet" in written["notes"][0]
    assert f"{ENV}: nothing is normalised before" in written["notes"][1]
    assert Page((tmp_path / "report.html").read_text()).addresses == []


# -------------------------------------------------------------------- the numbers


def test_the_untrained_policy_has_zero_and_the_reference_one(summary: dict[str, Any]) -> None:
    for name in ("feedback", "judge"):
        normal = {agent: [] for agent in AGENTS}  # type: ignore[var-annotated]
        for row in summary["cells"]:
            normal[row["agent"]].append(row["normalised"][name])
        assert np.mean(normal["untrained"]) == pytest.approx(0, abs=1e-9) and normal["reference"] == [pytest.approx(1)]
        means = summary["aggregates"][name]["interquartile_mean"]
        assert means["reference"]["value"] == pytest.approx(1) and means["reference"]["low"] is None
        assert "own_agents:Dying" not in means  # it has no scores, and so no aggregate
        assert means["random"]["low"] <= means["random"]["value"] <= means["random"]["high"]
    better = summary["aggregates"]["feedback"]["improvement"]
    assert better["best-of-8"]["untrained"]["value"] == 1 and better["untrained"]["best-of-8"]["value"] == 0
    for profile in summary["aggregates"]["feedback"]["profile"].values():
        assert len(profile["value"]) == len(THRESHOLDS) and (np.diff(profile["value"]) <= 0).all()


def test_what_is_half_run_is_aggregated_over_whole_seeds(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    shutil.copytree(bench, out)
    for agent in ("best-of-2", "untrained"):
        shutil.rmtree(out / "TinyAnswer-v0" / f"{agent}-1")
    found = summarise(*read_outcomes(out))
    means = found["aggregates"]["feedback"]["interquartile_mean"]
    assert means["best-of-2"]["low"] is None and means["best-of-8"]["low"] is not None
    assert means["untrained"]["value"] == pytest.approx(0)
    assert {row[0]: row[-1] for row in tables.overview(found).rows}["best-of-2"] == "1 of 2"


def test_an_environment_says_what_texts_are_like(summary: dict[str, Any]) -> None:
    rows = summary["environments"][ENV]
    assert rows["untrained"]["win_rate"] is None and rows["untrained"]["kl"] == 0
    assert rows["reference"]["win_rate"]["value"] > 0.9 and rows["reference"]["documents"] == 48
    assert rows["grpo"]["seeds"] == 2 and np.isfinite(rows["grpo"]["kl"])
    assert rows["best-of-8"]["kl"] is None and rows["best-of-8"]["kl_at_most"] == pytest.approx(
        np.log(8) - 7 / 8, abs=1e-4
    )
    assert rows["own_agents:Script"]["distinct_2"] < rows["reference"]["distinct_2"]
    curve = summary["curves"][ENV]["grpo"]
    assert len(curve["tokens"]) == len(curve["value"]) and curve["tokens"] == sorted(curve["tokens"])
    assert all(a <= b + 1e-9 for a, b in zip(curve["low"], curve["high"], strict=True))


def test_the_tables_are_markdown_too(summary: dict[str, Any], bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "report", str(bench), "--markdown"]) == 0
    shown = capsys.readouterr().out
    assert shown == markdown(summary)
    assert main(["benchmark", "report", str(bench / "results.json"), "--markdown"]) == 0
    assert capsys.readouterr().out == shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 2  # of two tables
    assert any(line.startswith("| best-of-8 |") for line in rows)
    assert tables.overview(summary).rows[-1][-1] == "0 of 2"


def test_where_the_reference_is_no_better_nothing_is_normalised(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    shutil.copytree(bench, out)
    path = out / "TinyAnswer-v0" / "reference-0" / "result.json"
    stored = json.loads(path.read_text())
    stored["measures"].update(judge=-1.0)
    path.write_text(json.dumps(stored))
    found = summarise(*read_outcomes(out))
    assert found["scales"]["judge"] == {ENV: None} and found["aggregates"]["judge"]["interquartile_mean"] == {}
    assert all(row["normalised"]["judge"] is None for row in found["cells"])
    assert any("by the second judge the reference is not better" in note for note in found["notes"])
    assert found["aggregates"]["feedback"]["interquartile_mean"]
    Page(page(found, []))


# -------------------------------------------------------------------- what changed


@pytest.fixture(scope="module")
def changed(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same benchmark with a better best-of-2: it chooses among eight. And without random."""
    out = tmp_path_factory.mktemp("changed") / "b"
    shutil.copytree(bench, out)
    env = out / "TinyAnswer-v0"
    for seed in (0, 1):
        shutil.rmtree(env / f"best-of-2-{seed}")
        shutil.copytree(env / f"best-of-8-{seed}", env / f"best-of-2-{seed}")
        shutil.rmtree(env / f"random-{seed}")
    return out


def test_what_changed_is_said_with_intervals(bench: Path, changed: Path) -> None:
    report = compare(bench, changed)
    rows = {(row["agent"], row["measure"]): row for row in report["changes"]}
    better = rows["best-of-2", "feedback"]
    assert better["verdict"] == "better" and 0 < better["low"] < better["change"] < better["high"]
    assert better["documents"] == 48 and better["seeds"] == [2, 2]
    assert better["change"] == pytest.approx(better["second"] - better["first"])
    for agent in ("untrained", "grpo", "own_agents:Script"):
        found = rows[agent, "feedback"]
        assert found["change"] == 0 and found["low"] <= 0 <= found["high"]
        assert found["verdict"] in ("the same", "no evidence of a change")
    assert rows["reference", "judge"]["verdict"] == "the same"
    assert report["only_first"] == [f"{ENV} · random"] and report["only_second"] == [] and report["settings"] == []
    turned = {(row["agent"], row["measure"]): row for row in compare(changed, bench)["changes"]}
    assert turned["best-of-2", "feedback"]["verdict"] == "worse"


def test_changes_are_paired_by_document_whatever_their_order(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    shutil.copytree(bench, out)
    path = out / "TinyAnswer-v0" / "reference-0" / "after.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)[1:])))
    rows = {(row["agent"], row["measure"]): row for row in compare(bench, out)["changes"]}
    assert rows["reference", "feedback"]["documents"] == 47 and rows["reference", "feedback"]["verdict"] == "the same"


def test_the_command_says_it_in_a_table_and_in_json(
    bench: Path, changed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "compare", str(bench), str(changed)]) == 0
    shown = capsys.readouterr().out
    assert "best-of-2" in shown and "better" in shown and "only in A:" in shown
    assert main(["benchmark", "compare", str(bench), str(changed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(bench, changed)


# -------------------------------------------------------------------- comparing texts


def test_win_rates_leave_out_what_was_not_judged() -> None:
    from agents.comparison import pooled, win_rates
    from llm_gym.feedback import Score

    def evaluation(values: list[float | None]) -> Evaluation:
        episodes = [Episode({"id": str(i)}, source="", text="a b c") for i in range(len(values))]
        return Evaluation(episodes, [None if v is None else Score(v, {}) for v in values])

    plain, _ = win_rates(evaluation([1.0, 0.0, None]), evaluation([0.0, 1.0, 5.0]))
    assert plain.value == 0.5
    assert win_rates(evaluation([None]), evaluation([1.0]))[0].value is None
    both = pooled([evaluation([1.0, 0.0]), evaluation([2.0, 2.0])])
    assert both.texts == 2 and win_rates(both, evaluation([0.5, 0.5]))[0].value == 0.75


def test_divergences_are_the_log_ratio_of_each_text(tiny_model: str, tmp_path: Path) -> None:
    import torch

    import tiny
    from agents.comparison import divergences
    from agents.evaluate import make_envs
    from agents.rollout import play

    env = tiny.make_env(tiny_model, tmp_path)
    policy = tiny.make_policy(env, tiny_model)
    arguments = {
        "tokenizer": tiny_model,
        "data": tiny.write_data(tmp_path),
        "feedback": tiny.RULES,
        "max_new_tokens": 6,
    }
    envs = make_envs("TextSummary-v0", 3, "all", {**arguments, "max_prompt_tokens": 64, "instruction": "Sum up:"})
    episodes = play(policy, envs, [*envs.example_ids, *envs.example_ids]) or []
    assert max(map(abs, divergences(episodes, policy))) < 1e-3
    with policy.reference():
        found = divergences(episodes, policy)
        for episode, value in zip(episodes, found, strict=True):
            ids = torch.tensor(np.concatenate([episode.prompt_ids, episode.response_ids]))[None].long()
            logits = policy.lm(input_ids=ids).logits[0, :, : policy.actions].log_softmax(-1)
            start = len(episode.prompt_ids)
            known = logits[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum()
            assert value == pytest.approx(float(episode.log_probs.sum()) - float(known), abs=1e-3)  # type: ignore[union-attr]
    assert max(map(abs, found)) > 0.01
