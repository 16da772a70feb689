"""Scorers made of scorers: what they are worth, and that their parts stay visible."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Scorer, build

SOURCE = "one two three four five six seven eight"
HALF = {"brevity": {"weight": -2.0, "words": 4}}  # two words: brevity .5, value -1


class Counting(Scorer):
    """A third of the number of words; remembers what it was asked."""

    asked: list[str] = []

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        self.asked += [e.text for e in episodes]
        return [len(e.text.split()) / 3 for e in episodes]


def judged(spec, text: str = "Two words.", reference: str | None = None):
    return build(spec)([Episode({"id": "a"}, source=SOURCE, text=text, reference=reference)])[0]


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("gate", {"of": HALF, "condition": "length", "threshold": 2}, -1.0),
        ("gate", {"of": HALF, "condition": "length", "threshold": 2.5, "floor": -7}, -7.0),
        ("minimum", {"of": {"length": 1.0, **HALF}}, -1.0),
        ("ensemble", {"of": {"length": 1.0, **HALF}, "penalty": 2.0}, 0.5 - 2 * 2.25),
        ("ensemble", {"of": {"length": 1.0, "length#again": 1.0}}, 2.0),
        ("length_controlled", {"of": HALF, "slope": 0.1, "target": 10}, -1 + 0.8),
        ("standardised", {"of": HALF, "mean": -2, "sd": 4}, 0.25),
        ("clipped", {"of": HALF, "low": -0.25, "high": 3}, -0.25),
        ("clipped", {"of": "length", "low": 0, "high": 1.5}, 1.5),
        ("threshold", {"of": "length", "epsilon": 2}, 1.0),
        ("threshold", {"of": "length", "epsilon": 2.01}, 0.0),
    ],
)
def test_the_value_worked_by_hand_and_its_spec_is_json(name, options, value):
    feedback = build({name: {"weight": 3.0, **options}})
    for spec in (feedback.spec, json.dumps(feedback.spec)):
        found = judged(spec)
        assert found.value == pytest.approx(3 * value) and found.parts[name] == pytest.approx(value)
    inner = build(options["of"])
    assert {part for part in found.parts if part.startswith(f"{name}/") and "/condition/" not in part} == {
        f"{name}/{part}" for part in inner.scorers
    }


@pytest.mark.parametrize(
    ("text", "reference", "left"),
    [
        ("one two three four and more words here", "Nothing of it.", 1 / 2),
        ("one two three four five six seven eight", "Nothing of it.", 0),
        ("one two three and nothing that is a run", "Nothing of it.", 1),
        ("one two three four and more words here", "one two three four my own", (1 / 2) / (1 / 3)),
        ("one two three four five six seven eight nine ten", "one two three four or", 0.2 / 0.2),
        ("one two three four five six seven eight nine ten", "two three four five a b c d", 0.2 / 0.5),
        ("one two three four", "one two three four", 1),
    ],
)
def test_own_words_pays_for_what_was_not_copied_beyond_what_the_reference_copied(text, reference, left):
    found = judged({"own_words": {"weight": 2.0, "of": "length"}}, text, reference)
    assert found.value == pytest.approx(2 * len(text.split()) * min(1, left))
    assert found.parts["own_words/length"] == len(text.split())


def test_own_words_leaves_a_negative_value_alone_and_wants_a_reference():
    copied = "one two three four"
    assert judged({"own_words": {"of": {"length": -1.0}}}, copied, "Nothing of it.").value == -4
    with pytest.raises(LLMGymError, match="no reference"):
        judged({"own_words": {"of": "length"}})


def test_parts_of_parts_show_before_their_weights_and_only_the_outermost_are_summed():
    spec = {
        "gate": {
            "weight": 2.0,
            "of": {"clipped": {"of": {"length": 0.5, "repetition": -1.0}, "low": 0, "high": 5}},
            "condition": {"brevity": {"weight": -1.0, "words": 4}},
            "threshold": -0.6,
        },
        "complete": 4.0,
    }
    assert judged(spec).parts == {
        "gate": 1.0,
        "complete": 1.0,
        "gate/clipped": 1.0,
        "gate/clipped/length": 2.0,
        "gate/clipped/repetition": 0.0,
        "gate/condition/brevity": 0.5,
    }
    assert judged(spec).value == 2.0 + 4.0
    closed = judged({**spec, "gate": {**spec["gate"], "threshold": 0}})
    assert closed.parts == {**judged(spec).parts, "gate": 0.0}


def test_a_label_lets_a_scorer_be_there_twice():
    found = judged({"copying#4": {"weight": -1.0}, "copying#2": {"weight": -1.0, "run": 2}}, "one two and")
    assert found.parts == {"copying#4": 0.0, "copying#2": pytest.approx(2**0.5, abs=1e-6)}
    with pytest.raises(LLMGymError, match="unknown scorer 'lenght'; did you mean 'length'"):
        build("lenght#a")


def test_values_are_rounded_and_remembered_inside_and_outside():
    Counting.asked.clear()
    name = f"{__name__}:Counting"
    feedback = build({"standardised": {"of": name, "mean": 0, "sd": 3}, "clipped": {"of": name, "low": 0, "high": 9}})
    texts = ["a", "a b", "a", "a b c d"]
    episodes = [Episode({"id": "x"}, source=SOURCE, text=text) for text in texts]
    together = feedback(episodes)
    assert [feedback([e])[0] for e in episodes] == together and Counting.asked == ["a", "a b", "a b c d"] * 2
    assert together[0].parts["clipped"] == 0.333333 and together[0].parts["standardised"] == 0.111111


def test_where_the_value_arises_is_kept_by_what_is_linear():
    copied = "one two three four"
    placed = judged({"copying": -2.0}, copied).placed
    assert placed == ((18, -4.0),)
    assert judged({"standardised": {"of": {"copying": -2.0}, "mean": 1, "sd": 4}}, copied).placed == ((18, -1.0),)
    linear = {"length_controlled": {"weight": 3.0, "of": {"copying": -2.0}, "slope": 1, "target": 4}}
    assert judged(linear, copied).placed == ((18, -12.0),)
    assert judged({"clipped": {"of": {"copying": -2.0}, "low": -1, "high": 0}}, copied).placed == ()


@pytest.mark.parametrize(
    "spec",
    [
        {"clipped": {"of": "rouge", "low": 0, "high": 1}},
        {"gate": {"of": "length", "condition": {"minimum": {"of": {"length": 1, "chrf": 1}}}}},
        {"length": 1, "gate": {"of": "f1", "condition": "length"}},
    ],
)
def test_what_reads_a_reference_says_so_however_deep_it_stands(spec):
    assert build(spec).reads_reference
    assert not build("length").reads_reference
    with pytest.raises(LLMGymError, match="has no reference"):
        judged(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gate", "scorer 'gate' does not take these options"),
        ({"gate": {"of": "lenght", "condition": "length"}}, "unknown scorer 'lenght'"),
        ({"minimum": {"of": {}}}, "must be a scorer's name or a JSON object"),
        ({"clipped": {"of": "length", "low": 1, "high": 1}}, "low=1 must be below high=1"),
        ({"standardised": {"of": "length", "mean": 0, "sd": 0}}, "sd=0 must be above 0"),
        ({"threshold": {"of": "length", "epsilon": "1"}}, "epsilon='1' must be a finite number"),
        ({"ensemble": {"of": "length", "penalty": float("nan")}}, "penalty=nan must be a finite number"),
        ({"clipped": {"of": {"brevity": {"words": 0}}, "low": 0, "high": 1}}, "words=0 must be a positive integer"),
    ],
)
def test_a_bad_spec_is_one_line_that_names_it(spec, message):
    with pytest.raises(LLMGymError) as caught:
        build(spec)
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Abstains(Scorer):
    """A judge that could not be reached."""

    def __call__(self, episodes: Any) -> list[float | None]:
        return [None for _ in episodes]


@pytest.mark.parametrize(
    "spec",
    [
        {"gate": {"of": "length", "condition": "test_operators:Abstains"}},
        {"gate": {"of": "test_operators:Abstains", "condition": "length"}},
        {"minimum": {"of": {"length": 1.0, "test_operators:Abstains": 1.0}}},
        {"ensemble": {"of": {"length": 1.0, "test_operators:Abstains": 1.0}}},
        {"clipped": {"of": "test_operators:Abstains", "low": 0.0, "high": 1.0}},
        {"threshold": {"of": "test_operators:Abstains", "epsilon": 0.5}},
    ],
)
def test_what_is_made_of_an_abstention_abstains(spec: dict[str, Any]) -> None:
    (score,) = build(spec)([Episode({"id": "a"}, source="Rain fell.", text="It rained.")])
    assert score.abstained == tuple(spec) and math.isnan(score.value)
