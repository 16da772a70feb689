"""What every bundled corpus keeps, and what those of Story-v0 and QuestionAnswering-v0 keep besides."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from random import Random
from typing import Any

import pytest

from llm_gym.data import load_examples
from llm_gym.feedback.answers import abstains, bare
from llm_gym.feedback.corruption import corruptions
from llm_gym.feedback.rules import copied_words, says, words
from llm_gym.registration import ENVIRONMENTS, find_task
from llm_gym.tasks.question_answering import QuestionAnswering
from llm_gym.tasks.story import Story

CORPORA = sorted({find_task(env_id).corpus for env_id in ENVIRONMENTS})
RUN = 8  # words: shorter runs are idiom, as "at the other end of the line"


def rows_of(corpus: str) -> list[dict[str, Any]]:
    path = files("llm_gym.data") / "corpora" / f"{corpus}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a row but its id and split."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("id", "split"):
                yield from texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)


def runs_of(row: dict[str, Any]) -> set[tuple[str, ...]]:
    found = [words(text) for text in texts_in(row)]
    return {tuple(said[i : i + RUN]) for said in found for i in range(len(said) - RUN + 1)}


@pytest.mark.parametrize("corpus", CORPORA)
def test_no_row_shares_eight_words_running_with_one_about_another_text(corpus: str) -> None:
    """Neither across splits, which would be a leak, nor within one, which would be a near-duplicate."""
    task = next(task for task in map(find_task, ENVIRONMENTS) if task.corpus == corpus)
    first: dict[tuple[str, ...], tuple[str, str]] = {}
    for row in rows_of(corpus):
        about = json.dumps(row[task.required[0]])
        for run in runs_of(row):
            other, name = first.setdefault(run, (about, row["id"]))
            assert other == about, f"{row['id']} and {name}: {' '.join(run)}"


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_text_is_in_one_split_and_ids_are_unique(corpus: str) -> None:
    task = next(task for task in map(find_task, ENVIRONMENTS) if task.corpus == corpus)
    rows = rows_of(corpus)
    assert len({row["id"] for row in rows}) == len(rows)
    splits = collections.defaultdict(set)
    for row in rows:
        splits[json.dumps(row[task.required[0]])].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


# --- story --------------------------------------------------------------------------------------------------


def test_stories_are_short_name_their_elements_end_and_do_not_copy_their_premise() -> None:
    rows = rows_of("story")
    assert len(rows) == 100
    for row in rows:
        assert set(row) == {"id", "split", "premise", "elements", "story"}
        assert 50 <= len(words(row["story"])) <= 90, row["id"]
        assert len(set(row["elements"])) == 3 and all(len(words(element)) <= 2 for element in row["elements"])
        assert says(row["story"], row["elements"]), row["id"]
        assert row["story"][-1] in '.!?"', row["id"]
        assert copied_words(row["story"], row["premise"]) == 0, row["id"]


@pytest.mark.models
def test_stories_fit_into_a_turn_of_the_environment() -> None:
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    assert max(len(tokenizer(row["story"])["input_ids"]) for row in rows_of("story")) < Story.max_new_tokens


# --- question answering -------------------------------------------------------------------------------------


def test_passages_and_questions_are_of_the_stated_number_and_size() -> None:
    rows = rows_of("question_answering")
    assert len(rows) == 168 and len({row["context"] for row in rows}) == 62
    assert len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "split", "context", "question", "answers"}
        assert 50 <= len(words(row["context"])) <= 110, row["id"]


def test_one_acceptable_answer_stands_in_the_passage_and_none_is_the_abstention() -> None:
    for row in rows_of("question_answering"):
        passage = f" {' '.join(bare(row['context']))} "
        found = [f" {' '.join(bare(answer))} " in passage for answer in row["answers"]]
        assert any(found) or not found, row["id"]
        assert not any(abstains(answer) for answer in row["answers"])


def test_a_quarter_of_the_questions_is_not_answerable_in_every_split() -> None:
    rows = rows_of("question_answering")
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows if row["split"] == split]
        assert 0.2 <= sum(not row["answers"] for row in chosen) / len(chosen) <= 0.3, split


@pytest.mark.parametrize(
    ("task", "split", "size", "digest"),
    [
        (Story(), "train", 60, "f83409b1530db534"),
        (Story(), "validation", 15, "cea0cf86ba876720"),
        (Story(), "test", 25, "3447a05a64cde3dc"),
        (QuestionAnswering(), "train", 103, "abada832cf9270d8"),
        (QuestionAnswering(), "validation", 24, "238be74fc3ea2026"),
        (QuestionAnswering(), "test", 41, "533835b1f76345a3"),
    ],
)
def test_splits_are_fixed(task, split, size, digest) -> None:
    ids = sorted(example["id"] for example in load_examples(None, split, task))
    assert len(ids) == size
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == digest


# --- who did what -------------------------------------------------------------------------------------------


def test_who_did_what_can_be_swapped_and_shares_nothing_with_summaries() -> None:
    rows = [row for kind in ("dialogues", "reports") for row in rows_of(f"who_did_what_{kind}")]
    assert len({row["id"] for row in rows}) == len({row["document"] for row in rows}) == len(rows) == 161
    summaries = {run for row in rows_of("text_summary") for run in runs_of(row)}
    for row in rows:
        assert set(row) == {"id", "document", "summary"}
        assert not runs_of(row) & summaries, row["id"]
        assert "swapped" in corruptions(row["summary"], row["document"], Random(0)), row["id"]


# --- which reply --------------------------------------------------------------------------------------------


def test_replies_to_a_request_differ_and_their_length_tells_nothing() -> None:
    replies = collections.defaultdict(list)
    for row in rows_of("which_reply"):
        replies[row["id"], row["source"]].append((row["human"], row["candidate"]))
    assert len(replies) == len({source for _, source in replies}) == 720
    orders: collections.Counter[tuple[int, ...]] = collections.Counter()
    for found in replies.values():
        assert [rank for rank, _ in found] == [3, 2, 1] and len({text for _, text in found}) == 3
        orders[tuple(rank for rank, _ in sorted(found, key=lambda reply: len(reply[1].split())))] += 1
    assert set(orders.values()) == {120}
