"""Validation against people: the files, the measures, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_gym.cli import main
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import PairwiseScorer, Scorer, build
from llm_gym.feedback.human import Judgements, read_judgements
from llm_gym.feedback.validation import accuracies, association, calibration_error, rank_agreement, validate
from llm_gym.statistics import spearman

SHARED = Path(__file__).parents[2] / "shared" / "data"
SOURCE = "The council met on Tuesday and agreed to build a bridge of steel over the river by next May."
TEXTS = [
    "Council to build steel bridge.",
    "The council agreed to build a bridge.",
    "A bridge.",
    "It rained on the hill.",
]


def rating(document: int, text: str, **human: float) -> dict[str, Any]:
    return {"id": f"d{document}", "source": SOURCE, "reference": TEXTS[0], "candidate": text, "human": human}


def pair(prompt: str, a: str, b: str, preferred: str) -> dict[str, Any]:
    return {"scenario": "letters", "prompt": prompt, "response_a": a, "response_b": b, "preferred": preferred}


RATINGS = [rating(d, TEXTS[k], good=float(4 - k + (d == k)), dull=float(k)) for d in range(4) for k in range(4)]
PAIRS = [
    pair("Greet me.", "Hello to you there!", "Hi.", "a"),
    pair("Greet me.", "Go.", "Hello there!", "b"),
    pair("Say no.", "No.", "No, and I will say no more of it.", "a"),
    pair("Say yes.", "Yes.", "Yes!", "tie"),
]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def ratings(tmp_path: Path) -> Judgements:
    return read_judgements(written(tmp_path / "ratings.jsonl", RATINGS))


@pytest.fixture
def pairs(tmp_path: Path) -> Judgements:
    return read_judgements(written(tmp_path / "pairs.jsonl", PAIRS))


class Told(Scorer):
    """Knows what people said, by text."""

    def __init__(self, values: dict[str, float] | None = None) -> None:
        self.values = values or {text: -float(k) for k, text in enumerate(TEXTS)}

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        return [self.values[e.text] for e in episodes]


class Firsts(PairwiseScorer):
    """Likes what is longer by `margin` words, else what it was shown first."""

    def __init__(self, margin: int = 0) -> None:
        self.margin = margin

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        raise AssertionError("pairs are compared, not scored")

    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        gaps = [len(a.text.split()) - len(b.text.split()) for a, b in zip(firsts, seconds, strict=True)]
        return [float(np.sign(gap)) if abs(gap) > self.margin else 1.0 for gap in gaps]


# --- files --------------------------------------------------------------------------------------------------


def test_ratings_are_grouped_by_document_and_compared_within_it(ratings):
    assert (
        ratings.kind == "ratings"
        and len(ratings.episodes) == 16
        and ratings.documents.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    )
    assert set(ratings.human) == set(ratings.better) == {"good", "dull"}
    for name, better in ratings.better.items():
        values = ratings.human[name]
        assert (values[better[:, 0]] > values[better[:, 1]]).all()
        assert (ratings.documents[better[:, 0]] == ratings.documents[better[:, 1]]).all()
        assert len(better) == sum(
            values[i] > values[j] and ratings.documents[i] == ratings.documents[j] for i in range(16) for j in range(16)
        )


@pytest.mark.parametrize("empty", [{"id": None}, {"id": ""}, {}])
def test_rows_without_a_name_are_grouped_by_their_source(tmp_path, empty):
    rows = [{k: v for k, v in row.items() if k != "id"} | empty for row in RATINGS[:4]]
    rows = [row | {"source": f"{row['source']} {k % 2}"} for k, row in enumerate(rows)]
    assert read_judgements(written(tmp_path / "r.jsonl", rows)).documents.tolist() == [0, 1, 0, 1]


def test_pairs_of_a_prompt_are_a_document_and_ties_are_not_compared(pairs):
    assert pairs.kind == "pairs" and pairs.documents.tolist() == [0, 0, 1, 2] * 2 and pairs.ties == 1
    told = [(pairs.episodes[b].text, pairs.episodes[w].text) for b, w in pairs.better["preferred"]]
    assert told == [
        ("Hello to you there!", "Hi."),
        ("Hello there!", "Go."),
        (PAIRS[2]["response_a"], PAIRS[2]["response_b"]),
    ]


def test_a_scorer_sees_the_other_columns_and_never_what_people_said(ratings, pairs):
    assert set(ratings.episodes[0].example) == {"id", "source", "reference"}
    assert set(pairs.episodes[0].example) == {"id", "scenario", "prompt"}
    assert ratings.episodes[0].reference == TEXTS[0] and pairs.episodes[0].reference is None


def test_columns_can_be_named_and_csv_holds_ratings_as_json(tmp_path):
    rows = "document,summary,score\nRain fell.,It rained.,4\nRain fell.,No.,1.5\nSnow fell.,It snowed.,3\n"
    (tmp_path / "r.csv").write_text(rows)
    names = {"source": "document", "candidate": "summary", "human": "score"}
    found = read_judgements(tmp_path / "r.csv", names)
    assert found.documents.tolist() == [0, 0, 1] and found.human["human"].tolist() == [4, 1.5, 3]
    (tmp_path / "o.csv").write_text('source,candidate,human\nRain.,It rained.,"{""fluency"": 2}"\n')
    assert read_judgements(tmp_path / "o.csv").human["fluency"].tolist() == [2]


def test_some_documents_are_spaced_evenly_and_come_whole(tmp_path):
    path = written(tmp_path / "r.jsonl", RATINGS)
    found = read_judgements(path, documents=2)
    assert found.documents.tolist() == [0] * 4 + [1] * 4
    assert found.human["good"].tolist() == [r["human"]["good"] for r in RATINGS[:4] + RATINGS[12:]]
    assert len(read_judgements(path, documents=99).episodes) == 16


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"source": "a", "text": "b"}], {}, "must have the columns source, candidate, human (ratings) or prompt"),
        ([RATINGS[0] | PAIRS[0]], {}, "(ratings) or prompt, response_a, response_b, preferred (pairs)"),
        ([RATINGS[0]], {"score": "human"}, "unknown column 'score'"),
        ([RATINGS[0]], {"candidate": "text"}, "has no column 'text', only candidate, human"),
        ([RATINGS[0] | {"human": "good"}], {}, "r.jsonl:1: 'human' must be a number or an object of numbers"),
        ([RATINGS[0] | {"human": {"good": True}}], {}, "'human' must be a number"),
        ([RATINGS[0] | {"human": {"good": float("nan")}}], {}, "'human' must be a number"),
        ([RATINGS[0] | {"human": {}}], {}, "'human' has no rating"),
        ([RATINGS[0], RATINGS[1] | {"human": {"good": 1}}], {}, "r.jsonl:2: 'human' has good where other rows have"),
        ([RATINGS[0] | {"candidate": 3}], {}, "column 'candidate' must be a string, not 3"),
        ([RATINGS[0] | {"reference": ["a"]}], {}, "column 'reference' must be a string"),
        ([PAIRS[0], PAIRS[1] | {"preferred": "A"}], {}, "r.jsonl:2: 'preferred' must be a, b or tie, not \"A\""),
        ([{k: v for k, v in PAIRS[0].items() if k != "response_b"} | {"x": 1}], {}, "it has preferred, prompt"),
        ([RATINGS[0], RATINGS[1] | {"source": "Else."}], {}, "the document 'd0' has another source at"),
    ],
)
def test_a_bad_file_is_one_line_that_says_where(tmp_path, rows, columns, message):
    with pytest.raises(LLMGymError) as caught:
        read_judgements(written(tmp_path / "r.jsonl", rows), columns)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- measures -----------------------------------------------------------------------------------------------


def test_rank_agreement_is_the_mean_over_documents_that_people_told_apart():
    scores = np.array([1, 2, 3, 3, 2, 1, 5, 5, 5, 1, 2, 7.0])
    human = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 4, 4, 4.0])
    documents = np.repeat([0, 1, 2, 3], 3)
    # Agreement 1, -1, 0 for a scorer that tells nothing apart, and a document that people did not tell apart.
    assert rank_agreement(scores, human, documents).estimate().value == pytest.approx(0.0)
    assert rank_agreement(scores[:3], human[:3], documents[:3]).estimate().value == pytest.approx(1.0)
    assert rank_agreement(scores, np.ones(12), documents).estimate().value is None


def test_a_perfect_scorer_and_its_opposite(ratings):
    judged = {}
    for sign in (1, -1):
        found = validate(build({f"{__name__}:Told": sign}), ratings)["dimensions"]["dull"]
        judged[sign] = {name: estimate["value"] for name, estimate in found.items()}
    for name in ("spearman", "pearson"):
        assert judged[-1][name] == pytest.approx(1.0) and judged[1][name] == pytest.approx(-1.0)
    for name in ("accuracy", "accuracy_shorter", "accuracy_longer", "accuracy_balanced"):
        assert judged[-1][name] == 1.0 and judged[1][name] == 0.0
    # A map from score to judgement only rises: the opposite predicts the mean, and is not off.
    assert judged[-1]["calibration"] == pytest.approx(0.0) and judged[1]["calibration"] == pytest.approx(0.0)


def test_a_rule_on_length_is_worth_half_and_has_no_lift_over_itself(ratings, pairs):
    for data in (ratings, pairs):
        report = validate(build("length"), data)
        mean = report["dimensions"]["mean"]
        assert mean["accuracy_shorter"]["value"] == 0 and mean["accuracy_longer"]["value"] == 1
        assert mean["accuracy_balanced"]["value"] == 0.5
        for lift in report["lift"]["longer wins"].values():
            assert lift["value"] == 0 and lift["low"] in (0, None)
        assert report["length"]["value"] == pytest.approx(1.0)


def test_accuracies_of_pairs_worked_by_hand(pairs):
    # Better and worse: longer, longer, shorter. A scorer that likes one longer one, not the other, and the shorter one.
    liked = {"Hello to you there!": 2.0, "Hi.": 1.0, "Go.": 1.0, "Hello there!": 0.0, "Yes.": 0.0, "Yes!": 0.0}
    scorer = Told({**liked, "No.": 1.0, PAIRS[2]["response_b"]: 1.0})
    found = accuracies(np.array(scorer(pairs.episodes)), pairs, "preferred")
    values = {name: statistic.estimate().value for name, statistic in found.items()}
    assert values == {
        "accuracy": pytest.approx((1 + 0 + 0.5) / 3),
        "accuracy_shorter": 0.5,
        "accuracy_longer": 0.5,
        "accuracy_balanced": 0.5,
    }


def test_the_mean_is_that_of_the_dimensions_and_a_baseline_without_references_is_left_out(ratings, pairs):
    report = validate(build("bigram_precision"), ratings)
    dimensions = report["dimensions"]
    for name, estimate in dimensions["mean"].items():
        assert estimate["value"] == pytest.approx(
            (dimensions["good"][name]["value"] + dimensions["dull"][name]["value"]) / 2
        )
    assert set(report["lift"]) == {"longer wins", "source bigrams", "ROUGE-1"} and report["swap_consistency"] is None
    assert set(validate(build("length"), pairs)["lift"]) == {"longer wins", "source bigrams"}
    json.dumps(report, allow_nan=False)


def test_a_lift_is_the_difference_of_two_reports(ratings):
    one, other = (validate(build(name), ratings)["dimensions"]["mean"] for name in ("rouge", "bigram_precision"))
    lift = validate(build("rouge"), ratings)["lift"]["source bigrams"]
    for name, estimate in lift.items():
        assert estimate["value"] == pytest.approx(one[name]["value"] - other[name]["value"])
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_swap_consistency_finds_a_scorer_that_likes_what_comes_first(pairs):
    fair, unfair = (validate(build({f"{__name__}:Firsts": {"margin": margin}}), pairs) for margin in (0, 99))
    assert fair["swap_consistency"]["value"] == pytest.approx(3 / 4)  # two replies of one word each
    assert unfair["swap_consistency"]["value"] == 0.0
    assert fair["dimensions"]["preferred"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert unfair["dimensions"]["preferred"]["accuracy"]["value"] == 0.5  # the two orders cancel out


class Reticent(Told):
    """Abstains from what it does not know."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:  # type: ignore[override]
        return [None if e.text == self.values.get("never") else self.values[e.text] for e in episodes]


def test_what_a_scorer_abstains_from_is_left_out_and_counted(ratings, tmp_path):
    silent = validate(build({f"{__name__}:Reticent": {"values": {**Told().values, "never": TEXTS[3]}}}), ratings)
    rows = [row for row in RATINGS if row["candidate"] != TEXTS[3]]
    without = validate(build(f"{__name__}:Told"), read_judgements(written(tmp_path / "r.jsonl", rows)))
    assert (silent.pop("abstained"), without.pop("abstained")) == (4, 0)
    assert (silent.pop("texts"), without.pop("texts")) == (16, 12)
    assert silent == without
    nobody = {f"{__name__}:Reticent": {"values": {**dict.fromkeys(TEXTS, 1.0), "never": "x"}}}
    assert validate(build(nobody), ratings)["abstained"] == 0
    for episode in ratings.episodes:
        episode.text = "x"
    with pytest.raises(LLMGymError, match="abstained from every text"):
        validate(build(nobody), ratings)


class Shy(Firsts):
    """Abstains from comparisons with `Go.`."""

    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        told = super().compare(firsts, seconds)
        return [float("nan") if "Go." in (a.text, b.text) else x for a, b, x in zip(firsts, seconds, told, strict=True)]


def test_a_comparison_that_a_scorer_abstains_from_is_none(pairs):
    report = validate(build(f"{__name__}:Shy"), pairs)
    assert report["abstained"] == 2 and report["swap_consistency"]["value"] == pytest.approx(2 / 3)
    assert report["dimensions"]["preferred"]["accuracy"]["value"] == 0.5  # one of the two that are left


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_calibration_forgives_any_rising_map_and_sees_when_the_map_does_not_carry_over(noise):
    random = np.random.default_rng(0)
    documents, human = np.arange(2000), random.random(2000)
    score = human + noise * random.normal(size=2000)
    calibrated = calibration_error(score, human, documents).estimate().value
    assert calibrated < 0.03
    assert calibration_error(np.exp(3 * score), human, documents).estimate().value == pytest.approx(
        calibrated, abs=0.01
    )
    shifted = np.where(documents % 2, score, score - 1.5)  # half of the documents on another scale
    assert calibration_error(shifted, human, documents).estimate().value > calibrated + 0.1
    assert calibration_error(score, human, np.zeros(2000, int)).estimate().value is None


def test_an_association_is_within_documents_where_they_have_several_texts():
    x, y = np.array([1.0, 2, 11, 12]), np.array([2.0, 1, 14, 13])
    assert association(x, y, np.array([0, 0, 1, 1])).estimate().value == pytest.approx(-1.0)
    assert association(x, y, np.arange(4)).estimate().value == pytest.approx(spearman(x, y))


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_tables_or_json(tmp_path, capsys):
    path = written(tmp_path / "r.jsonl", RATINGS)
    assert main(["feedback", "validate", '{"rouge": 1.0, "copying": -0.5}', "--data", path]) == 0
    shown = capsys.readouterr().out
    for words in ("4 documents, 16 texts", "good", "dull", "mean", "Spearman within", "calibration", "longer wins"):
        assert words in shown
    assert main(["feedback", "validate", "rouge", "--data", path, "--json", "-n", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents"] == 3 and report["scorer"] == {"rouge": {"weight": 1.0}}
    data = read_judgements(path, documents=3)
    assert report["dimensions"] == validate(build("rouge"), data)["dimensions"]


def test_the_command_takes_pairs_and_tells_a_mistake_in_one_line(tmp_path, capsys):
    rows = [{("chosen" if k == "preferred" else k): v for k, v in row.items()} for row in PAIRS]
    path = written(tmp_path / "p.jsonl", rows)
    assert main(["feedback", "validate", "length", "--data", path, "--columns", "preferred=chosen"]) == 0
    assert "1 ties left out" in capsys.readouterr().out
    for arguments in (["lenght", "--data", path], ["rouge", "--data", path, "--columns", "preferred=chosen"]):
        assert main(["feedback", "validate", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public files, which are not part of the project")
def test_source_bigrams_agree_with_people_as_known_on_public_files():
    qags = validate(build("bigram_precision"), read_judgements(SHARED / "qags_cnn.jsonl"))
    assert qags["dimensions"]["fact"]["pearson"]["value"] == pytest.approx(0.669, abs=0.005)
    pairs = validate(build("length"), read_judgements(SHARED / "autoj_pairs.jsonl"))
    assert pairs["ties"] == 190 and pairs["dimensions"]["preferred"]["accuracy"]["value"] == pytest.approx(
        0.69, abs=0.01
    )
