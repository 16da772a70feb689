"""Story-v0 and its scorers: elements and coherence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.data import load_examples
from llm_gym.envs.prompts import PromptBuilder
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.coherence import Coherence, new_neighbours, sentences
from llm_gym.feedback.rules import Elements
from llm_gym.models.load import load_tokenizer
from llm_gym.tasks.story import Story

TASK = Story()
ROW: dict[str, Any] = {
    "id": "a",
    "premise": "A ferryman makes one more crossing.",
    "elements": ["bell", "brass key", "goose"],
}


def told(text: str, **row: Any) -> Any:
    return TASK.episode({**ROW, **row}, text)


# --- elements -----------------------------------------------------------------------------------------------


def test_elements_are_whole_words_in_any_case_also_in_the_plural() -> None:
    texts = ["Bells! A BRASS KEY, a goose.", "The brass keys.", "A bellow, brass or key; mongoose.", ""]
    assert Elements()([told(text) for text in texts]) == pytest.approx([1, 1 / 3, 0, 0])


def test_a_row_without_elements_requires_none() -> None:
    row = {"id": "a", "premise": "A ferryman."}
    assert Elements()([TASK.episode(row, "He rowed.")]) == [1]


def test_two_rows_that_differ_in_their_elements_are_not_taken_for_one_another() -> None:
    feedback = build("elements")
    values = [feedback([told("The bell rang.", elements=names)])[0].value for names in (["bell"], ["goose"])]
    assert values == [1, 0]


# --- sentences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("He rowed. She sang! Why? No one knew.", 4),
        ('"Is it late?" she asked. "Very."', 2),
        ("Élan was all. Über alles stood the tower.", 2),
        ("It was 6.40 then. 7 o'clock came.", 2),
        ("no capital. none here.", 1),
    ],
)
def test_where_sentences_end(text: str, count: int) -> None:
    assert len(sentences(text)) == count


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=80))
def test_sentences_are_the_text_in_order(text: str) -> None:
    place = 0
    for sentence in sentences(text):
        place = text.index(sentence, place) + len(sentence)


def test_a_sentence_made_of_earlier_words_is_no_step() -> None:
    pairs, count = new_neighbours("The old boat sank. The boat, so old, sank. Ducks came. The old boat sank.")
    assert (pairs, count) == ([("The boat, so old, sank.", "Ducks came.")], 3)


# --- coherence, on a random model and on the real one -------------------------------------------------------


def test_coherence_lies_between_minus_1_and_1_and_does_not_depend_on_the_batch(tiny_model: str) -> None:
    scorer = Coherence(model=tiny_model)
    texts = ["", "One sentence.", "Rain fell. Ducks came. " * 5, "Rain fell. Ducks came. The road was closed by noon."]
    values = scorer([told(text) for text in texts])
    assert values[:2] == [0, 0] and all(-1 <= value <= 1 for value in values)
    assert values == [scorer([told(text)])[0] for text in texts]


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1.0}, {"steps": 0}])
def test_a_limit_or_number_of_steps_that_makes_no_sense_is_an_error(options: dict[str, float]) -> None:
    with pytest.raises(LLMGymError, match="must be"):
        build({"coherence": {"weight": 1, **options}})


@pytest.mark.models
def test_a_story_is_more_coherent_than_sentences_of_several_than_platitudes_and_than_repeats() -> None:
    rows = load_examples(None, "validation", TASK)
    parts = [sentences(row["story"]) for row in rows]
    mixed = [" ".join(parts[(i + k) % len(parts)][min(k, 4)] for k in range(6)) for i in range(len(rows))]
    platitudes = "It was a day like any other. Nobody knew why. Things changed. Life went on. Everyone was content."
    texts = [row["story"] for row in rows] + mixed + [platitudes, " ".join([parts[0][0]] * 6)]
    values = Coherence()([TASK.episode(rows[0], text) for text in texts])
    stories, others = np.array(values[: len(rows)]), np.array(values[len(rows) : -2])
    assert (stories > others).mean() >= 0.8 and stories.mean() > max(values[-2:]) and values[-1] == 0


# --- the task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_prompt_asks_for_the_elements_where_there_are_any(template: str) -> None:
    tokenizer = load_tokenizer("sp-1k")
    builder = PromptBuilder(TASK, tokenizer, TASK.instruction, template, 300)
    with_elements = tokenizer.decode(builder(ROW).ids)
    without = tokenizer.decode(builder({"id": "b", "premise": ROW["premise"]}).ids)
    assert "bell, brass key, goose" in with_elements and ROW["premise"] in with_elements
    assert ROW["premise"] in without and "Use these" not in without


@pytest.mark.parametrize("element", ["!", "a thing of five words"])
def test_an_element_that_cannot_be_named_is_an_error(tmp_path: Path, element: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "elements": ["bell", element]}) + "\n")
    with pytest.raises(LLMGymError, match=":1: element"):
        load_examples(path, "all", TASK)


def test_elements_in_csv_are_separated_by_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("premise,elements\nA ferryman rows.,bell; brass key\nA goose.,\n")
    assert [row.get("elements") for row in load_examples(path, "all", TASK)] == [["bell", "brass key"], None]
