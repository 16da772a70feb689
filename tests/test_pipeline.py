"""From a policy's texts to a preference model: sampling, labelling, corrupting, training, each a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llm_gym.cli import main
from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import PairwiseScorer, Scorer, build
from llm_gym.feedback.corruption import corrupted_pairs, corruptions, names
from llm_gym.feedback.human import read_judgements
from llm_gym.feedback.pairs import label, read_texts
from llm_gym.registration import find_task

ENV = "TextSummary-v0"
DIALOGUE = "#Person1#: Anna, will you call Bob at 9?\n#Person2#: No, at 10, and Carl too, on Monday, not on Friday."


def episode(text: str, source: str = "Rain fell.", **fields: Any) -> Episode:
    return Episode({"id": source[:4]}, source=source, text=text, **fields)


class Longer(PairwiseScorer):
    """Likes the longer text, and what it is shown first by two characters."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        raise AssertionError("pairs are compared, not scored")

    def compare(self, firsts: Sequence[Episode], seconds: Sequence[Episode]) -> list[float]:
        return [float(len(a.text) - len(b.text) + 2) for a, b in zip(firsts, seconds, strict=True)]


class Shy(Scorer):
    """Abstains from texts of one word."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        return [float(len(e.text)) if " " in e.text else None for e in episodes]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- labelling ----------------------------------------------------------------------------------------------

TEXTS = [
    *[episode(text) for text in ("It rained.", "It rained a lot.", "Rain.", "It rained.")],
    *[episode(text, "Snow fell.") for text in ("It snowed.", "It snowed a lot.")],
]


def test_every_two_different_texts_about_a_source_are_compared_once():
    found = label(build("length"), TEXTS)
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in found.rows] == [
        ("It rained a lot.", "It rained.", 2.0),
        ("It rained.", "Rain.", 1.0),
        ("It rained a lot.", "Rain.", 3.0),
        ("It snowed a lot.", "It snowed.", 2.0),
    ]
    assert found.rows[-1]["source"] == "Snow fell." and (found.ties, found.abstained) == (0, 0)


def test_the_order_of_texts_does_not_matter_and_a_negated_scorer_swaps_them():
    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["source"], row["chosen"], row["rejected"], row["margin"]

    rows, turned = (label(build("length"), texts).rows for texts in (TEXTS, TEXTS[::-1]))
    assert sorted(map(key, rows)) == sorted(map(key, turned))
    negated = label(build({"length": -1.0}), TEXTS).rows
    assert [(row["chosen"], row["margin"]) for row in negated] == [(row["rejected"], row["margin"]) for row in rows]


def test_a_pairwise_scorer_is_shown_both_orders_so_that_its_love_of_the_first_cancels_out():
    found = label(build({f"{__name__}:Longer": 0.5}), TEXTS[:3])
    assert [(row["chosen"], row["margin"]) for row in found.rows] == [
        ("It rained a lot.", 3.0),
        ("It rained.", 2.5),
        ("It rained a lot.", 5.5),
    ]


def test_ties_and_what_a_judge_abstains_from_are_counted_and_left_out():
    found = label(build(f"{__name__}:Shy"), [*TEXTS[:3], episode("It poured.")])
    assert found.abstained == 3 and found.ties == 1 and len(found.rows) == 2


def test_texts_come_as_episodes_or_as_rows_of_source_and_text(tmp_path):
    whole = episode("It rained.", turns=[{"role": "agent", "text": "It rained."}])
    (tmp_path / "t.jsonl").write_text(whole.to_json() + "\n" + '{"source": "Rain fell.", "text": "Rain."}\n')
    one, other = read_texts([tmp_path / "t.jsonl"])
    assert one.to_json() == whole.to_json() and (other.source, other.text) == ("Rain fell.", "Rain.")
    for row, message in (({"text": "a"}, "column 'source' must be a string"), ({"said": 1}, "is no episode")):
        row = row if "text" in row else {"source": "a", "text": "b", **row}
        (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(LLMGymError, match=message):
            read_texts([tmp_path / "t.jsonl"])


def test_preferences_are_judgements_in_which_the_side_tells_nothing(tmp_path):
    rows = [{"source": f"s{i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}", "margin": 1.0} for i in range(4)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_judgements(tmp_path / "p.jsonl")
    assert data.kind == "pairs" and data.documents.tolist() == [0, 0, 1, 1] * 2
    told = [(data.episodes[b].text, data.episodes[w].text) for b, w in data.better["preferred"]]
    assert told == [(f"good {i}", f"bad {i}") for i in range(4)]
    assert [e.text[:4] for e in data.episodes[:4]] == ["good", "bad ", "good", "bad "]
    assert not set(data.episodes[0].example) & {"chosen", "rejected", "margin", "preferred"}


# --- corrupting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Oda Brenn met Mrs. Hara's crew in Kiel.", ["Oda Brenn", "Mrs. Hara", "Kiel"]),
        ("Rain fell. Anna came, and I saw Anna. I'm glad.", ["Anna"]),
        ("The Museum of Tides opens.", ["Museum", "Tides"]),
        ("#Person2# calls Anna O'Neill on Monday.", ["#Person2#", "Anna O'Neill", "Monday"]),
        ("nothing here", []),
    ],
)
def test_names_worked_by_hand(text, found):
    assert names(text, ["Sea: The Museum has the Tides."]) == found


def test_speakers_names_and_numbers_are_changed_and_nothing_else():
    right = "#Person1# asks #Person2# to call Anna at 9."
    wrong = [corruptions(right, DIALOGUE, Random(seed)) for seed in range(40)]
    assert {w["number"][0] for w in wrong} == {"#Person1# asks #Person2# to call Anna at 10."}
    assert "#Person2# asks #Person1# to call Anna at 9." in {w["swapped"][0] for w in wrong}
    replaced = {w["replaced"][0] for w in wrong}
    assert "#Person1# asks #Person2# to call Bob at 9." in replaced and not any("Monday" in w for w in replaced)
    for kinds in wrong:
        texts = [text for drawn in kinds.values() for text in drawn]
        assert right not in texts and all(len(text.split()) == len(right.split()) for text in texts)


def test_several_wrong_versions_of_a_kind_are_different_and_no_more_than_there_are():
    right = "#Person1# asks #Person2# to call Anna at 9."
    several = corruptions(right, DIALOGUE, Random(0), 2)
    assert {kind: len(set(texts)) for kind, texts in several.items()} == {"swapped": 2, "replaced": 2, "number": 1}
    assert len(corruptions(right, DIALOGUE, Random(0), 50)["swapped"]) == 3


def test_names_that_do_the_same_are_not_swapped_and_days_go_with_days():
    assert "swapped" not in corruptions("He met Anna and Bob.", "", Random(0))
    for seed in range(20):
        wrong = corruptions("On Monday Anna called.", DIALOGUE, Random(seed))
        assert wrong["replaced"][0] in {
            f"On Monday {name} called." for name in ("#Person1#", "#Person2#", "Bob", "Carl")
        } | {"On Friday Anna called."}


def test_a_number_without_another_is_made_up_and_a_text_without_any_is_left_alone():
    (wrong,) = corruptions("It took 24 days.", "It took long.", Random(0))["number"]
    assert wrong != "It took 24 days." and wrong.startswith("It took 2")
    assert corruptions("It took long.", "It took long.", Random(0)) == {}


def test_pairs_of_a_corpus_keep_the_reference_and_do_not_depend_on_the_order():
    task = find_task(ENV)
    examples = load_examples(None, "train", task)
    pairs = corrupted_pairs(task, examples)
    by_id = {example["id"]: example for example in examples}
    assert len({pair["id"] for pair in pairs}) > 0.8 * len(examples)
    for pair in pairs:
        assert pair["chosen"] == by_id[pair["id"]]["summary"] != pair["rejected"]
    again = corrupted_pairs(task, examples[::-1])
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, pairs))
    assert corrupted_pairs(task, examples, seed=1) != pairs


def test_a_task_without_references_is_an_error():
    task = find_task(ENV)
    examples = [{"id": "a", "document": "Anna met Bob."}, {"id": "b", "document": "Rain.", "summary": "It rained."}]
    with pytest.raises(LLMGymError, match="no reference of the task 'summary' has names or numbers"):
        corrupted_pairs(task, examples)


# --- the commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("docs") / "docs.jsonl"
    texts = [f"Last week Anna met Bob {i} times." for i in range(12)]
    rows = [{"id": f"d{i}", "document": text, "summary": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(*arguments: str) -> int:
    return main(["feedback", *arguments])


def test_from_a_policy_to_a_preference_model_that_scores(tiny_model, docs, tmp_path, capsys):
    texts, pairs, model = tmp_path / "texts.jsonl", tmp_path / "new/pairs.jsonl", tmp_path / "model"
    sampling = ["sample", ENV, "--data", docs, "--policy", tiny_model, "-k", "3", "-n", "5", "--out", str(texts)]
    assert command(*sampling, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"documents": 5, "texts": 15, "out": str(texts)}
    rows = read(texts)
    assert [row["example"]["id"] for row in rows[::3]] == [row["example"]["id"] for row in rows[2::3]]
    assert len({row["text"] for row in rows}) > 10 and all(row["reward"] is None and row["parts"] == {} for row in rows)

    assert command("label", '{"length": -1.0, "distinct": 0.1}', "--texts", str(texts), "--out", str(pairs)) == 0
    assert "pairs" in capsys.readouterr().out
    assert set(read(pairs)[0]) == {"id", "source", "chosen", "rejected", "margin"}

    training = ["train", "--data", str(pairs), "--model", tiny_model, "--steps", "2", "--out", str(model)]
    assert command(*training) == 0
    captured = capsys.readouterr()
    assert "held-out accuracy  " in captured.out and "update 2 of 2" in captured.err
    assert command(*training) == 2 and "exists already" in capsys.readouterr().err

    spec = json.dumps({"preference": {"weight": 2.0, "path": str(model)}})
    assert command("validate", spec, "--data", str(pairs), "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "pairs"
    assert main(["score", ENV, "--input", docs, "--columns", "text=summary", "--feedback", spec, "--json"]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(scored) == 12 and all(item["score"] == pytest.approx(2 * item["parts"]["preference"]) for item in scored)


def test_the_same_seed_samples_the_same_texts(tiny_model, docs, tmp_path):
    files = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.jsonl"
        asked = ["--data", docs, "--policy", tiny_model, "-k", "2", "-n", "2", "--seed", seed, "--out", str(out)]
        assert command("sample", ENV, *asked) == 0
        files.append([row["text"] for row in read(out)])
    assert files[0] == files[1] != files[2]


def test_corrupt_writes_pairs_of_a_split(docs, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    assert command("corrupt", ENV, "--data", docs, "--split", "all", "--out", str(out)) == 0
    assert capsys.readouterr().out.startswith("12 documents, ")
    assert {"swapped", "number"} == {row["kind"] for row in read(out)}
    assert any(row["rejected"].startswith("Last week Bob met Anna") for row in read(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "Dialogue-v0"], "is a conversation"),
        (["corrupt", "Dialogue-v0"], "is a conversation"),
        (["sample", "QuestionAnswering-v0"], "asks several questions about a source"),
        (["sample", "TextSummary-v0", "--policy", "random", "--temperature", "0.5"], "--temperature is for sampling"),
        (["label", "lenght", "--texts", "x.jsonl"], "did you mean 'length'"),
        (["label", "length", "--texts", "x.jsonl"], "no such file"),
        (["train", "--data", "x.jsonl"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, message, tmp_path, capsys):
    assert command(*arguments, "--out", str(tmp_path / "deep/out")) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not (tmp_path / "deep").exists()


def test_a_scorer_that_tells_nothing_apart_writes_nothing(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text("".join(e.to_json() + "\n" for e in TEXTS[:1]))
    assert command("label", "length", "--texts", str(tmp_path / "t.jsonl"), "--out", str(tmp_path / "p.jsonl")) == 2
    assert "told no two texts apart" in capsys.readouterr().err and not (tmp_path / "p.jsonl").exists()
