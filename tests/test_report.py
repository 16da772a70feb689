from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from agents.curve import draw_curve, smoothed
from agents.evaluate import Evaluation, held_out
from agents.report import (
    NO_EVIDENCE,
    changes_table,
    compare,
    documents_table,
    make_report,
    markdown,
)
from llm_gym.episode import Episode
from llm_gym.feedback import Score

SOURCE = "The council met on Tuesday to talk about the new bridge over the river."


def episode(name: str, text: str, reward: float, reference: str | None = "A new bridge was discussed.") -> Episode:
    return Episode({"id": name}, SOURCE, text, reference, reward=reward, parts={"brevity": reward / 2})


def evaluation(rewards: list[float], judged: list[float | None]) -> Evaluation:
    episodes = [episode(f"d{i}", "The council met [on] Tuesday", r) for i, r in enumerate(rewards)]
    return Evaluation(episodes, [None if value is None else Score(value, {"chrf": value}) for value in judged])


FACTS = {
    "env": "TextSummary-v0",
    "algo": "grpo",
    "policy": "some/model",
    "seed": 0,
    "updates": 2,
    "train_seconds": 61.0,
    "tokens": 900,
}


def test_the_texts_for_a_document_are_one_value_of_their_mean() -> None:
    judged = [Score(value, {"chrf": value}) for value in (0.1, 0.3, 0.2, 0.4)]
    several = Evaluation([episode(f"d{i % 2}", f"Text {i}.", r) for i, r in enumerate((1, 3, 5, 6))], judged, texts=2)
    assert several.columns()["feedback"].tolist() == [3.0, 4.5]
    assert several.columns()["judge"].tolist() == pytest.approx([0.15, 0.35])
    written = report(several, several)
    assert (written["documents"], written["texts_each"]) == (2, 2)
    assert [text["before"] for text in written["texts"]] == ["Text 0.", "Text 1."]


def report(before: Evaluation, after: Evaluation) -> dict:
    return make_report(FACTS, before, after, {"brevity": -1.0})


def shown(table: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_change_is_paired_by_document() -> None:
    rewards = list(np.linspace(-5.0, 5.0, 20))
    changes = compare(evaluation(rewards, rewards), evaluation([r + 0.1 for r in rewards], rewards), {})
    feedback = next(change for change in changes if change.measure == "feedback")
    assert (feedback.low, feedback.high) == pytest.approx((0.1, 0.1))
    assert feedback.verdict == "improved"


def test_an_interval_that_touches_zero_is_no_evidence() -> None:
    before, after = evaluation([0.0] * 10, [0.5] * 10), evaluation([1.0, -1.0] * 5, [0.4] * 10)
    made = report(before, after)
    verdicts = {c["measure"]: c["verdict"] for c in made["changes"]}
    assert verdicts["feedback"] == NO_EVIDENCE
    assert verdicts["judge"] == "worse"
    assert verdicts["words"] == verdicts["feedback/brevity"] == ""
    assert NO_EVIDENCE in shown(changes_table(made)) and NO_EVIDENCE in markdown(made)


def test_an_unchanged_policy_shows_no_evidence() -> None:
    same = evaluation([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    assert {c.verdict for c in compare(same, same, {})} == {"", NO_EVIDENCE}


def test_a_report_without_references_says_that_the_judge_was_not_run() -> None:
    bare = Evaluation([episode(f"d{i}", "So it goes.", 1.0, None) for i in range(3)], [None] * 3)
    made = report(bare, bare)
    assert made["notes"] == ["The second judge was not run: the data has no reference column."]
    assert not any(c["measure"].startswith("judge") for c in made["changes"])
    assert all(c["reference"] is None for c in made["changes"])
    assert draw_curve([row(1, None)], made).startswith(b"\x89PNG")


def test_documents_without_reference_are_left_out_of_the_judgement_only() -> None:
    before = evaluation([0.0, 0.0, 0.0], [0.1, None, 0.3])
    made = report(before, evaluation([1.0, 1.0, 1.0], [0.2, None, 0.4]))
    documents = {c["measure"]: c["documents"] for c in made["changes"]}
    assert documents["feedback"] == 3 and documents["judge"] == documents["judge/chrf"] == 2
    assert "2 of 3 documents" in made["notes"][0]


def test_copied_share_and_words_of_the_references_stand_beside_the_policy() -> None:
    made = report(evaluation([0.0] * 3, [0.1] * 3), evaluation([1.0] * 3, [0.2] * 3))
    references = {c["measure"]: c["reference"] for c in made["changes"]}
    assert references["copied_share"] == 0.0 and references["words"] == 5.0


def test_a_report_is_json_and_its_tables_show_texts_as_they_are() -> None:
    made = report(evaluation([0.0] * 7, [0.1] * 7), evaluation([1.0] * 7, [0.2] * 7))
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    text = shown(documents_table(made, {f"d{i}": SOURCE for i in range(7)}))
    assert text.count("[on]") == 10 and "d0" not in text
    assert "second judge" in shown(changes_table(made))


def row(update: int, kl: float | None) -> dict:
    means = {"reward": 0.1 * update, "parts": {"brevity": 0.2}, "words": 9.0, "copied_share": 0.1}
    return {"update": update, "kl": kl, **means}


def test_the_curve_is_a_png_that_can_be_read_from_a_distance() -> None:
    from matplotlib import image

    made = report(evaluation([0.0] * 7, [0.1] * 7), evaluation([1.0] * 7, [0.2] * 7))
    picture = draw_curve([row(i, 0.01 * i) for i in range(1, 21)], made)
    pixels = image.imread(io.BytesIO(picture))
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1200
    assert (pixels[0, 0, :3] == 1).all()


def test_smoothing_leaves_gaps_and_does_not_spread_them() -> None:
    assert smoothed([1.0, None, 3.0], 3).tolist() == pytest.approx([1.0, np.nan, 3.0], nan_ok=True)


def test_held_out_documents_are_evenly_spaced_and_never_twice() -> None:
    ids = [str(i) for i in range(56)]
    assert held_out(ids, 100) == ids
    chosen = held_out(ids, 48)
    assert len(set(chosen)) == 48 and chosen[0] == "0" and chosen[-1] == "55"
