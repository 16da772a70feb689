"""Rules on words, and the usual metrics against a reference."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import Scorer, build
from llm_gym.feedback.metrics import F1, Bleu, Exact, Rouge, longest_common, normalised
from llm_gym.feedback.rules import occurrences, sentences
from llm_gym.feedback.vocabulary import (
    BannedWords,
    BigramPrecision,
    Distinct,
    Format,
    ReadingLevel,
    RequiredWords,
    Spelling,
    Supported,
    claims,
    grade,
    syllables,
)

SOURCE = "On 3 May, Anna Weber's ferry carried 1,200 people from Brill to the island. It left at 9:30."
prose = st.lists(st.sampled_from(["Anna", "the", "ferry", "left.", "9:30", "1,200", "don't"]), max_size=9).map(" ".join)


def score(scorer: Scorer, text: str, reference: str | None = None, **columns: Any) -> float:
    return scorer([Episode({"id": "a", **columns}, source=SOURCE, text=text, reference=reference)])[0]


# --- rules --------------------------------------------------------------------------------------------------


def test_distinct_counts_different_runs():
    assert score(Distinct(), "to and fro and to and fro") == pytest.approx(4 / 6)
    assert score(Distinct(1), "a a b") == pytest.approx(2 / 3)
    assert score(Distinct(), "once") == score(Distinct(), "") == 0.0


def test_bigram_precision_worked_by_hand():
    assert score(BigramPrecision(), "Anna Weber's ferry sank") == pytest.approx(2 / 3)
    assert score(BigramPrecision(), SOURCE) == 1.0 and score(BigramPrecision(), "ferry") == 0.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("Anna's ferry took 1200 people.", 1.0),
        ("It left Brill at 9:30 on 3 May.", 1.0),
        ("The ferry of Anna Weber took 1,300 people.", 2 / 3),
        ("The ferry left Brill for Dover at 9:40.", 1 / 3),
        ("a ferry took people", 1.0),
        ("", 1.0),
    ],
)
def test_what_the_source_supports(text, share):
    assert score(Supported(), text) == pytest.approx(share)


@given(prose)
def test_a_source_supports_itself_and_has_its_own_bigrams(text):
    episode = Episode({"id": "a"}, source=text, text=text)
    assert Supported()([episode]) == [1.0]
    assert BigramPrecision()([episode])[0] in (0.0, 1.0)
    assert Spelling()([episode]) == [0.0]


def test_swapping_a_number_or_a_name_is_noticed_and_claims_are_listed():
    assert claims(SOURCE) == ["3", "may", "anna", "weber", "1200", "brill", "9:30"]
    assert score(Supported(), SOURCE.replace("Brill", "Hull")) < 1 > score(Supported(), SOURCE.replace("9:30", "9:35"))


def test_words_are_required_and_banned_by_argument_or_by_column():
    text = "The old Mill stood; two mills, one windmill."
    assert score(RequiredWords(["mill", "river", "old mill"]), text) == pytest.approx(2 / 3)
    assert score(BannedWords(["mill", "river"]), text) == 2.0
    assert score(RequiredWords(), text, required_words=["mill"]) == 1.0
    assert score(RequiredWords(column="elements"), text, elements=["sea", "mill"]) == 0.5
    assert score(BannedWords(), "(a.b) aXb", banned_words=["a.b"]) == 1.0
    assert occurrences("stop. STOP? stops", "stop") == 3


@pytest.mark.parametrize("scorer", [RequiredWords, BannedWords])
def test_a_row_without_words_and_a_bad_list_are_errors(scorer):
    for columns in ({}, {scorer.default_column: []}, {scorer.default_column: "mill"}, {scorer.default_column: [" "]}):
        with pytest.raises(LLMGymError, match="example 'a' has no list of words in"):
            score(scorer(), "A mill.", **columns)
    for words in ("mill", [], [""], [3]):
        with pytest.raises(LLMGymError, match="must be a list of strings"):
            scorer(words)


def test_the_score_of_a_row_depends_on_its_column():
    feedback = build("required_words")
    rows = [{"id": "a", "required_words": [word]} for word in ("mill", "sea")]
    scores = feedback([Episode(row, source=SOURCE, text="A mill.") for row in rows])
    assert [s.value for s in scores] == [1.0, 0.0]


def test_syllables_by_rule():
    counts = {"cat": 1, "ferry": 2, "island": 2, "people": 2, "house": 1, "houses": 2, "makes": 1, "decided": 3}
    assert {word: syllables(word) for word in counts} == counts
    assert syllables("hmm") == syllables("") == 1


def test_the_reading_level_worked_by_hand():
    # Ten words of one syllable in two sentences.
    text = "The cat sat on it. The dog ran to me."
    assert grade(text) == pytest.approx(0.39 * 5 + 11.8 * 1 - 15.59)
    assert score(ReadingLevel(2.0), text) == pytest.approx(2 - grade(text))
    hard = "Notwithstanding considerable administrative complications, negotiations continued indefinitely."
    assert grade(hard) > 15 > grade(SOURCE) and score(ReadingLevel(), "") == 8.0


def test_spelling_knows_english_the_source_and_names():
    assert score(Spelling(), "The ferry left on time, and people didn't complain.") == 0.0
    assert score(Spelling(), "The fery lefft on time.") == pytest.approx(2 / 5)
    assert score(Spelling(), "We met Zxqwvy there.") == 0.0  # may be a name
    assert score(Spelling(), "Zxqwvy there.") == 0.5 and score(Spelling(), "") == 0.0


def test_a_format_must_match_the_whole_text():
    scorer = Format(r"Answer: \d+")
    assert [score(scorer, text) for text in ("Answer: 42", "Answer: 42.", "So: Answer: 42", "")] == [1, 0, 0, 0]
    for pattern in ("(", 3):
        with pytest.raises(LLMGymError, match="is no regular expression"):
            Format(pattern)


def test_a_format_that_takes_too_long_over_a_text_is_an_error(monkeypatch):
    monkeypatch.setattr("llm_gym.feedback.vocabulary.MATCH_SECONDS", 0.05)
    with pytest.raises(LLMGymError, match="takes more than 0.05 s over the text of example 'a'"):
        score(Format(r"(x+x+)+y"), "x" * 5000)


def test_sentences_end_with_a_mark_or_a_line():
    assert sentences('He said "No!" Then 3.5 m.\n\n- left') == ['He said "No!"', "Then 3.5 m.", "- left"]
    assert sentences(" \n ") == []


# --- metrics ------------------------------------------------------------------------------------------------

CAT, MAT = "The cat sat on the mat, and didn't move.", "A cat sat on a mat; it did not move at all."


@pytest.mark.parametrize(("variant", "value"), [("1", 5 / 11), (2, 0.2), ("L", 5 / 11)])
def test_rouge_is_that_of_googles_package(variant, value):
    assert score(Rouge(variant), MAT, CAT) == pytest.approx(value)  # rouge-score 0.1.2 without stemmer


@pytest.mark.parametrize("scorer", [Rouge("1"), Rouge("2"), Rouge("L"), Bleu(), Exact(), F1()])
def test_a_reference_scores_one_and_an_empty_text_nought(scorer):
    assert scorer.reads_reference
    assert score(scorer, CAT, CAT) == pytest.approx(1.0) and score(scorer, "", CAT) == 0.0
    with pytest.raises(LLMGymError, match="example 'a' has no reference"):
        score(scorer, CAT)


def test_rouge_refuses_another_variant():
    with pytest.raises(LLMGymError, match="variant='3' must be '1', '2' or 'L'"):
        build({"rouge": {"variant": "3"}})


@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_the_longest_common_subsequence_is_that_of_a_naive_recursion(one, other):
    def naive(a: str, b: str) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + naive(a[1:], b[1:])
        return max(naive(a[1:], b), naive(a, b[1:]))

    assert longest_common(one[:6], other[:6]) == naive(one[:6], other[:6]) == longest_common(other[:6], one[:6])


def test_bleu_is_sacrebleus():
    from sacrebleu.metrics import BLEU

    expected = BLEU(effective_order=True).sentence_score(MAT, [CAT]).score / 100
    assert score(Bleu(), MAT, CAT) == pytest.approx(expected) and 0 < expected < 1


def test_answers_are_compared_as_squad_does_and_the_best_counts():
    assert normalised(" An  Eiffel tower. ") == "eiffel tower"
    answers = {"answers": ["in the old mill", "The mill!"]}
    assert score(Exact(), "mill", **answers) == 1.0 and score(Exact(), "a mills", **answers) == 0.0
    assert score(F1(), "the mill at Brill", **answers) == pytest.approx(2 * 1 / (3 + 1))
    assert score(F1(), "old mill", **answers) == pytest.approx(2 * 2 / (2 + 3))
    assert score(F1(), "the", answers=["a"]) == 1.0 and score(F1(), "the", answers=["mill"]) == 0.0
    for wrong in ("mill", [], [3]):
        with pytest.raises(LLMGymError, match="'answers' must be a list of strings"):
            score(F1(), "mill", answers=wrong)


def test_making_every_scorer_loads_no_word_list_and_no_model():
    code = (
        "import llm_gym.feedback.vocabulary, sys; sys.exit(bool({'spellchecker', 'torch', 'regex'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
