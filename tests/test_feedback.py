"""Feedback: specs, composition and its memory, rules, second judges, and scorers that run a model."""

from __future__ import annotations

import json
import math
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import SCORERS, Composite, Score, Scorer, build
from llm_gym.feedback.likelihood import FLOOR, PROMPT, Coverage, Grounding, LanguageModel, Likelihood, language_model
from llm_gym.feedback.reference import ChrF, KeyFacts, ReferenceSimilarity
from llm_gym.feedback.rules import (
    Brevity,
    Complete,
    CopiedShare,
    Copying,
    CutOff,
    Length,
    Repetition,
    copied_share,
    copied_words,
    repeated_share,
    words,
)
from llm_gym.feedback.similarity import Embedder, Similarity
from llm_gym.tasks.summary import TextSummary

RAIN = "All night rain fell on the hills, and by noon the lower road was closed."


def episode(text: str, source: str = RAIN, **fields: Any) -> Episode:
    example = {"id": "a", "document": source}
    return Episode(fields.pop("example", example), source=source, text=text, **fields)


def score(scorer: Scorer, text: str, source: str = RAIN, **fields: Any) -> float:
    return scorer([episode(text, source, **fields)])[0]


@pytest.fixture
def scorers(tmp_path, monkeypatch) -> Any:
    """An importable module with scorers of a user."""
    (tmp_path / "my_scorers.py").write_text(
        "from llm_gym.feedback import Scorer\n"
        "class Jitter(Scorer):\n"
        "    '''Never the same value twice: what remembers nothing shows.'''\n"
        "    def __init__(self, step=1.0):\n"
        "        self.step, self.seen = step, []\n"
        "    def __call__(self, episodes):\n"
        "        self.seen += [e.text for e in episodes]\n"
        "        return [self.step * (len(self.seen) + i) for i, e in enumerate(episodes)]\n"
        "class Constant(Scorer):\n"
        "    def __init__(self, value):\n"
        "        self.value = float(value)\n"
        "    def __call__(self, episodes):\n"
        "        return [self.value for e in episodes]\n"
        "class Short(Scorer):\n"
        "    def __call__(self, episodes):\n"
        "        return [1.0] * (len(episodes) - 1)\n"
        "class Failing(Scorer):\n"
        "    def __call__(self, episodes):\n"
        "        raise RuntimeError('no answer')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    import my_scorers

    return my_scorers


# --- specs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "full"),
    [
        ("length", {"length": {"weight": 1.0}}),
        ({"length": 2}, {"length": {"weight": 2.0}}),
        ({"length": {}}, {"length": {"weight": 1.0}}),
        ({"brevity": {"weight": -1.5, "words": 8}}, {"brevity": {"weight": -1.5, "words": 8}}),
        ('{"length": 0.5, "copying": {"weight": -1}}', {"length": {"weight": 0.5}, "copying": {"weight": -1.0}}),
        (' {"length": 0.5}', {"length": {"weight": 0.5}}),
    ],
)
def test_a_spec_is_a_name_or_names_with_weights_or_options_or_json(spec, full):
    feedback = build(spec)
    assert isinstance(feedback, Composite) and feedback.spec == full
    assert build(feedback.spec).spec == full and build(json.dumps(feedback.spec)).spec == full


NEEDED = {
    "format": {"pattern": ".*"},
    "gate": {"of": "length", "condition": "length"},
    "minimum": {"of": "length"},
    "ensemble": {"of": "length"},
    "length_controlled": {"of": "length", "slope": 1, "target": 0},
    "standardised": {"of": "length", "mean": 0, "sd": 1},
    "clipped": {"of": "length", "low": 0, "high": 1},
    "threshold": {"of": "length", "epsilon": 1},
    "own_words": {"of": "length"},
    "classifier": {"model": "org/name", "label": "positive"},
    "entailment": {"model": "org/name"},
    "divergence": {"model": "org/name"},
}
"""Options that a scorer cannot do without."""


@pytest.mark.parametrize("name", SCORERS)
def test_every_named_scorer_can_be_made_and_is_documented(name, tmp_path):
    (tmp_path / "preference.json").write_text('{"llm_gym_preference": 1, "model": "tiny-1k"}')
    needed = {**NEEDED, "preference": {"path": str(tmp_path)}}
    scorer = build({name: needed.get(name, {})}).scorers[name]
    assert isinstance(scorer, Scorer) and type(scorer).__doc__


def test_a_spec_given_is_not_changed():
    spec = {"brevity": {"words": 8}}
    build(spec)
    assert spec == {"brevity": {"words": 8}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("similarty", "unknown scorer 'similarty'; did you mean 'similarity'?"),
        ({"zzz": 1.0}, "unknown scorer 'zzz'; known are similarity, likelihood"),
        ('{"length": 1.0', "is not JSON"),
        ({}, "must be a scorer's name or a JSON object"),
        (["length"], "must be a scorer's name or a JSON object"),
        (3, "must be a scorer's name or a JSON object"),
        ({"length": "heavy"}, "the weight of scorer 'length' must be a finite number, got 'heavy'"),
        ({"length": True}, "must be a finite number, got True"),
        ({"length": None}, "must be a finite number, got None"),
        ({"length": math.nan}, "must be a finite number, got nan"),
        ('{"length": Infinity}', "must be a finite number, got inf"),
        ({"length": {"weight": "1"}}, "must be a finite number, got '1'"),
        ({"brevity": {"letters": 5}}, "scorer 'brevity' does not take these options"),
        ({"brevity": {"words": 0}}, "words=0 must be a positive integer"),
        ({"brevity": {"words": "8"}}, "words='8' must be a positive integer"),
        ({"copying": {"run": 0}}, "run=0 must be a positive integer"),
        ({"likelihood": {"prompt": "Sum up:"}}, "must contain '{source}'"),
        ({"grounding": {"prompt": "{source}"}}, "prompt='{source}' must say something besides '{source}'"),
        ({"coverage": {"prompt": "Text:"}}, "must contain '{text}'"),
        ({"grounding": {"limit": 0}}, "limit=0 must be a positive number"),
        ({"likelihood": {"ceiling": "low"}}, "ceiling='low' must be a finite number"),
        ({"likelihood": {"length_penalty": None}}, "length_penalty=None must be a finite number"),
        ({"likelihood": {"long": 0}}, "long=0 must be a positive integer"),
        ({"reading_level": {"grade": math.inf}}, "grade=inf must be a finite number"),
        ('{"length": 1.0, "brevity": 2.0, "length": 3.0}', "feedback has 'length' twice in one object; leave out one"),
        ('{"likelihood": {"weight": 1, "weight": 2}}', "feedback has 'weight' twice in one object"),
        ({"rudeness": {"labels": ["a", "b", "c"]}}, "scorer 'rudeness' does not take these options"),
        ("no_such_module:Scorer", "scorer 'no_such_module:Scorer' cannot be loaded"),
        ("llm_gym.feedback.rules:Nothing", "cannot be loaded"),
        (":Scorer", "scorer ':Scorer' cannot be loaded"),
        ("llm_gym.feedback.rules:words", "scorer 'llm_gym.feedback.rules:words'"),
    ],
)
def test_a_bad_spec_is_one_line_that_names_it(spec, message):
    with pytest.raises(LLMGymError) as caught:
        build(spec)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- composition --------------------------------------------------------------------------------------------


def test_the_value_is_the_weighted_sum_and_every_part_shows_before_its_weight():
    feedback = build({"length": 0.5, "brevity": {"weight": -2.0, "words": 4}})
    (result,) = feedback([episode("Rain fell.")])
    assert result == Score(0.5 * 2 - 2.0 * 0.5, {"length": 2.0, "brevity": 0.5})
    assert type(result.value) is float and {type(part) for part in result.parts.values()} == {float}


def test_scores_come_in_order_with_repeats_and_none_for_none():
    feedback = build("length")
    texts = ["One two.", "", "One.", "One two.", "a b c"]
    assert [s.value for s in feedback([episode(t) for t in texts])] == [2, 0, 1, 2, 3]
    assert feedback([]) == []


def test_a_scorer_of_a_users_module_is_used_by_name_with_options(scorers):
    feedback = build({"my_scorers:Constant": {"weight": 2.0, "value": 3}, "length": 1.0})
    assert feedback([episode("One.")])[0] == Score(7.0, {"my_scorers:Constant": 3.0, "length": 1.0})


def test_the_same_text_is_scored_once_and_again_exactly_alike(scorers):
    feedback = build({"my_scorers:Jitter": {"step": 0.1234567}})
    first = feedback([episode("a"), episode("b"), episode("a")])
    assert first[0] == first[2] != first[1]
    again = feedback([episode("c"), episode("b"), episode("a")])
    assert again[1:] == [first[1], first[0]]
    assert feedback.scorers["my_scorers:Jitter"].seen == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change",
    [
        {"source": "Another source."},
        {"text": "b"},
        {"finish_reason": "length"},
        {"reference": "Another reference."},
        {"example": {"id": "a", "document": RAIN, "facts": ["rain"]}},
        {"example": {"id": "a", "document": RAIN, "tone": "calm"}},
    ],
)
def test_what_a_score_may_depend_on_is_part_of_the_memory(scorers, change):
    feedback = build("my_scorers:Jitter")
    base = {"source": RAIN, "text": "a", "reference": "A reference."}
    one, other = feedback([episode(**base), episode(**{**base, **change})])
    assert one != other


def test_the_memory_is_bounded_and_a_batch_beyond_it_still_gets_its_scores(monkeypatch):
    monkeypatch.setattr("llm_gym.feedback.memory.SIZE", 3)
    feedback = build("length")
    texts = ["x " * n for n in range(8)]
    assert [s.value for s in feedback([episode(t) for t in texts])] == list(range(8))
    assert [s.value for s in feedback([episode(t) for t in texts])] == list(range(8))
    assert len(feedback._known) == 3


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_an_error_naming_the_scorer_and_is_not_remembered(scorers, value):
    feedback = build({"length": 1.0, "my_scorers:Constant": {"weight": 1.0, "value": value}})
    for _ in range(2):
        with pytest.raises(LLMGymError, match=f"scorer 'my_scorers:Constant' gave {value} for example 'a'"):
            feedback([episode("a")])


def test_a_scorer_that_returns_too_few_values_is_an_error(scorers):
    with pytest.raises(LLMGymError, match="scorer 'my_scorers:Short' gave 1 values for 2 episodes"):
        build("my_scorers:Short")([episode("a"), episode("b")])


def test_a_scorer_that_fails_is_not_turned_into_a_number(scorers):
    with pytest.raises(RuntimeError, match="no answer"):
        build({"length": 1.0, "my_scorers:Failing": 1.0})([episode("a")])


# --- rules --------------------------------------------------------------------------------------------------

text = st.text(st.sampled_from("ab .,'!É3\n"), max_size=40)
tokens = st.lists(st.sampled_from(["rain", "fell", "on", "the", "hills", "don't", "3"]), max_size=14)
prose = tokens.map(" ".join)


def naive_copied(text: str, source: str, run: int) -> set[int]:
    """Positions of words of `text` that lie in a run of at least `run` words that stands in `source`."""
    found, read = words(text), words(source)
    positions: set[int] = set()
    for i in range(len(found)):
        for j in range(len(read)):
            k = 0
            while i + k < len(found) and j + k < len(read) and found[i + k] == read[j + k]:
                k += 1
            if k >= run:
                positions |= set(range(i, i + k))
    return positions


def test_words_are_lower_case_without_punctuation():
    assert words("It's 3 o'clock -- ÉTÉ, 'quoted'.") == ["it's", "3", "o'clock", "été", "quoted"]
    assert words(" .,! \n") == []


@given(prose, prose, st.integers(1, 5))
def test_the_copied_share_is_that_of_a_naive_search(one, other, run):
    expected = len(naive_copied(one, other, run)) / len(words(one)) if words(one) else 0.0
    assert copied_share(one, other, run) == pytest.approx(expected)


@given(prose, prose)
def test_the_copied_share_is_bounded_and_falls_with_the_run(one, other):
    shares = [copied_share(one, other, run) for run in range(1, 8)]
    assert all(0 <= share <= 1 for share in shares) and shares == sorted(shares, reverse=True)


@given(tokens.filter(lambda t: len(t) >= 4), st.data())
def test_a_passage_of_four_words_or_more_is_copied_whole_whatever_its_case_and_punctuation(source, data):
    start = data.draw(st.integers(0, len(source) - 4))
    passage = source[start : data.draw(st.integers(start + 4, len(source)))]
    assert copied_share(", ".join(passage).upper() + "!", " ".join(source)) == 1.0


def test_copying_worked_by_hand():
    source = "the red fox ran over the hill at dawn"
    assert copied_share("a red fox ran over us", source) == pytest.approx(4 / 6)
    assert copied_words("a red fox ran over us", source) == 4
    assert copied_share("the red fox slept", source) == 0.0
    assert copied_share("", source) == copied_share("the red fox ran", "") == 0.0
    assert copied_share("the red fox", source, run=3) == 1.0
    assert copied_share("The red fox ran. At dawn the hill: over the hill at dawn", source) == pytest.approx(9 / 13)


def test_the_copying_scorer_is_nought_without_a_copied_run_and_grows_with_the_root_of_its_words():
    source = "one two three four five six seven eight nine ten"
    found = source.split()
    values = [score(Copying(), " ".join(found[:n]) + " and some other thing", source) for n in range(9)]
    assert values == [0, 0, 0, 0, *(pytest.approx(n**0.5) for n in range(4, 9))]
    assert score(Copying(run=3), "one two three", source) > 0 == score(Copying(), "", source)
    assert score(Copying(), "ONE, two; Three four!", source) == score(Copying(), "one two three four", source)


def test_copying_is_placed_on_the_words_that_make_a_run_or_go_on_with_it():
    source = "the red fox ran over the hill at dawn"
    written = "So THE red, fox ran over us; a hill at dawn."
    placed = Copying().placed(episode(written, source))
    assert [written[:end].split()[-1] for end, _ in placed] == ["ran", "over"]
    assert [value for _, value in placed] == pytest.approx([2, 5**0.5 - 2])


@given(st.sampled_from([Copying(run=2), CopiedShare(run=2)]), text, text)
def test_what_copying_places_sums_to_its_value(copying, written, source):
    placed = copying.placed(episode(written, source))
    assert sum(value for _, value in placed) == pytest.approx(score(copying, written, source))
    assert all(0 < end <= len(written) and value > 0 for end, value in placed)


def test_the_copied_share_tells_a_copy_from_a_text_that_shares_as_many_words_with_its_source():
    source = "the red fox ran over the hill at dawn"
    copy, own = "the red fox ran", "Long before anybody woke up, the red fox ran"
    assert score(Copying(), copy, source) == score(Copying(), own, source) == 2.0
    assert score(CopiedShare(), copy, source) == 1.0 and score(CopiedShare(), own, source) == pytest.approx(4 / 9)
    assert score(CopiedShare(run=5), copy, source) == score(CopiedShare(), "", source) == 0.0


def test_a_composite_places_with_its_weights_and_leaves_the_rest_to_the_whole():
    found = build({"copying": -2.0, "brevity": -1.0})([episode("one two three four", "one two three four")])[0]
    assert found.placed == ((18, -4.0),)
    assert found.value == pytest.approx(-4 - found.parts["brevity"])


@given(prose)
def test_text_of_other_words_copies_nothing(source):
    assert score(Copying(), "snow lay deep across every field", source) == 0


@given(text)
def test_the_repeated_share_is_bounded_and_rises_when_a_text_is_said_twice(written):
    once, twice = repeated_share(written), repeated_share(f"{written} {written}")
    assert 0 <= once <= 1 and 0 <= twice <= 1
    if len(words(written)) >= 3:
        assert twice > once and twice >= (len(words(written)) - 2) / (2 * len(words(written)) - 2)


def test_repetition_worked_by_hand():
    assert repeated_share("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_share("go go go go go") == pytest.approx(2 / 3)
    assert repeated_share("a b") == repeated_share("") == repeated_share("a b c d e") == 0.0
    assert score(Repetition(), "A b c. A, b, c!") == pytest.approx(1 / 4)


@given(text, st.integers(1, 20))
def test_brevity_falls_from_one_to_nought_as_words_are_added(written, enough):
    value = score(Brevity(words=enough), written)
    assert 0 <= value <= 1 and (value == 0) == (len(words(written)) >= enough)
    assert score(Brevity(words=enough), f"{written} more") <= value
    assert (value == 1) == (not words(written))


def test_brevity_worked_by_hand():
    assert score(Brevity(), "") == 1.0 and score(Brevity(), "one two three") == pytest.approx(13 / 16)
    assert score(Brevity(words=4), "one two three") == 0.25 and score(Brevity(words=3), "one two three") == 0.0


@pytest.mark.parametrize(
    ("written", "reason", "value"),
    [
        ("Rain fell.", "stop", 1.0),
        ("Did rain fall?", "stop", 1.0),
        ('He said "rain!"', "stop", 1.0),
        ("(Rain fell.)", "stop", 1.0),
        ("Rain fell. ", "stop", 1.0),
        ("Rain fell.", "length", 0.0),
        ("Rain fell", "stop", 0.0),
        ("Rain fell. And", "stop", 0.0),
        ("", "stop", 0.0),
    ],
)
def test_a_text_is_complete_if_the_agent_ended_it_with_a_sentence(written, reason, value):
    assert score(Complete(), written, finish_reason=reason) == value
    assert score(CutOff(), written, finish_reason=reason) == (reason == "length")


@given(text)
def test_length_counts_words(written):
    assert score(Length(), written) == len(words(written))


@given(st.lists(text, max_size=5))
def test_rules_score_each_text_alone(texts):
    for scorer in (Copying(), Repetition(), Brevity(), Complete(), Length()):
        assert scorer([episode(t) for t in texts]) == [score(scorer, t) for t in texts]


# --- second judges ------------------------------------------------------------------------------------------


def judged(written: str, reference: str | None = "Rain closed the lower road.", facts: Any = None) -> Episode:
    example = {"id": "a", "document": RAIN, **({"facts": facts} if facts is not None else {})}
    return episode(written, example=example, reference=reference)


def test_key_facts_is_the_mean_share_of_each_facts_words():
    facts = ["lower road", "rain", "10 million yen"]
    assert KeyFacts()([judged("RAIN shut the road; it cost 10 yen.", facts=facts)])[0] == pytest.approx(
        (1 / 2 + 1 + 2 / 3) / 3
    )
    assert KeyFacts()([judged("", facts=facts), judged("Yen 10 million rain road lower", facts=facts)]) == [0.0, 1.0]


def test_without_facts_the_content_words_of_the_reference_count():
    assert KeyFacts()([judged("The road was closed.")]) == [pytest.approx(2 / 4)]  # rain closed lower road
    assert KeyFacts()([judged("x", reference="It is the one.")])[0] == 0.0


def test_a_fact_without_words_does_not_count():
    assert KeyFacts()([judged("rain", facts=["--", "rain"]), judged("rain", facts=["%"])])[0] == 1.0


def test_chrf_is_sacrebleus_over_a_hundred():
    from sacrebleu.metrics import CHRF

    reference = "Rain closed the lower road."
    values = ChrF()([judged(t) for t in (reference, "The road was closed.", "")])
    assert values[0] == pytest.approx(1.0) and values[2] == 0.0
    assert values[1] == pytest.approx(CHRF().sentence_score("The road was closed.", [reference]).score / 100)


@pytest.mark.parametrize("judge", [KeyFacts, ChrF, ReferenceSimilarity])
@pytest.mark.parametrize("reference", [None, ""])
def test_a_judge_needs_a_reference(judge, reference):
    with pytest.raises(LLMGymError, match="example 'a' has no reference to compare with"):
        judge()([judged("Rain.", reference=reference)])


@pytest.mark.models
def test_the_training_default_never_reads_reference_or_facts_and_the_judge_does():
    task = TextSummary()
    row = {"id": "a", "document": RAIN, "summary": "Rain closed the road.", "facts": ["rain", "road"]}
    rows = [row, {**row, "summary": "Snow fell.", "facts": ["snow"]}, {"id": "a", "document": RAIN}]
    episodes = [task.episode(r, "Rain shut the lower road by noon.") for r in rows]
    scores = [build(task.feedback)([e])[0] for e in episodes]
    assert scores[0] == scores[1] == scores[2]
    judge = build(task.judge)
    assert judge([episodes[0]])[0].value > judge([episodes[1]])[0].value
    with pytest.raises(LLMGymError, match="has no reference"):
        judge([episodes[2]])


def test_the_training_default_and_the_judge_share_no_scorer_and_the_default_names_no_reader_of_references():
    task = TextSummary()
    assert not set(task.feedback) & set(task.judge)
    assert not build(task.feedback).reads_reference
    assert all(scorer.reads_reference for scorer in build(task.judge).scorers.values())


# --- likelihood, on a tiny model ----------------------------------------------------------------------------

SOURCES = [RAIN, "Snow.", "The council met on Tuesday to talk about the new bridge, and went home late; nobody voted."]
TEXTS = [
    "Rain closed the lower road by noon.",
    "No.",
    "It rained all night, the hills were wet, and the lower road stayed closed until well after noon, they said.",
    "The council talked about a bridge on Tuesday but did not vote.",
    "!",
]
MIXED = [episode(t, s) for s in SOURCES for t in TEXTS][:13]


def naive(model: str, context: str, continuation: str) -> float:
    """Mean log-probability of the continuation's tokens, by one forward over everything, without a cache."""
    import torch

    from llm_gym.models.load import load_tokenizer, shared_causal_lm

    tokenizer, lm = load_tokenizer(model), shared_causal_lm(model, dtype="float32")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    head, tail = (tokenizer(t, **plain)["input_ids"] for t in (context, continuation))
    with torch.no_grad():
        ids = torch.tensor([head + tail], device=lm.device)
        log_probs = lm(ids).logits[0].float().log_softmax(-1)
    rows = range(len(head) - 1, len(head) + len(tail) - 1)
    return float(np.mean([log_probs[i, token].item() for i, token in zip(rows, tail, strict=True)]))


def fresh(scorer: type[Scorer], model: str) -> Any:
    """A likelihood scorer that remembers nothing of the other tests."""
    made = scorer(model=model)
    made.lm = LanguageModel(model)
    return made


@pytest.mark.parametrize("scorer", [Likelihood, Grounding, Coverage])
def test_a_text_scores_the_same_whatever_else_is_in_the_batch(tiny_model, scorer):
    together = fresh(scorer, tiny_model)(MIXED)
    alone = [fresh(scorer, tiny_model)([e])[0] for e in MIXED]
    backwards = fresh(scorer, tiny_model)(MIXED[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5) and backwards == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in alone}) > 6 or scorer is not Likelihood


def test_many_texts_of_one_source_are_scored_in_parts_alike(tiny_model):
    episodes = [episode("rain " * n) for n in range(1, 40)]
    together = fresh(Likelihood, tiny_model)(episodes)
    assert together[::6] == pytest.approx([fresh(Likelihood, tiny_model)([e])[0] for e in episodes[::6]], abs=1e-5)


def test_likelihood_is_that_of_a_naive_forward(tiny_model):
    for e in MIXED:
        expected = naive(tiny_model, PROMPT.replace("{source}", e.source), f" {e.text}")
        assert LanguageModel(tiny_model)([(PROMPT.replace("{source}", e.source), f" {e.text}")]) == [
            pytest.approx(expected, abs=1e-4)
        ]
        assert fresh(Likelihood, tiny_model)([e])[0] == pytest.approx(max(FLOOR, expected), abs=1e-4)


def test_grounding_and_coverage_are_differences_of_naive_likelihoods(tiny_model):
    for e in MIXED[:6]:
        prompt = PROMPT.replace("{source}", e.source), PROMPT.replace("{source}", "")
        gain = naive(tiny_model, prompt[0], f" {e.text}") - naive(tiny_model, prompt[1], f" {e.text}")
        assert fresh(Grounding, tiny_model)([e])[0] == pytest.approx(np.clip(gain, -3, 3), abs=1e-4)
        told = naive(tiny_model, f"Summary: {e.text}\n\nText:\n", e.source)
        untold = naive(tiny_model, "Summary: \n\nText:\n", e.source)
        assert fresh(Coverage, tiny_model)([e])[0] == pytest.approx(told - untold, abs=1e-4)


def test_an_empty_text_has_the_floor_and_no_gain(tiny_model):
    episodes = [episode(""), episode("Rain."), episode(" \n")]
    values = fresh(Likelihood, tiny_model)(episodes)
    assert values[0] == values[2] == FLOOR < values[1]
    assert fresh(Grounding, tiny_model)(episodes)[::2] == [0.0, 0.0]
    assert fresh(Coverage, tiny_model)(episodes)[0] == 0.0
    assert fresh(Likelihood, tiny_model)([episode("")]) == [FLOOR]


def test_the_bare_likelihood_of_nothing_is_an_error(tiny_model):
    with pytest.raises(LLMGymError, match="likelihood of an empty text is undefined"):
        LanguageModel(tiny_model)([("Text:", "")])


def test_ceiling_and_limit_clip(tiny_model):
    assert Likelihood(tiny_model, ceiling=-7.5)([MIXED[0]])[0] <= -7.5
    assert abs(Grounding(tiny_model, limit=1e-6)([MIXED[0]])[0]) <= 1e-6


def test_the_length_penalty_is_that_of_beam_search(tiny_model):
    for e in MIXED[:6]:
        context, text = PROMPT.replace("{source}", e.source), f" {e.text}"
        mean, tokens = naive(tiny_model, context, text), len(LanguageModel(tiny_model).encode(text))
        for penalty, expected in ((1.0, mean), (0.7, mean * tokens / tokens**0.7), (0.0, mean * tokens)):
            made = Likelihood(tiny_model, length_penalty=penalty)
            assert made([e])[0] == pytest.approx(expected, rel=1e-4)


def test_the_length_penalty_is_of_long_texts_alone(tiny_model):
    short, long = episode("Rain fell."), episode("Rain fell on the hills of the west. " * 3)
    count = len(LanguageModel(tiny_model).encode(f" {long.text}"))
    found = Likelihood(tiny_model, length_penalty=0.5, long=10)([short, long])
    mean = Likelihood(tiny_model)([short, long])
    assert count > 10 and found == [mean[0], pytest.approx(mean[1] * (count / 10) ** 0.5)]


def test_the_ceiling_is_of_a_token_whatever_the_length_penalty(tiny_model):
    (value,) = Likelihood(tiny_model, ceiling=-7.5, length_penalty=0.0)([MIXED[0]])
    assert value <= -7.5 * len(LanguageModel(tiny_model).encode(f" {MIXED[0].text}"))


def test_a_model_saved_anew_under_its_name_is_asked_anew(tiny_model, tmp_path):
    from llm_gym.models.load import load_causal_lm

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    pair = (PROMPT, "Rain fell on the hills.")
    (before,) = language_model(str(folder))([pair])
    assert language_model(str(folder)) is language_model(str(folder))
    other = load_causal_lm(tiny_model)
    with torch.no_grad():
        other.lm_head.weight.mul_(3.0)
    other.save_pretrained(folder)
    (after,) = language_model(str(folder))([pair])
    assert before != pytest.approx(after, abs=1e-3)
    assert after == pytest.approx(naive(str(folder), *pair), abs=1e-4)


def test_special_tokens_written_in_a_text_or_source_are_read_as_plain_characters(tiny_model):
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    ids = tokenizer("Rain.<|end|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == "Rain.<|end|>"
    assert tokenizer.eos_token_id in tokenizer("Rain.<|end|>")["input_ids"]
    pair = ("A<|end|>B", " Rain.<|end|><|pad|>")
    assert LanguageModel(tiny_model)([pair]) == [pytest.approx(naive(tiny_model, *pair), abs=1e-4)]


def test_the_language_model_reads_each_text_once(tiny_model, monkeypatch):
    model, calls = LanguageModel(tiny_model), []
    original = model._score
    monkeypatch.setattr(model, "_score", lambda pairs: calls.append(pairs) or original(pairs))
    one = model([("Text: a", " b"), ("Text: a", " b c"), ("Text: a", " b")])
    assert model([("Text: a", " b c"), ("Text: a", " b")]) == [one[1], one[0]]
    assert calls == [[("Text: a", " b"), ("Text: a", " b c")], []]


def test_what_contexts_begin_with_is_read_once(tiny_model, monkeypatch):
    from llm_gym.models import packing

    contexts = [f"The council met to talk about the bridge. {said}" for said in ("And who pays?", "When?", "Well")]
    pairs = [(context, text) for context in [*contexts, "Rain fell."] for text in (" Rain.", " The river rose.")]
    tokens, pack = [], packing.pack
    monkeypatch.setattr(packing, "pack", lambda segments: tokens.append(pack(segments).tokens) or pack(segments))
    found = LanguageModel(tiny_model)(pairs)
    assert found == [pytest.approx(naive(tiny_model, *pair), abs=1e-4) for pair in pairs]
    together = sum(tokens)
    tokens.clear()
    for pair in pairs:
        LanguageModel(tiny_model)([pair])
    assert len(tokens) == len(pairs) and together < 0.6 * sum(tokens)


def test_what_the_language_model_remembers_is_bounded(tiny_model, monkeypatch):
    monkeypatch.setattr("llm_gym.feedback.memory.SIZE", 4)
    model = LanguageModel(tiny_model)
    values = model([("Text: a", f" {n}") for n in range(9)])
    assert len(values) == 9 and len(model._known) == 4
    for _ in range(3):  # what was known is forgotten while the rest of the batch is read
        assert model([("Text: a", f" {n}") for n in range(9)]) == pytest.approx(values, abs=1e-5)


# --- with the real models -----------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.parametrize("scorer", [Likelihood, Grounding, Coverage])
def test_the_default_language_model_scores_a_text_alike_in_every_batch(scorer):
    together = fresh(scorer, "smollm2-135m")(MIXED)
    for i in (0, 1, 2, 8, 12):
        assert fresh(scorer, "smollm2-135m")([MIXED[i]])[0] == pytest.approx(together[i], abs=1e-5)


@pytest.mark.models
def test_the_default_language_model_agrees_with_a_naive_forward():
    for e in MIXED[:4]:
        expected = naive("smollm2-135m", PROMPT.replace("{source}", e.source), f" {e.text}")
        assert fresh(Likelihood, "smollm2-135m")([e])[0] == pytest.approx(max(FLOOR, expected), abs=1e-4)
    stop = " Rain.<|im_end|>"
    assert LanguageModel("smollm2-135m")([("Text:", stop)]) == [
        pytest.approx(naive("smollm2-135m", "Text:", stop), abs=1e-4)
    ]


@pytest.mark.models
@pytest.mark.parametrize("scorer", [Similarity, ReferenceSimilarity])
def test_similarity_is_the_same_in_every_batch_and_that_of_sentence_transformers(scorer):
    import torch

    from llm_gym.models.load import load_tokenizer, shared_encoder

    def embed(written: str) -> Any:
        tokenizer, model = load_tokenizer("minilm-l6"), shared_encoder("minilm-l6")
        with torch.no_grad():
            hidden = model(**tokenizer(written, return_tensors="pt").to(model.device)).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)

    episodes = [episode(e.text, e.source, reference=e.source) for e in MIXED]
    together = scorer()(episodes)
    for value, e in zip(together, episodes, strict=True):
        assert scorer()([e])[0] == pytest.approx(value, abs=1e-5)
        assert value == pytest.approx((embed(e.text) @ embed(e.source)).item(), abs=1e-4)
    assert scorer()([episode(RAIN, RAIN, reference=RAIN)])[0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.models
def test_similarity_of_an_empty_text_is_nought_and_a_long_source_is_read_as_far_as_it_goes():
    assert Similarity()([episode("", "Rain."), episode("Rain.", "Rain."), episode(" ", "Rain.")]) == [
        0.0,
        pytest.approx(1.0, abs=1e-5),
        0.0,
    ]
    assert Similarity()([episode("")]) == [0.0]
    assert 0 < Similarity()([episode("It rained.", "rain fell " * 400)])[0] < 1


@pytest.mark.models
def test_what_the_embedder_remembers_is_bounded(monkeypatch):
    monkeypatch.setattr("llm_gym.feedback.memory.SIZE", 3)
    embedder = Embedder()
    for _ in range(3):
        assert embedder([f"Text {n}." for n in range(6)]).shape == (6, 384)
    assert len(embedder._known) == 3


@pytest.mark.models
def test_similarity_reads_special_tokens_in_a_text_as_plain_characters():
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer("minilm-l6")
    plain = tokenizer("Rain. [SEP] [PAD]", split_special_tokens=True)["input_ids"]
    assert sum(i in tokenizer.all_special_ids for i in plain) == 2  # [CLS] and [SEP] around it
    vectors = Embedder()(["Rain. [SEP] [PAD]", "Rain. [ sep ] [ pad ]"])
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)


@pytest.mark.models
def test_the_default_feedback_prefers_a_summary_to_nothing_a_copy_and_a_loop():
    task = TextSummary()
    example = {"id": "a", "document": " ".join([RAIN, "Nobody was hurt.", SOURCES[2]])}
    texts = ["Rain shut the lower road by noon; the council debated a bridge without a vote.", "", RAIN, "Rain. " * 9]
    values = [s.value for s in build(task.feedback)([task.episode(example, t) for t in texts])]
    assert values[0] == max(values) and values[1] < values[0]


@pytest.mark.models
def test_similarity_by_sentence_is_the_mean_of_the_best_matches():
    source = "Rain fell all night. The council met. She asked for figures."
    by_sentence = Similarity(sentences=True)
    assert score(by_sentence, "The council met.", source) == pytest.approx(1.0, abs=1e-5)
    assert score(by_sentence, "She asked for figures. The council met.", source) == pytest.approx(1.0, abs=1e-5)
    embed, text = Embedder(), "It rained. A cat slept."
    best = [max((embed([t]) @ embed([s]).T).item() for s in source.split(". ")) for t in ("It rained.", "A cat slept.")]
    assert score(by_sentence, text, source) == pytest.approx(np.mean(best), abs=0.05)
    assert score(Similarity(), "The council met.", source) < 0.9
    assert by_sentence([episode("", source), episode("The council met.", source)]) == [
        0.0,
        pytest.approx(1.0, abs=1e-5),
    ]
