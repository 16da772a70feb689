"""Translation-v0: languages, scorers, the corpus."""

from __future__ import annotations

import collections
import json
from importlib.resources import files
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import words
from llm_gym.tasks.translation import Translation

TASK = Translation()
ROW = {
    "id": "a",
    "source": "The ferry was delayed by fog and reached the island two hours late.",
    "target": "Die Fähre hatte wegen Nebels Verspätung und erreichte die Insel erst zwei Stunden später.",
    "languages": "en-de",
}
DIRECTIONS = ("en-de", "en-fr", "de-en")


def score(text: str, feedback: Any, row: dict[str, str] = ROW) -> float:
    return build(feedback)([TASK.episode(row, text)])[0].value


@pytest.mark.parametrize(("languages", "names"), [("en-de", ("English", "German")), ("fr-en", ("French", "English"))])
def test_the_prompt_names_both_languages(languages: str, names: tuple[str, str], tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "source": "Say {from} in {into}.", "languages": languages}) + "\n")
    env = gym.make("Translation-v0", data=str(path), split="all", tokenizer="sp-1k", feedback="length").unwrapped
    observation, _ = env.reset(seed=0)
    prompt = env.tokenizer.decode(observation["input_ids"][observation["roles"] > 0])
    assert f"from {names[0]} into {names[1]}." in prompt and "Say {from} in {into}." in prompt


@pytest.mark.parametrize("languages", ["en", "en-en", "en-xx", "English-German", "en-de-fr", "en_de"])
def test_wrong_languages_are_told_in_one_line(languages: str, tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**ROW, "languages": languages}) + "\n")
    with pytest.raises(LLMGymError) as caught:
        load_examples(path, "all", TASK)
    assert f"languages='{languages}' must be two different codes" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_may_lie_in_an_object_and_a_constant_stand_for_one(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"translation": {"de": "Der Zug fährt ab.", "en": "The train is leaving."}}) + "\n")
    columns = {"source": "translation.en", "target": "translation.de", "languages": "=en-de"}
    (example,) = load_examples(path, "all", TASK, columns)
    assert (example["source"], example["target"]) == ("The train is leaving.", "Der Zug fährt ab.")
    assert example["languages"] == "en-de"
    with pytest.raises(LLMGymError, match=r"no column 'translation.fr', only 'translation.de', 'translation.en'"):
        load_examples(path, "all", TASK, {**columns, "target": "translation.fr"})


# --- scorers ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0, 2))
def test_length_ratio_is_zero_within_its_tolerance_and_the_same_both_ways(n: int, m: int, tolerance: float) -> None:
    def value(a: int, b: int) -> float:
        feedback = {"length_ratio": {"tolerance": tolerance}}
        return score("wort " * b, feedback, {**ROW, "source": "word " * a})

    assert value(n, n) == 0 and value(n, m) >= 0
    if m:
        assert value(n, m) == pytest.approx(value(m, n), abs=1e-5)
        assert value(n, 2 * m) >= value(n, m) or m < n


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf"), "1", True])
def test_a_tolerance_is_a_number_not_below_zero(tolerance: Any) -> None:
    with pytest.raises(LLMGymError, match="tolerance=.* must be a finite number"):
        build({"length_ratio": {"tolerance": tolerance}})


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1", True])
def test_a_limit_of_coverage_is_a_positive_number(limit: Any) -> None:
    with pytest.raises(LLMGymError, match="limit=.* must be a positive number"):
        build({"coverage": {"limit": limit}})


def test_coverage_is_clipped_to_its_limit(tiny_model: str) -> None:
    free, clipped = (
        [score(text, {"coverage": {"model": tiny_model, **limit}}) for text in (ROW["source"], ROW["target"], "x", "")]
        for limit in ({}, {"limit": 0.001})
    )
    assert any(abs(value) > 0.001 for value in free) and free[-1] == 0
    assert clipped == [pytest.approx(min(0.001, max(-0.001, value)), abs=2e-6) for value in free]


def test_a_word_left_as_it_is_earns_no_coverage(tiny_model: str) -> None:
    feedback = {"coverage": {"model": tiny_model, "own_words": True}}
    assert score("The ferry was delayed, by fog", feedback) == score(ROW["source"], feedback) == 0
    assert score("The ferry hatte Nebel", feedback) == score("hatte Nebel", feedback) != 0


@pytest.mark.parametrize("scorer", ["bleu", "ter", "chrf"])
def test_measures_against_the_reference_rank_by_closeness_and_stay_within_bounds(scorer: str) -> None:
    texts = [ROW["target"], ROW["target"].replace("Insel", "Küste"), "Die Fähre hatte Verspätung.", "Guten Tag!", ""]
    values = [score(text, scorer) for text in texts]
    assert values[0] == 1 and values[0] > values[1] > values[2] > values[3] >= values[4] == 0
    with pytest.raises(LLMGymError, match="has no reference"):
        score("Ja.", scorer, {name: ROW[name] for name in ("id", "source", "languages")})


@given(st.text(max_size=60))
def test_any_text_is_within_bounds(text: str) -> None:
    for scorer in ("bleu", "ter"):
        assert 0 <= score(text, scorer) <= 1


@pytest.mark.models
def test_the_default_ranks_a_reference_above_tricks() -> None:
    feedback = build(TASK.feedback)
    examples = load_examples(None, "validation", TASK)[:13]
    for i, example in enumerate(examples):
        alike = [other for other in examples if other["languages"] == example["languages"]]
        other = alike[(alike.index(example) + 1) % len(alike)]
        assert other is not examples[i]
        texts = [example["target"], other["target"], example["source"], f"{example['target']} {example['source']}", ""]
        best, *rest = (found.value for found in feedback([TASK.episode(example, text) for text in texts]))
        assert best > max(rest), example["id"]


# --- the corpus ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, str]]:
    path = files("llm_gym.data") / "corpora" / "translation.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_split_has_every_direction_in_equal_parts(corpus: list[dict[str, str]]) -> None:
    assert [row["languages"] for row in corpus] == list(DIRECTIONS) * 102
    counts = collections.Counter((row["split"], row["languages"]) for row in corpus)
    sizes = {"train": 61, "validation": 15, "test": 26}
    assert counts == {(split, direction): size for split, size in sizes.items() for direction in DIRECTIONS}


def test_texts_are_short_and_no_two_are_alike_in_any_language(corpus: list[dict[str, str]]) -> None:
    by_language: dict[str, list[set[tuple[str, ...]]]] = {}
    for row in corpus:
        assert set(row) == {"id", "split", "languages", "source", "target"}
        for column, language in zip(("source", "target"), row["languages"].split("-"), strict=True):
            found = words(row[column])
            assert 4 <= len(found) <= 30 and row[column][-1] in ".!?", row["id"]
            grams = {tuple(found[k : k + 3]) for k in range(len(found) - 2)}
            for other in by_language.setdefault(language, []):
                assert len(grams & other) <= 0.34 * min(len(grams), len(other)), (row["id"], column)
            by_language[language].append(grams)
    assert len({row["id"] for row in corpus}) == len(corpus)


def test_no_target_is_its_source_and_lengths_are_within_the_tolerance(corpus: list[dict[str, str]]) -> None:
    feedback = build("length_ratio")
    scores = feedback([TASK.episode(row, row["target"]) for row in corpus])
    assert all(score.value == 0 for score in scores) and all(row["source"] != row["target"] for row in corpus)
