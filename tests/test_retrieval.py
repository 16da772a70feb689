"""Retrieval-v0: the index, what a turn earns, the engines, columns, BEIR's layout and the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_gym  # noqa: F401
from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.data import beir, load_examples
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import words
from llm_gym.registration import find_task
from llm_gym.search import Document, Index, ndcg, shared_index, stems
from llm_gym.tasks.retrieval import DOCUMENTS, ends_search, search

TASK = find_task("Retrieval-v0")
BOOKS = [
    Document("a", "Boats", "A boat was repaired in the harbour."),
    Document("b", "Bread", "The baker repairs an oven."),
    Document("c", "", "Harbour lights."),
]


class Sayer(ReferenceAgent):
    """Says what it is told, turn by turn, then nothing."""

    def __init__(self, envs: Any, *texts: str) -> None:
        super().__init__(envs)
        self.texts = texts

    def turn(self, row: int) -> str:
        asked = sum(turn["role"] == "agent" for turn in self.envs._turns[row])
        return self.texts[asked] if asked < len(self.texts) else ""


def reward(*texts: str, example: str = "bread-need-1") -> Any:
    """Return the episode in which these queries were written."""
    envs = make_envs("Retrieval-v0", 1, "all", {"tokenizer": "sp-1k", "max_new_tokens": 60})
    return play(Sayer(envs, *texts), envs, [example])[0]


# --- the index ----------------------------------------------------------------------------------------------


def test_bm25_finds_stems_and_nothing_that_shares_no_word() -> None:
    index = Index(BOOKS)
    assert [d.id for d in index.search("repairing boats")] == ["a", "b"]
    assert [d.id for d in index.search("harbours", top=1)] == ["c"]
    assert index.search("the of and") == index.search("zebra") == index.search(" ") == index.search("?!") == []
    with pytest.raises(LLMGymError, match="'google' is unknown; expected one of bm25"):
        index.search("boat", "google")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80))
def test_any_query_is_answered_with_different_documents(query: str) -> None:
    found = shared_index(DOCUMENTS).search(query)
    assert len(found) == len(set(found)) <= 10
    assert found == shared_index(DOCUMENTS).search(query)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdefghijkl"), unique=True), st.sets(st.sampled_from("abcxyz"), min_size=1))
def test_ndcg_is_best_for_relevant_documents_first(found: list[str], relevant: set[str]) -> None:
    value = ndcg(found, sorted(relevant))
    assert 0 <= value <= 1
    ordered = sorted(found, key=lambda name: name not in relevant)
    assert ndcg(ordered, sorted(relevant)) >= value
    assert ndcg([*sorted(relevant), "q"], sorted(relevant)) == pytest.approx(1.0)


def test_a_broken_collection_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": "a", "text": "One."}\n{"id": "a", "text": "Two."}\n')
    with pytest.raises(LLMGymError, match="'a' is on lines 1 and 2"):
        shared_index(str(path))
    path.write_text('{"id": "a", "title": "One."}\n')
    with pytest.raises(LLMGymError, match=":1: a document needs 'id' and 'text'"):
        shared_index(str(path))
    with pytest.raises(LLMGymError, match="no such file"):
        shared_index(str(tmp_path / "none.jsonl"))


# --- what a turn earns --------------------------------------------------------------------------------------


def test_an_episode_is_worth_its_best_query_less_what_asking_again_costs() -> None:
    good, poor = "sourdough starter grey liquid feed", "bread dough water"
    assert reward(good).reward == pytest.approx(10.0)
    first = reward(poor).reward
    assert 0 <= first < 8
    assert reward(poor, good).reward == pytest.approx(9.5)
    assert reward(good, poor).reward == pytest.approx(9.5)
    assert reward(good, good).reward < reward(good).reward
    assert reward(good, good, good).reward < reward(good, good).reward
    assert reward(poor, poor).reward < first
    assert reward("").reward == reward("qzx vrrp").reward == 0
    assert reward(good, "done").reward == pytest.approx(10.0)


def test_a_long_query_costs_its_excess() -> None:
    query = "sourdough starter grey liquid feed"
    score = build(TASK.feedback)
    values = [score([TASK.episode(row(), text)])[0].value for text in (query, f"{query} {'zzyx ' * 19}")]
    assert values[0] - values[1] == pytest.approx(3.0)


def row() -> dict[str, Any]:
    return next(row for row in load_examples(None, "all", TASK) if row["id"] == "bread-need-1")


def test_results_are_listed_and_the_search_ends_when_told() -> None:
    said = [{"role": "agent", "text": "sourdough starter grey liquid"}]
    reply = TASK.reply(row(), said)
    assert reply.splitlines()[0].startswith("1. Waking a neglected sourdough starter: A grey liquid on top")
    assert 2 <= len(reply.splitlines()) <= 6 and reply.endswith("or done.")
    assert TASK.reply(row(), [{"role": "agent", "text": "qzx"}]).startswith("No results.\n")
    assert TASK.reply(row(), [{"role": "agent", "text": "Done."}]) is None and ends_search("")
    episode = reward("sourdough starter")
    assert [turn["role"] for turn in episode.turns] == ["agent", "partner", "agent"]
    assert len(reward("bread", "loaf", "starter").turns) == 5


def test_the_reference_agent_refines_where_the_author_did_and_then_stops() -> None:
    envs = make_envs("Retrieval-v0", 2, "all", {"tokenizer": "sp-1k", "max_new_tokens": 80, "max_prompt_tokens": 400})
    one, two = play(ReferenceAgent(envs), envs, ["bread-need-1", "tea-need-1"])
    assert [sum(turn["role"] == "agent" for turn in episode.turns) for episode in (one, two)] == [2, 3]
    assert one.reward == pytest.approx(10.0) and 9 < two.reward <= 9.5


def test_a_row_that_does_not_say_what_is_relevant_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="no 'relevant'"):
        build("ndcg")([TASK.episode({"id": "a", "need": "x"}, "bread")])


# --- engines and data of one's own --------------------------------------------------------------------------


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="partner='google' is unknown; 'retrieval' has bm25, embedding, hybrid"):
        gym.make("Retrieval-v0", tokenizer="sp-1k", partner="google")


@pytest.mark.models
@pytest.mark.parametrize("engine", ["embedding", "hybrid"])
def test_the_reward_follows_the_engine(engine: str) -> None:
    envs = make_envs("Retrieval-v0", 1, "all", {"tokenizer": "sp-1k", "max_new_tokens": 60, "partner": engine})
    episode = play(Sayer(envs, "How do I wake up old leaven?"), envs, ["bread-need-1"])[0]
    asked = {**row(), "engine": engine}
    found = [document.id for document in search(asked, "How do I wake up old leaven?")]
    assert episode.reward == pytest.approx(10 * ndcg(found, row()["relevant"]), abs=1e-4) and episode.reward > 0
    assert reward("How do I wake up old leaven?").reward != episode.reward


def test_a_collection_of_ones_own(tmp_path: Path) -> None:
    documents, needs = tmp_path / "docs.jsonl", tmp_path / "needs.jsonl"
    documents.write_text("".join(json.dumps(d._asdict()) + "\n" for d in BOOKS))
    rows = [{"need": "Who mends vessels?", "relevant": ["a"], "documents": str(documents), "query": "boat repaired"}]
    needs.write_text(json.dumps(rows[0]) + "\n")
    envs = make_envs("Retrieval-v0", 1, "all", {"tokenizer": "sp-1k", "data": str(needs)})
    assert play(ReferenceAgent(envs), envs, ["row-1"])[0].reward == pytest.approx(10.0)
    needs.write_text(json.dumps({**rows[0], "relevant": ["a", "z"]}) + "\n")
    with pytest.raises(LLMGymError, match=f"{needs}:1: 'relevant' has 'z', which is no document of"):
        load_examples(needs, "all", TASK)


def write_beir(data: Path, *without: str) -> str:
    """Write a data set of BEIR's layout, whose judgements lack some columns."""
    (data / "qrels").mkdir(parents=True)
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: qrels/train.jsonl}\n"
        "  - {split: test, path: qrels/test.jsonl}\n- config_name: corpus\n  data_files:\n"
        "  - {split: corpus, path: corpus.jsonl}\n- config_name: queries\n  data_files:\n"
        "  - {split: queries, path: queries.jsonl}\n---\n"
    )
    tables = {
        "corpus.jsonl": [{"_id": d.id, "title": d.title, "text": d.text} for d in BOOKS],
        "queries.jsonl": [{"_id": str(i), "text": f"Need {i}"} for i in range(3)],
        "qrels/train.jsonl": [{"query-id": "0", "corpus-id": "a", "score": 1.0}],
        "qrels/test.jsonl": [
            {"query-id": "1", "corpus-id": "b", "score": 1.0},
            {"query-id": "1", "corpus-id": "c", "score": 1.0},
            {"query-id": "2", "corpus-id": "a", "score": 0.0},
        ],
    }
    for name, rows in tables.items():
        kept = [{column: value for column, value in row.items() if column not in without} for row in rows]
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in kept))
    return str(data)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_layout_of_beir_is_joined_by_the_real_loader(tmp_path: Path, cache: None) -> None:
    needs = beir.join(write_beir(tmp_path / "scifact"), tmp_path / "joined")
    test = load_examples(needs, "test", TASK)
    assert [(e["id"], e["need"], e["relevant"]) for e in test] == [("1", "Need 1", ["b", "c"])]
    assert [e["id"] for e in load_examples(needs, "train", TASK)] == ["0"]
    assert search(test[0], "baker")[0].id == "b"


def test_another_layout_or_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, cache: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for column in ("score", "query-id", "corpus-id"):
        with pytest.raises(LLMGymError, match=f"config 'default' of data set .* has no {column}; give one of BEIR's"):
            beir.join(write_beir(tmp_path / column, column), tmp_path / "joined")
    with pytest.raises(LLMGymError, match="config 'corpus' of data set .* has no text"):
        beir.join(write_beir(tmp_path / "text", "text"), tmp_path / "joined")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["beir", write_beir(tmp_path / "scifact"), str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match="1"):
        beir.main()
    assert "out: Not a directory; give another folder\n" in capsys.readouterr().err


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_corpus() -> None:
    rows, documents = load_examples(None, "all", TASK), shared_index(DOCUMENTS).documents
    sizes = [len(load_examples(None, split, TASK)) for split in ("train", "validation", "test")]
    assert sizes == [60, 15, 25] and len(rows) == 100 and len(documents) == 250
    assert all(25 <= len(words(document.text)) <= 60 and document.title for document in documents)
    assert len({document.title for document in documents}) == len({document.text for document in documents}) == 250
    relevant = [name for row in rows for name in row["relevant"]]
    assert len(relevant) == len(set(relevant))  # a document answers one need, so none leaks between splits
    assert all(1 <= len(row["relevant"]) <= 4 and len(words(row["need"])) <= 45 for row in rows)


def test_a_reference_query_does_well_and_a_copied_need_does_not() -> None:
    def value(row: dict[str, Any], query: str) -> float:
        return ndcg([document.id for document in search(row, query)], row["relevant"])

    rows = load_examples(None, "all", TASK)
    best = [max(value(row, query) for query in row["query"].splitlines()) for row in rows]
    copied = [value(row, row["need"]) for row in rows]
    assert min(best) > 0.9 and sum(copied) / len(rows) < 0.25
    assert sum(a > b for a, b in zip(best, copied, strict=True)) >= 0.95 * len(rows)
    assert all(value(row, query) <= 1 and stems([query])[0] for row in rows for query in row["query"].splitlines())
