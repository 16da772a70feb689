"""Tone and topic by zero-shot classification, with the real models on the bundled corpus."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Scorer, build
from llm_gym.feedback.zero_shot import TONES, TOPICS, JudgedTone, JudgedTopic, Tone, Topic
from llm_gym.tasks.generation import TextGeneration


def episode(text: str, **row: str) -> Episode:
    return Episode({"id": "x", **row}, source="They met at noon.", text=text)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return load_examples(None, "validation", TextGeneration(), None)


def shares(scorer: Scorer, column: str, labels: tuple[str, ...], rows: list[dict[str, str]]) -> np.ndarray:
    """The score of each continuation for each label."""
    flat = [episode(row["continuation"], **{column: label}) for row in rows for label in labels]
    return np.array(scorer(flat)).reshape(len(rows), -1)


def test_the_labels_are_those_of_the_corpus() -> None:
    everything = load_examples(None, "all", TextGeneration(), None)
    assert {row["tone"] for row in everything} == set(TONES) and {row["topic"] for row in everything} == set(TOPICS)
    assert len(everything) >= 150 and len({row["prompt"] for row in everything}) == len(everything)


@pytest.mark.models
@pytest.mark.parametrize(
    ("scorer", "column", "labels", "right"),
    [
        (Tone, "tone", TONES, 0.3),
        (Topic, "topic", TOPICS, 0.6),
        (JudgedTone, "tone", TONES, 0.25),
        (JudgedTopic, "topic", TOPICS, 0.6),
    ],
)
def test_texts_by_people_are_recognised_well_above_chance(scorer, column, labels, right, rows) -> None:
    found = shares(scorer(), column, labels, rows)
    assert (found >= 0).all() and (found <= 1).all()
    wanted = np.array([labels.index(row[column]) for row in rows])
    assert (found.argmax(1) == wanted).mean() >= right >= 2 / len(labels)


@pytest.mark.models
@pytest.mark.parametrize(("scorer", "column", "label"), [(Tone, "tone", "gloomy"), (Topic, "topic", "music")])
def test_to_name_the_label_is_not_to_have_it(scorer, column, label) -> None:
    plain, named, empty, only = scorer()(
        [
            episode("The bus was late.", **{column: label}),
            episode(f"The {label} bus was late.", **{column: label}),
            episode("", **{column: label}),
            episode(f"{label.upper()}, {label}!", **{column: label}),
        ]
    )
    assert named == pytest.approx(plain, abs=0.02) and empty == 0.0
    assert only <= 0.5


@pytest.mark.models
def test_a_label_of_the_users_own_joins_the_others() -> None:
    volcano, bus = Topic()([episode(t, topic="volcanoes") for t in ("Lava ran down the crater.", "The bus was late.")])
    assert volcano > 0.5 > bus


def test_a_row_without_a_label_and_a_single_label_are_errors() -> None:
    with pytest.raises(LLMGymError, match="'x' has no 'topic'"):
        Topic()([episode("A text.")])
    with pytest.raises(LLMGymError, match="at least two"):
        build({"tone": {"weight": 1, "labels": ["calm"]}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "cheerful"}, "labels='cheerful' must be a list of texts, as in"),
        ({"labels": ["a", 3]}, "must be a list of texts"),
        ({"temperature": 0}, "temperature=0 must be a positive number"),
        ({"temperature": "hot"}, "temperature='hot' must be a positive number"),
    ],
)
def test_an_option_that_cannot_be_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=re.escape(message)):
        build({"topic": options})


def test_the_instruction_names_tone_and_topic_and_leaves_other_braces_alone() -> None:
    task = TextGeneration()
    row = {"id": "x", "prompt": "At noon", "tone": "calm", "topic": "food"}
    assert "calm tone" in task.instruct(task.instruction, row) and "about food" in task.instruct(task.instruction, row)
    assert task.instruct('Answer as {"tone": {tone}, {other}}', row) == 'Answer as {"tone": calm, {other}}'
