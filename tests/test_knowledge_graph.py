"""KnowledgeGraph-v0: the parser, the triple scores, its column and its corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gym.data import load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import words
from llm_gym.registration import find_task
from llm_gym.tasks.knowledge_graph import CANONICAL, RELATIONS, canonical, normal, parse

TASK = find_task("KnowledgeGraph-v0")
ROW = {
    "id": "a",
    "passage": "Oda Brenn founded Tindra in Halvdal, and married Finn Lie.",
    "triples": [
        ["Oda Brenn", "founded", "Tindra"],
        ["Tindra", "located in", "Halvdal"],
        ["Oda Brenn", "married to", "Finn Lie"],
    ],
}


def score(text: str, **row: Any) -> dict[str, float]:
    return build(TASK.feedback)([TASK.episode({**ROW, **row}, text)])[0].parts


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=200) | st.text("a| \n", max_size=60))
def test_any_text_can_be_scored(text: str) -> None:
    parts = score(text)
    assert all(0 <= value <= 1 for value in parts.values()) and parts["triple_f1"] <= parts["triple_pairs"]
    assert len(parse(text)) == sum(bool(line.strip()) for line in text.splitlines())


def test_the_reference_is_worth_everything_whatever_its_order_case_and_articles() -> None:
    lines = TASK.reference(ROW).splitlines()
    full = dict.fromkeys(("triple_f1", "triple_pairs", "triple_format"), 1.0)
    assert score("\n".join(lines)) == full
    assert score("\n\n".join(reversed(lines)).upper()) == full
    assert score("\n".join(["The Oda Brenn|founder of| tindra.", *lines[1:]])) == full


def test_a_symmetric_relation_holds_both_ways_and_others_do_not() -> None:
    assert canonical("Finn", "spouse", "Oda") == canonical("Oda", "married to", "Finn")
    assert canonical("Finn", "founded", "Oda") != canonical("Oda", "founded", "Finn")
    assert score("Finn Lie | husband of | Oda Brenn")["triple_f1"] == 0.5
    assert score("Tindra | founded | Oda Brenn")["triple_pairs"] == 0.0


@pytest.mark.parametrize(
    ("text", "strict", "partial"),
    [
        ("Oda Brenn | founded | Tindra", 2 / 4, 2 / 4),
        ("Oda Brenn | owns | Tindra", 0.0, 1 / 4),
        ("Oda Brenn | founded | Tindra\nOda Brenn | founded | Tindra", 2 / 5, 2 / 5),
        ("Oda Brenn | founded | Tindra\nno triple at all", 2 / 5, 2 / 5),
        ("Oda Brenn | owns | Tindra\nOda Brenn | leads | Tindra", 0.0, 1 / 5),
        ("", 0.0, 0.0),
    ],
)
def test_the_scores_are_those_of_the_page(text: str, strict: float, partial: float) -> None:
    parts = score(text)
    assert parts["triple_f1"] == pytest.approx(strict, abs=1e-6)
    assert parts["triple_pairs"] == pytest.approx(partial, abs=1e-6)


def test_names_of_relations_are_not_ambiguous() -> None:
    names = [name for relation, more in RELATIONS.items() for name in (relation, *more)]
    assert len(names) == len(set(names)) and all(name == normal(name) for name in CANONICAL)
    page = type(TASK).__doc__ or ""
    assert all(f"`{relation}`" in page for relation in RELATIONS)


def test_a_row_without_triples_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="no 'triples'"):
        build("triple_f1")([TASK.episode({**ROW, "triples": []}, "x")])


# --- the column ---------------------------------------------------------------------------------------------


def load(path: Path, *values: Any) -> list[Any]:
    path.write_text("".join(json.dumps({"passage": f"Text {i}.", "triples": v}) + "\n" for i, v in enumerate(values)))
    return [row["triples"] for row in load_examples(path, "all", TASK)]


def test_triples_may_be_lists_lines_or_marked(tmp_path: Path) -> None:
    wanted = [["Oda Brenn", "founded", "Tindra"], ["Oda Brenn", "residence", "Halvdal"]]
    marked = "<triplet> Oda Brenn <subj> Tindra <obj> founded <subj> Halvdal <obj> residence"
    written = ["Oda Brenn | founded | Tindra", "Oda Brenn | residence | Halvdal"]
    assert load(tmp_path / "rows.jsonl", wanted, written, marked) == [wanted] * 3
    table = tmp_path / "rows.csv"
    table.write_text(f'passage,triples\nText.,"{"; ".join(written)}"\n')
    assert load_examples(table, "all", TASK)[0]["triples"] == wanted


@pytest.mark.parametrize("value", ["Oda founded", ["a | b"], [["a", "b"]], [["a", "b", ""]], [["a", 1, "c"]], {"a": 1}])
def test_other_values_are_an_error_with_file_and_line(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(LLMGymError, match=f"{path}:2: column 'triples'"):
        load(path, ROW["triples"], value)


def test_columns_of_known_data_sets_load_by_the_real_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    web_nlg = {
        "gem_id": "web_nlg_en-train-1",
        "input": ['Aarhus_Airport | cityServed | "Aarhus, Denmark"'],
        "target": "The Aarhus is the airport of Aarhus, Denmark.",
        "category": "Airport",
    }
    rebel = {
        "title": "Tindra",
        "context": "Tindra was founded by Oda Brenn.",
        "triplets": "<triplet> Tindra <subj> Oda Brenn <obj> founded by",
    }
    known = {
        "web_nlg": (web_nlg, {"passage": "target", "triples": "input"}, "city served"),
        "rebel": (rebel, {"passage": "context", "triples": "triplets"}, "founded by"),
    }
    for name, (row, columns, relation) in known.items():
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text(json.dumps({**row, "id": split}) + "\n")
        example = load_examples(tmp_path / name, "test", TASK, columns)[0]
        parsed = parse(TASK.reference(example))
        assert parsed == [canonical(*example["triples"][0])] and parsed[0].relation == relation
        assert score(TASK.reference(example), triples=example["triples"])["triple_f1"] == 1.0


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_corpus() -> None:
    rows = load_examples(None, "all", TASK)
    sizes = [len(load_examples(None, split, TASK)) for split in ("train", "validation", "test")]
    assert sizes == [64, 16, 24] and len(rows) == 104
    owners: dict[str, str] = {}
    for row in rows:
        assert 25 <= len(words(row["passage"])) <= 70, row["id"]
        assert 2 <= len(row["triples"]) <= 5, row["id"]
        assert len({canonical(*triple) for triple in row["triples"]}) == len(row["triples"]), row["id"]
        for subject, relation, thing in row["triples"]:
            assert relation in RELATIONS and subject in row["passage"] and thing in row["passage"], row["id"]
            for name in (subject, thing):  # no name is in two rows, so none leaks from one split into another
                assert owners.setdefault(name, row["id"]) == row["id"], name
    assert len({tuple(words(row["passage"])[:4]) for row in rows}) == len(rows)
