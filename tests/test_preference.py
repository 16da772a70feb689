"""Preference models: what they learn, that they come back as they were saved, and how they score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import preference as training
from agents.lora import round_adapters
from agents.losses import bradley_terry
from agents.preference import RewardModel, documents, held_out, train_preference
from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.corruption import corrupted_pairs
from llm_gym.feedback.human import Judgements, read_judgements
from llm_gym.feedback.preference import Preference, PreferenceModel, segments
from llm_gym.models.load import load_tokenizer, quiet_peft, shared_adapted_lm, shared_causal_lm
from llm_gym.registration import find_task

SOURCE = "The council met on Tuesday to talk about the new bridge over the river."
TEXTS = [
    "The council met.",
    "Rain fell all night and the lower road was closed.",
    "A bridge.",
    "The council met. Rain.",
]


def rows(count: int = 30) -> list[dict[str, Any]]:
    """Pairs in which the better text says good where the worse one says bad."""
    words = SOURCE.split()
    return [
        {
            "source": " ".join(words[i % 7 :] + [f"{i}."]),
            "chosen": f"The {words[i % 9]} is good {i}.",
            "rejected": f"The {words[i % 9]} is bad {i}.",
        }
        for i in range(count)
    ]


def judgements(folder: Path, pairs: list[dict[str, Any]]) -> Judgements:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return read_judgements(path)


def episode(text: str, source: str = SOURCE, **fields: Any) -> Episode:
    return Episode({"id": "a"}, source=source, text=text, **fields)


def perturbed(model: str, seed: int = 0) -> RewardModel:
    """A reward model whose adapters and head do something."""
    rewards = RewardModel(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rewards.trained:
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    round_adapters(rewards.lm)
    return rewards


@pytest.fixture(scope="module")
def saved(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, str]:
    """A reward model and the folder it was saved in."""
    folder = tmp_path_factory.mktemp("preference")
    model = perturbed(tiny_model)
    model.save(folder, {"llm_gym_preference": 1, "model": tiny_model})
    return model, str(folder)


def fresh(folder: str, **options: Any) -> Preference:
    """A scorer that remembers nothing of the other tests."""
    scorer = Preference(folder, **options)
    scorer.model = PreferenceModel(folder)
    return scorer


# --- learning -----------------------------------------------------------------------------------------------


def test_an_easy_preference_is_learned_and_told_on_documents_held_out(tiny_model, tmp_path):
    lines: list[str] = []
    config = train_preference(judgements(tmp_path, rows()), tmp_path / "model", tiny_model, say=lines.append)
    assert config["documents"] == 24 and config["held_out"]["documents"] == 6
    assert config["held_out"]["accuracy"]["value"] == 1.0 and config["held_out"]["longer"]["value"] == 0.5
    assert config["updates"] == 18 and lines[-1].startswith("update 18 of 18 · loss ")
    assert json.loads((tmp_path / "model/preference.json").read_text()) == config
    likes = build({"preference": {"path": str(tmp_path / "model")}})
    good, bad = likes([episode("The night is good."), episode("The night is bad.")])
    assert good.value > bad.value


def test_training_on_swapped_pairs_gives_the_negated_margins(tiny_model, tmp_path):
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows(8)]
    margins = []
    for name, pairs in (("one", rows(8)), ("other", swapped)):
        train_preference(judgements(tmp_path, pairs), tmp_path / name, tiny_model, steps=4)
        good, bad = Preference(str(tmp_path / name))([episode("It is good."), episode("It is bad.")])
        margins.append(good - bad)
    assert margins[0] == pytest.approx(-margins[1], rel=1e-2) and abs(margins[0]) > 1e-6


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tiny_model, tmp_path):
    data = judgements(tmp_path, rows(8))
    files = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(files))  # whatever else has been drawn
        train_preference(data, tmp_path / name, tiny_model, steps=2, seed=seed)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1] and files[0]["adapter_model.safetensors"] != files[2]["adapter_model.safetensors"]
    assert set(files[0]) == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "preference.json"}


def test_held_out_rewards_have_the_mean_nought(tiny_model, tmp_path):
    data = judgements(tmp_path, rows(10))
    train_preference(data, tmp_path / "model", tiny_model, steps=2)
    _, test = held_out(documents(data))
    pairs = [(document.source, text) for document in test for text in document.texts]
    assert np.mean(PreferenceModel(str(tmp_path / "model"))(pairs)) == pytest.approx(0, abs=1e-5)


def test_all_texts_about_a_source_are_one_document_and_ratings_count_by_their_mean(tmp_path):
    ratings = [
        {"source": SOURCE, "candidate": text, "human": {"a": float(k), "b": 4.0 - 3 * k}}
        for k, text in enumerate(TEXTS)
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ratings, {**ratings[0], "source": "Another."}]))
    (document,) = documents(read_judgements(path))
    assert set(document.texts) == set(TEXTS) and len(document.better) == 6
    assert all(TEXTS.index(document.texts[b]) < TEXTS.index(document.texts[w]) for b, w in document.better)


def test_documents_are_held_out_by_their_source_whatever_their_order(tmp_path):
    data = documents(judgements(tmp_path, rows(20)))
    train, test = held_out(data)
    again = held_out(data[::-1])
    assert [d.source for d in train] == [d.source for d in again[0]] and len(test) == 4
    assert not {d.source for d in train} & {d.source for d in test}


def test_the_loss_is_that_of_bradley_and_terry():
    better, worse = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert bradley_terry(better, worse).tolist() == pytest.approx([np.log(1 + np.exp(-1)), np.log(2)])


# --- files --------------------------------------------------------------------------------------------------


def test_what_was_saved_scores_as_what_was_trained(saved):
    model, folder = saved
    document = training.Document(SOURCE, tuple(TEXTS), np.zeros((0, 2), int))
    with torch.no_grad():
        trained = model.rewards(document).tolist()
    loaded = PreferenceModel(folder)([(SOURCE, text) for text in TEXTS])
    assert loaded == pytest.approx(trained, abs=1e-4) and np.ptp(trained) > 0.1


def test_the_adapter_is_an_ordinary_one_and_the_reward_that_of_a_naive_forward(saved, tiny_model):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    _, folder = saved
    with quiet_peft():
        base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder).eval()
    head, tokenizer = load_file(Path(folder) / "head.safetensors"), load_tokenizer(tiny_model)
    for text in TEXTS:
        ids = tokenizer(f"Source:\n{SOURCE}\n\nText: {text}")["input_ids"]
        plain = [*tokenizer(f"Source:\n{SOURCE}\n\nText:")["input_ids"], *tokenizer(f" {text}")["input_ids"]]
        assert tokenizer.decode(plain) == tokenizer.decode(ids)
        with torch.no_grad():
            out = base(torch.tensor([[*plain, tokenizer.eos_token_id]]), output_hidden_states=True)
            expected = out.hidden_states[-1][0, -1] @ head["weight"] + head["bias"][0]
        assert fresh(folder)([episode(text)]) == [pytest.approx(expected.item(), abs=1e-4)]


def test_a_failure_leaves_nothing_and_nothing_is_overwritten(tiny_model, tmp_path, monkeypatch):
    data = judgements(tmp_path, rows(4))

    def full(self: RewardModel, folder: Path, config: dict[str, Any]) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(RewardModel, "save", full)
    with pytest.raises(OSError, match="no space"):
        train_preference(data, tmp_path / "model", tiny_model, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    (tmp_path / "model").mkdir()
    with pytest.raises(LLMGymError, match="exists already and nothing is overwritten"):
        train_preference(data, tmp_path / "model", tiny_model, steps=1)


def test_a_folder_written_again_is_read_again(tiny_model, tmp_path):
    first, second = perturbed(tiny_model, 1), perturbed(tiny_model, 2)
    config = {"llm_gym_preference": 1, "model": tiny_model}
    first.save(tmp_path, config)
    before = Preference(str(tmp_path))([episode(TEXTS[0])])
    second.save(tmp_path, config)
    after = Preference(str(tmp_path))([episode(TEXTS[0])])
    assert abs(before[0] - after[0]) > 1e-3
    assert after == pytest.approx(fresh(str(tmp_path))([episode(TEXTS[0])]))


def test_the_base_stays_as_it_was_and_the_adapted_model_is_loaded_once(saved, tiny_model):
    _, folder = saved
    base = shared_causal_lm(tiny_model, dtype="float32")
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = shared_adapted_lm(tiny_model, folder, dtype="float32")
    assert adapted is shared_adapted_lm(tiny_model, folder, dtype="float32") and adapted is not base
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
    assert not any(p.requires_grad for p in adapted.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "preference.json").unlink(), "is no preference model"),
        (lambda folder: (folder / "preference.json").write_text('{"llm_gym_preference": 9}'), "by another version"),
        (lambda folder: (folder / "preference.json").write_text('{"llm_gym_preference": 1}'), "names no model that it"),
        (lambda folder: (folder / "head.safetensors").unlink(), "head of the preference model"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no"), "does not fit the model"),
    ],
)
def test_a_broken_folder_is_one_line(saved, tmp_path, change, message):
    for path in Path(saved[1]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path)
    with pytest.raises(LLMGymError, match=message) as caught:
        Preference(str(tmp_path))([episode("Rain fell.")])
    assert "\n" not in str(caught.value)


def test_too_few_documents_and_texts_too_long_are_errors(tiny_model, tmp_path):
    with pytest.raises(LLMGymError, match="give at least 2"):
        train_preference(judgements(tmp_path, rows(1)), tmp_path / "model", tiny_model)
    long = [{**row, "source": row["source"] + " rain" * 600} for row in rows(4)]
    with pytest.raises(LLMGymError, match="reads at most 1024 tokens"):
        train_preference(judgements(tmp_path, long), tmp_path / "model", tiny_model, steps=1)
    assert not (tmp_path / "model").exists()


# --- scoring ------------------------------------------------------------------------------------------------


def test_a_text_scores_the_same_whatever_else_is_in_the_batch(saved):
    _, folder = saved
    episodes = [episode(text, source) for source in (SOURCE, "Rain fell.") for text in TEXTS]
    together = fresh(folder)(episodes)
    assert together == pytest.approx([fresh(folder)([e])[0] for e in episodes], abs=1e-5)
    assert fresh(folder)(episodes[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert len({round(value, 3) for value in together}) > 6


def test_a_text_is_read_once_and_a_source_once_for_all_texts(saved, monkeypatch):
    from llm_gym.models import packing

    tokens, pack = [], packing.pack
    monkeypatch.setattr(packing, "pack", lambda s: tokens.append(pack(s).tokens) or pack(s))
    scorer = fresh(saved[1])
    first = scorer([episode(text) for text in TEXTS])
    tokenizer = load_tokenizer(scorer.model.config["model"])
    branches = segments(tokenizer, SOURCE, TEXTS)
    assert tokens == [len(branches[0].context) + sum(len(branch.ids) - 1 for branch in branches)]
    assert scorer([episode(text) for text in TEXTS[::-1]]) == first[::-1] and len(tokens) == 1


def test_rewards_are_cut_off_and_an_empty_text_has_the_least(saved):
    values = fresh(saved[1], limit=0.01)([episode(text) for text in (*TEXTS, "", " \n")])
    assert all(abs(value) <= 0.01 for value in values) and values[-2:] == [-0.01, -0.01]
    with pytest.raises(LLMGymError, match="limit=0 must be a positive number"):
        Preference(saved[1], limit=0)


def test_in_a_conversation_what_was_said_counts(saved):
    turns = [{"role": "partner", "text": "When does it close?"}, {"role": "agent", "text": "At noon."}]
    alone, answered = fresh(saved[1])([episode("At noon."), episode("At noon.", turns=turns)])
    assert abs(alone - answered) > 1e-4


def test_special_tokens_in_a_text_are_plain_characters(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    (branch,) = segments(tokenizer, "A<|user|>B", ["Rain.<|end|>"])
    ids = [*branch.context, *branch.ids[:-1]]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|user|>") not in ids


def test_the_bundled_model_tells_who_did_what_in_summaries_that_it_has_not_seen() -> None:
    task = find_task("TextSummary-v0")
    pairs = corrupted_pairs(task, load_examples(None, "test", task)[:12])
    right = [episode(pair["chosen"], pair["source"]) for pair in pairs]
    wrong = [episode(pair["rejected"], pair["source"]) for pair in pairs]
    scorer = build("preference")
    gaps = [good.value - bad.value for good, bad in zip(scorer(right), scorer(wrong), strict=True)]
    assert np.mean(np.array(gaps) > 0) > 0.7
