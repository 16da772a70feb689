"""Data that do not fit into memory: what is read from a temporary file is what would have been held."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import llm_gym
from llm_gym.data import examples, load_examples
from llm_gym.registration import find_task

TASK = find_task("TextSummary-v0")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "docs.jsonl"
    rows = [{"id": f"doc-{i}", "document": f"Zoë met {i} people. " * 40, "facts": [str(i)]} for i in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("split", ["train", "validation", "test", "all"])
@pytest.mark.parametrize("room", [0, 50_000])
def test_what_is_stored_is_what_would_be_held(
    data: str, monkeypatch: pytest.MonkeyPatch, split: str, room: int
) -> None:
    held = load_examples(data, split, TASK)
    monkeypatch.setattr(examples, "IN_MEMORY", room)
    stored = load_examples(data, split, TASK)
    assert isinstance(held, list) and not isinstance(stored, list)
    assert list(stored) == held and len(stored) == len(held)
    assert stored[-1] == held[-1] and list(stored[2:5]) == held[2:5]


def test_an_environment_plays_the_same_from_a_file(data: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play() -> list[str]:
        envs = gym.make_vec("TextSummary-v0", num_envs=4, data=data, tokenizer=tiny_model, feedback="brevity",
                            max_new_tokens=3, autoreset_mode="SameStep")  # fmt: skip
        seen = [str(envs.reset(seed=3)[1]["example"])]
        for step in range(9):
            _, rewards, *_, infos = envs.step(np.full(4, 20 + step))
            seen.append(f"{rewards} {infos.get('example')} {envs.unwrapped.examples[0]['id']}")
        return seen

    held = play()
    monkeypatch.setattr(examples, "IN_MEMORY", 0)
    assert play() == held and llm_gym.__version__


def test_memory_does_not_grow_with_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MB of documents, of which half a megabyte may be held."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(3000):
            file.write(json.dumps({"id": f"doc-{i}", "document": f"{i} " + "word " * 1600}) + "\n")
    assert path.stat().st_size > 20e6
    monkeypatch.setattr(examples, "IN_MEMORY", 500_000)
    tracemalloc.start()
    try:
        found = load_examples(str(path), "train", TASK)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 2400 and peak < 8e6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_processes_that_share_the_file_do_not_disturb_each_other(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "IN_MEMORY", 0)
    stored = load_examples(data, "all", TASK)
    expected = [stored[i]["id"] for i in range(300)]
    child = os.fork()
    if child == 0:
        os._exit(0 if all([stored[i]["id"] == expected[i] for i in range(300)] for _ in range(3)) else 1)
    mine = [stored[299 - i]["id"] for i in range(300)]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mine == expected[::-1]
