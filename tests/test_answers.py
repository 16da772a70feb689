"""Checkable answers: QuestionAnswering-v0 and its scorers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.evaluate import make_envs
from llm_gym.data import load_examples
from llm_gym.envs.prompts import PromptBuilder
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.answers import ABSTENTION, Answer, AnswerExact, AnswerSupport, abstains
from llm_gym.feedback.reference import ChrF
from llm_gym.models.load import load_tokenizer
from llm_gym.tasks.question_answering import QuestionAnswering

TASK = QuestionAnswering()
ROW = {"id": "a", "context": "The ferry leaves at 6:40 from the fish market.", "question": "When does it leave?"}
WORDS = st.sampled_from("the a ferry fish market leaves 6 40 noon".split())
SAID = st.lists(WORDS, max_size=6).map(" ".join)
ANSWERS = st.lists(st.lists(WORDS, max_size=3).map(lambda found: " ".join([*found, "ferry"])), max_size=3)


def said(text: str, answers: list[str] | None) -> Episode:
    row: dict[str, Any] = {**ROW, **({} if answers is None else {"answers": answers})}
    return Episode(row, source=ROW["context"], text=text)


def test_f1_and_exact_match_leave_out_case_punctuation_and_articles() -> None:
    texts = ["The Fish Market!", "fish market", "at the fish market", "market", "noon", ""]
    episodes = [said(text, ["the fish market"]) for text in texts]
    assert Answer()(episodes) == pytest.approx([1, 1, 4 / 5, 2 / 3, 0, 0])
    assert AnswerExact()(episodes) == [1, 1, 0, 0, 0, 0]


def test_the_best_of_several_answers_counts() -> None:
    assert Answer()([said("at 6.40", ["noon", "6:40", "at 6:40"]), said("noon", ["noon", "6:40"])]) == [1, 1]


@pytest.mark.parametrize("text", [ABSTENTION, "Not answerable.", "  NOT ANSWERABLE!"])
def test_abstaining_is_right_where_there_is_no_answer_and_wrong_where_there_is_one(text: str) -> None:
    for scorer in (Answer(), AnswerExact()):
        assert scorer([said(text, []), said(text, ["6:40"]), said(text, ["answerable"])]) == [1, 0, 0]


def test_any_answer_to_an_unanswerable_question_is_wrong() -> None:
    texts = ["6:40", "", f"It is {ABSTENTION}", f"6:40, or {ABSTENTION}"]
    assert Answer()([said(text, []) for text in texts]) == [0, 0, 0, 0]


@given(SAID, ANSWERS)
def test_exact_is_never_above_f1_and_both_lie_between_0_and_1(text: str, answers: list[str]) -> None:
    (f1,), (exact,) = Answer()([said(text, answers)]), AnswerExact()([said(text, answers)])
    assert 0 <= exact <= f1 <= 1


def test_support_is_the_share_of_content_words_that_the_passage_has() -> None:
    texts = ["the fish market", "the fish shop", "on a plane", "", ABSTENTION]
    assert AnswerSupport()([said(text, []) for text in texts]) == [1, 0.5, 0, 0, 1]


def test_a_row_that_does_not_say_its_answers_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="example 'a' has no 'answers'"):
        Answer()([said("noon", None)])


def test_the_second_judge_takes_the_best_of_the_answers_too() -> None:
    answers = ["Hannelore at the bakery", "Hannelore"]
    episodes = [TASK.episode({**ROW, "answers": order}, "Hannelore") for order in (answers, answers[::-1])]
    assert ChrF()(episodes) == [1, 1]
    assert ChrF()([TASK.episode({**ROW, "answers": []}, ABSTENTION)]) == [1]


def test_two_questions_about_one_passage_are_not_taken_for_one_another() -> None:
    """The passage is the source; what is remembered of a score must know the answers too."""
    feedback = build(TASK.feedback)
    episodes = [said("6:40", ["6:40"]), said("6:40", ["the fish market"]), said("6:40", [])]
    values = [feedback([episode])[0].value for episode in episodes]
    assert values[0] > values[1] == values[2] and [score.value for score in feedback(episodes)] == values


def test_the_reference_beats_every_cheap_answer_to_every_question_of_the_corpus() -> None:
    feedback = build(TASK.feedback)
    for row in load_examples(None, "all", TASK):
        reference, nothing, passage, question = (
            feedback([TASK.episode(row, text)])[0].value
            for text in (TASK.reference(row), "", row["context"], row["question"])
        )
        assert reference > max(nothing, passage, question), row["id"]
        abstention = feedback([TASK.episode(row, ABSTENTION)])[0].value
        assert (abstention < reference) == bool(row["answers"]), row["id"]


def test_the_prompt_holds_passage_and_question_and_a_long_passage_loses_words_but_never_the_question() -> None:
    tokenizer = load_tokenizer("sp-1k")
    row = {**ROW, "answers": ["6:40"], "context": " ".join(["The ferry leaves at 6:40."] * 60)}
    prompt = PromptBuilder(TASK, tokenizer, TASK.instruction, "chat", 200)(row)
    text = tokenizer.decode(prompt.ids)
    assert prompt.words_cut > 0 and "When does it leave?" in text and ABSTENTION in text and "6:40" in text


def test_the_environment_rewards_the_right_answer_and_the_right_abstention() -> None:
    envs = make_envs("QuestionAnswering-v0", 2, "all", {"tokenizer": "sp-1k"})
    envs.reset(options={"example": ["ferry-notice-1", "ferry-notice-3"]})
    for row, text in enumerate(("6:40", ABSTENTION)):
        for token in [*envs.tokenizer(text, add_special_tokens=False)["input_ids"], 2]:
            envs.write(np.array([row]), np.array([token]))
        envs.end_turns(np.array([row]))
    assert [turn.reward for _, turn in envs.score()] == [5.25, 5.25]


# --- data ---------------------------------------------------------------------------------------------------


def load(path: Path, content: str, **columns: str) -> list[dict[str, Any]]:
    path.write_text(content, encoding="utf-8")
    return load_examples(path, "all", TASK, columns)


def line(**row: Any) -> str:
    return json.dumps({**ROW, "answers": ["6:40"], **row}) + "\n"


def test_an_empty_list_of_answers_says_something_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert load(path, line(answers=[]))[0]["answers"] == []
    for content, words in ((line(answers=None), "is empty"), (line() + json.dumps(ROW), "is missing")):
        with pytest.raises(LLMGymError, match=f"'answers' {words}"):
            load(path, content)


def test_answers_in_csv_are_a_json_list_or_separated_by_semicolons(tmp_path: Path) -> None:
    rows = load(
        tmp_path / "rows.csv",
        'context,question,answers\nA text.,One?,"[""a, b"", ""c""]"\nA text.,Two?,x; y\nA text.,Three?,[]\n',
    )
    assert [row["answers"] for row in rows] == [["a, b", "c"], ["x", "y"], []]
    with pytest.raises(LLMGymError, match=":2: column 'answers' is empty"):
        load(tmp_path / "rows.csv", "context,question,answers\nA text.,One?,\n")


def test_parquet_keeps_empty_lists_and_nested_answers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{**ROW, "id": str(i), "answers": {"text": texts}} for i, texts in enumerate([["6:40", "at 6:40"], []])]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = load_examples(tmp_path / "rows.parquet", "all", TASK, {"answers": "answers.text"})
    assert [row["answers"] for row in found] == [["6:40", "at 6:40"], []]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["the"], "'the' has no word that could be matched"),
        (["6:40", "?!"], "has no word"),
        (["Not answerable."], "the list must be empty"),
        ("6:40", "must be a list of non-empty strings"),
        ([""], "must be a list of non-empty strings"),
    ],
)
def test_answers_that_no_text_could_match_are_errors_with_their_line(tmp_path, answers, words) -> None:
    with pytest.raises(LLMGymError, match=":2: .*" + words):
        load(tmp_path / "rows.jsonl", line() + line(id="b", answers=answers))


def test_questions_about_one_passage_stay_in_one_split(tmp_path: Path) -> None:
    rows = [line(id=f"{i}-{k}", context=f"Passage {i}.", question=f"{k}?") for i in range(12) for k in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    splits = [load_examples(tmp_path / "rows.jsonl", s, TASK) for s in ("train", "validation", "test")]
    assert [len(rows) for rows in splits] == [40, 4, 4]
    passages = [{row["context"] for row in rows} for rows in splits]
    assert not (passages[0] & passages[1] or passages[0] & passages[2] or passages[1] & passages[2])


def test_abstains_only_by_the_phrase_alone() -> None:
    assert abstains("not answerable") and not abstains("answerable") and not abstains("") and not abstains("not")
