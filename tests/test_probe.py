"""Preference models on a frozen language model: what is fitted, that it comes back as it was saved, what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.preference import documents, held_out
from agents.probe import PENALTY, fitted, train_probe
from llm_gym.cli import main
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.human import Judgements, read_judgements
from llm_gym.feedback.preference import PreferenceModel, mean_states
from llm_gym.models.load import load_tokenizer, shared_causal_lm

CORPORA = Path(__file__).parents[1] / "llm_gym" / "data" / "corpora"
SOURCE = "The council met on Tuesday to talk about the new bridge over the river."
TEXTS = ["The council met.", "Rain fell all night and the lower road was closed.", "A bridge.", "Rain. " * 200]


def pairs(count: int = 30) -> list[dict[str, Any]]:
    """Rows in which the better text says good where the worse one says bad."""
    nouns = SOURCE.split()
    return [
        {
            "source": f"{i}. {SOURCE}",
            "chosen": f"The {nouns[i % 9]} is good {i}.",
            "rejected": f"The {nouns[i % 9]} is bad {i}.",
        }
        for i in range(count)
    ]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judgements(folder: Path, rows: list[dict[str, Any]]) -> Judgements:
    return read_judgements(write(folder, rows))


def drawn(count: int = 20, width: int = 5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """States of three texts a document, in the order of a hidden reward and some noise, and their comparisons."""
    random = np.random.default_rng(0)
    truth = random.normal(size=width)
    states, better = [], []
    for _ in range(count):
        found = random.normal(size=(3, width)) * np.arange(1, width + 1)
        order = np.argsort(-(found @ truth) + random.normal(size=3))
        states.append(found)
        better.append(np.array([order[[0, 1]], order[[0, 2]], order[[1, 2]]]))
    return states, better


def test_what_is_fitted_is_the_optimum_of_the_penalised_likelihood() -> None:
    states, better = drawn()
    spread = np.concatenate(states).std(0)
    weight = torch.tensor(fitted(states, better) * spread, requires_grad=True)
    losses = []
    for found, order in zip(states, better, strict=True):
        gaps = torch.tensor((found[order[:, 0]] - found[order[:, 1]]) / spread)
        losses.append(torch.nn.functional.softplus(-gaps @ weight).mean())
    loss = torch.stack(losses).mean() + PENALTY * (weight**2).sum() / 2
    loss.backward()
    torch.testing.assert_close(weight.grad, torch.zeros_like(weight), atol=1e-7, rtol=0)
    assert loss.item() < np.log(2)


def test_units_and_comparisons_said_twice_change_nothing() -> None:
    states, better = drawn()
    weight = fitted(states, better)
    units = np.array([1, 10, 100, 0.1, 5])
    np.testing.assert_allclose(fitted([found * units for found in states], better) * units, weight, rtol=1e-6)
    twice = [np.concatenate([better[0], better[0]]), *better[1:]]
    np.testing.assert_allclose(fitted(states, twice), weight, rtol=1e-9)


def test_swapped_comparisons_give_the_negated_reward() -> None:
    states, better = drawn()
    np.testing.assert_allclose(fitted(states, [order[:, ::-1] for order in better]), -fitted(states, better))


def test_the_mean_of_a_layer_is_that_of_a_naive_forward(tiny_model) -> None:
    tokenizer, lm = load_tokenizer(tiny_model), shared_causal_lm(tiny_model, dtype="float32")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    head = tokenizer(f"Source:\n{SOURCE}\n\nText:", **plain)["input_ids"]
    for text, found in zip(TEXTS, mean_states(tiny_model, 1, SOURCE, TEXTS), strict=True):
        tail = [*tokenizer(f" {text}", **plain)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            states = lm(torch.tensor([head + tail]), output_hidden_states=True).hidden_states[1][0]
        np.testing.assert_allclose(found, states[len(head) :].double().mean(0).numpy(), atol=1e-4)


def test_an_easy_preference_is_learned_saved_and_told_on_documents_held_out(tiny_model, tmp_path) -> None:
    data, lines = judgements(tmp_path, pairs()), []
    config = train_probe(data, tmp_path / "model", tiny_model, say=lines.append)
    assert config["held_out"]["accuracy"]["value"] == 1.0 and config["held_out"]["longer"]["value"] == 0.5
    assert config["documents"] == 24 and lines[-1] == "read 6 of 6 documents"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"preference.json", "head.safetensors"}
    assert json.loads((tmp_path / "model/preference.json").read_text()) == config
    _, test = held_out(documents(data))
    rewards = PreferenceModel(str(tmp_path / "model"))([(d.source, text) for d in test for text in d.texts])
    assert np.mean(rewards) == pytest.approx(0, abs=1e-5) and np.ptp(rewards) > 1e-3
    likes = build({"preference": {"path": str(tmp_path / "model")}})
    good, bad = likes([Episode({"id": "a"}, source=SOURCE, text=f"The night is {word}.") for word in ("good", "bad")])
    assert good.value > bad.value


def test_it_is_the_same_again_to_the_byte_and_another_layer_is_another(tiny_model, tmp_path) -> None:
    data = judgements(tmp_path, pairs(8))
    heads = []
    for name, layer in (("one", 1), ("again", 1), ("other", 2)):
        assert train_probe(data, tmp_path / name, tiny_model, layer)["layer"] == layer
        heads.append((tmp_path / name / "head.safetensors").read_bytes())
    assert heads[0] == heads[1] != heads[2]


def test_wrong_calls_are_one_line_and_leave_nothing(tiny_model, tmp_path, capsys) -> None:
    data = judgements(tmp_path, pairs(4))
    with pytest.raises(LLMGymError, match="layer=9 is none of .* which has layers 1 to 2"):
        train_probe(data, tmp_path / "model", tiny_model, 9)
    long = [{**row, "source": row["source"] + " rain" * 600} for row in pairs(4)]
    with pytest.raises(LLMGymError, match="reads at most 1024 tokens"):
        train_probe(judgements(tmp_path, long), tmp_path / "model", tiny_model)
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    with pytest.raises(LLMGymError, match="exists already and nothing is overwritten"):
        train_probe(data, tmp_path / "model", tiny_model)
    path = write(tmp_path, pairs(4))
    assert main(["feedback", "train-probe", "--data", str(path), "--model", tiny_model, "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_command_makes_what_the_scorer_reads(tiny_model, tmp_path, capsys) -> None:
    path, out = write(tmp_path, pairs()), tmp_path / "model"
    assert main(["feedback", "train-probe", "--data", str(path), "--model", tiny_model, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "layer              1, 24 documents, 24 comparisons" in shown and "held-out accuracy  1.0" in shown
    spec = json.dumps({"preference": {"path": str(out)}})
    assert main(["feedback", "validate", spec, "--data", str(path)]) == 0


def test_the_bundled_model_tells_which_reply_to_requests_that_it_has_not_seen() -> None:
    _, test = held_out(documents(read_judgements(CORPORA / "which_reply.jsonl")))
    replies = [Episode({"id": "a"}, source=d.source, text=text) for d in test[:12] for text in d.texts]
    values = [score.value for score in build({"preference": {"path": "which-reply"}})(replies)]
    right = [values[3 * i + b] > values[3 * i + w] for i, d in enumerate(test[:12]) for b, w in d.better]
    assert len(right) == 36 and np.mean(right) > 0.65
