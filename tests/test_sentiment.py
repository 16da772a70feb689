"""SentimentMonitoring-v0: the format, the scorers, the corpus."""

from __future__ import annotations

import collections
import json
import re
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import words
from llm_gym.tasks.sentiment import ALARMS, LABELS, REASON_WORDS, SHOWN, SentimentMonitoring, answer, parse

TASK = SentimentMonitoring()
ROW = {
    "id": "a",
    "news": "A valve failed at the Orbel works this morning, and chlorine is drifting towards the school.",
    "label": "negative",
    "alarm": "yes",
    "reason": "chlorine is drifting towards the school",
}
CALM = {**ROW, "id": "b", "alarm": "no"}
GOOD = "negative | alarm | chlorine is drifting towards the school"


def score(text: str, row: dict[str, Any] = ROW, feedback: Any = None) -> Any:
    return build(feedback or TASK.feedback)([TASK.episode(row, text)])[0]


# --- the format ---------------------------------------------------------------------------------------------


@given(st.sampled_from(LABELS), st.sampled_from(sorted(ALARMS)), st.lists(st.from_regex(r"\A[a-z]{1,9}\Z"), min_size=1))
def test_an_answer_in_the_format_is_read_back(label: str, alarm: str, reason: list[str]) -> None:
    read = parse(answer(label, alarm, " ".join(reason)))
    assert read == ((label, alarm, " ".join(reason)) if len(reason) <= REASON_WORDS else None)


@given(st.text(max_size=80) | st.text("negativ |\nalrmo", max_size=40))
def test_any_text_is_read_or_refused_and_what_is_refused_gets_the_least(text: str) -> None:
    score_ = score(text)
    assert score_.value == -4.0 if parse(text) is None else score_.value >= -3.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "negative",
        "negative | alarm",
        "negative | alarm |",
        "negative | alarm | ",
        "negative | alarm | ...",
        "negative|alarm|chlorine is drifting",
        "Negative | alarm | chlorine is drifting",
        "bad | alarm | chlorine is drifting",
        "negative | yes | chlorine is drifting",
        "negative | alarm | chlorine | drifting",
        "negative | alarm | chlorine is\ndrifting",
        "Answer: negative | alarm | chlorine is drifting",
        f"{GOOD}\n{GOOD}",
        "negative | alarm | " + "chlorine " * (REASON_WORDS + 1),
    ],
)
def test_what_is_not_exactly_in_the_format_is_refused(text: str) -> None:
    assert parse(text) is None and score(text).value == -4.0


def test_the_examples_in_the_prompt_are_in_the_format_and_not_in_the_corpus() -> None:
    known = {example["news"] for example in load_examples(None, "all", TASK)}
    for news, *parts in SHOWN:
        assert parse(answer(*parts)) == tuple(parts) and parts[-1] in news and news not in known
    messages = TASK.messages("Judge.", ROW["news"], ROW)
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(SHOWN), "user"]
    assert messages[-1]["content"] == ROW["news"] and ROW["news"] in TASK.plain("Judge.", ROW["news"], ROW)


# --- the scorers --------------------------------------------------------------------------------------------


def test_a_missed_alarm_costs_more_than_a_false_one_and_a_right_one_nothing() -> None:
    quiet = GOOD.replace("alarm", "no alarm")
    costs = [score(t, r).parts["alarm_cost"] for t, r in ((GOOD, ROW), (GOOD, CALM), (quiet, CALM), (quiet, ROW))]
    assert costs == [0.0, 1.0, 0.0, 4.0]
    assert score(GOOD, CALM, {"alarm_cost": {"missed": 2.0, "false": 3.0}}).value == 3.0
    assert score("?", CALM, {"alarm_cost": {"missed": 2.0, "false": 3.0}}).value == 3.0


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "4", True])
def test_a_cost_is_a_number_not_below_zero(cost: Any) -> None:
    with pytest.raises(LLMGymError, match=r"missed=.* must be a finite cost"):
        build({"alarm_cost": {"missed": cost}})


def test_a_reason_must_stand_in_the_news_and_overlap_the_annotated_one() -> None:
    def parts(reason: str) -> tuple[float, float]:
        found = score(f"negative | alarm | {reason}").parts
        return found["reason_supported"], found["reason_overlap"]

    assert parts(ROW["reason"]) == (1.0, 1.0)
    supported, overlap = parts("a valve failed at the Orbel works")
    assert supported == 1.0 and 0 < overlap < 0.3
    assert parts("profits collapsed") == (0.0, 0.0)
    assert parts("chlorine") == (1.0, pytest.approx(2 / 7, abs=1e-6))
    assert parts("school the towards drifting")[0] == 0.0


def test_the_best_answer_is_the_reference_and_every_part_of_it_counts() -> None:
    best = score(TASK.reference(ROW)).value
    assert best == 6.0
    for worse in (GOOD.replace("negative", "neutral"), GOOD.replace("alarm", "no alarm"), GOOD[: GOOD.index("school")]):
        assert score(worse).value < best


def test_the_same_text_about_the_same_news_is_judged_by_each_rows_own_annotation() -> None:
    feedback = build({"alarm_cost": -1.0})
    row = {name: ROW[name] for name in ("id", "news", "label", "alarm")}
    scores = feedback([TASK.episode(r, GOOD) for r in (row, {**row, "alarm": "no"})])
    assert [s.value for s in scores] == [0.0, -1.0]


@pytest.mark.parametrize(("scorer", "column"), [("alarm_cost", "alarm"), ("reason_overlap", "reason")])
@pytest.mark.parametrize("text", ["nonsense", GOOD])
def test_a_row_without_the_annotation_is_an_error_not_a_number(scorer: str, column: str, text: str) -> None:
    row = {"id": "a", "news": "Rain.", "label": "neutral"}
    assert TASK.reference(row) is None
    with pytest.raises(LLMGymError, match=f"example 'a' has no '{column}'"):
        score(text, row, scorer)


def test_the_second_judge_likes_no_constant_alarm_and_half_likes_a_neighbouring_label() -> None:
    judge = {"sentiment_order": 1.0}
    labels = [score(GOOD.replace("negative", label), ROW, judge).value for label in LABELS]
    assert labels == [1.0, 0.5, 0.0] and score("bad news", ROW, judge).value == 0.0
    assert [score(GOOD, row, {"alarm_right": 1.0}).value for row in (ROW, CALM)] == [1.0, 0.0]


@pytest.mark.models
def test_reasons_of_like_meaning_are_more_similar() -> None:
    judge = {"reason_similarity": 1.0}
    near, far = (score(f"negative | alarm | {r}", ROW, judge).value for r in ("chlorine near a school", "cheap hats"))
    assert score(GOOD, ROW, judge).value > near > far and score("chlorine", ROW, judge).value == 0.0


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", "bullish", "label='bullish' must be one of negative, neutral, positive"),
        ("alarm", "maybe", "alarm='maybe' must be one of yes, no"),
        ("reason", "the plant leaked", "reason='the plant leaked' must stand in the news"),
    ],
)
def test_a_wrong_row_is_told_in_one_line(tmp_path: Any, column: str, value: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, column: value}) + "\n")
    with pytest.raises(LLMGymError) as caught:
        load_examples(path, "all", TASK)
    assert message in str(caught.value) and f"{path}:1" in str(caught.value) and "\n" not in str(caught.value)


# --- the corpus ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, str]]:
    path = files("llm_gym.data") / "corpora" / "sentiment_monitoring.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_split_has_every_kind_in_like_parts(corpus: list[dict[str, str]]) -> None:
    assert len(corpus) == 302 and len({row["id"] for row in corpus}) == 302
    sizes = collections.Counter(row["split"] for row in corpus)
    assert sizes == {"train": 180, "validation": 46, "test": 76}
    for kind in (("label", label) for label in LABELS):
        shares = [
            sum(row[kind[0]] == kind[1] for row in corpus if row["split"] == split) / size
            for split, size in sizes.items()
        ]
        assert max(shares) - min(shares) < 0.05, (kind, shares)
    kinds = collections.Counter((row["split"], row["label"], row["alarm"]) for row in corpus)
    assert all(kinds[split, "positive", "yes"] >= 1 or split == "test" for split in sizes), kinds
    assert all(kinds[split, label, "no"] >= 10 for split in sizes for label in LABELS), kinds


def test_pieces_are_short_and_no_two_are_alike(corpus: list[dict[str, str]]) -> None:
    grams = []
    for row in corpus:
        assert set(row) == {"id", "split", "news", "label", "alarm", "reason"}
        found = words(row["news"])
        assert 8 <= len(found) <= 60 and 2 <= len(words(row["reason"])) <= REASON_WORDS, row["id"]
        assert len(re.findall(r"[.!?](?= |$)", row["news"])) <= 3
        grams.append({tuple(found[k : k + 3]) for k in range(len(found) - 2)})
    for i, one in enumerate(grams):
        assert all(len(one & other) < 0.3 * min(len(one), len(other)) for other in grams[:i]), corpus[i]["id"]


def test_no_constant_answer_comes_near_the_reference_and_always_raising_the_alarm_pays_less_than_knowing(
    corpus: list[dict[str, str]],
) -> None:
    feedback = build(TASK.feedback)
    examples = load_examples(None, "all", TASK)

    def mean(write: Any) -> float:
        scores = feedback([TASK.episode(e, write(e)) for e in examples])
        return sum(s.value for s in scores) / len(scores)

    constant = max(
        mean(lambda e, head=f"{label} | {alarm}": f"{head} | {' '.join(e['news'].split()[:8])}")
        for label in LABELS
        for alarm in ALARMS.values()
    )
    assert mean(TASK.reference) == 6.0 and constant < 3.0
