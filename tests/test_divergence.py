"""Divergence of two language models along a text, against two plain forward passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.divergence import Divergence
from llm_gym.feedback.likelihood import PROMPT
from llm_gym.models.load import load_tokenizer, quiet_peft

SOURCE = "Rain fell all night and the lower road was closed until noon."
TEXTS = ["Rain closed the road.", "It rained.", "The council met on Tuesday.", "Rain <|end|>"]


@pytest.fixture(scope="module")
def other(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)


def episode(text: str, source: str = SOURCE) -> Episode:
    return Episode({"id": "a"}, source=source, text=text)


def naive(one: torch.nn.Module, other: torch.nn.Module, name: str, text: str, prompt: str = PROMPT) -> float:
    tokenizer = load_tokenizer(name)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    head, tail = (tokenizer(t, **plain)["input_ids"] for t in (prompt.replace("{source}", SOURCE), f" {text}"))
    with torch.no_grad():
        p, q = (
            model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1, : len(tokenizer)].log_softmax(-1)
            for model in (one, other)
        )
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_value_is_the_mean_divergence_at_the_texts_tokens(tiny_model, other):
    models = [AutoModelForCausalLM.from_pretrained(name).eval() for name in (tiny_model, other)]
    expected = [naive(*models, tiny_model, text) for text in TEXTS]
    values = Divergence(tiny_model, other)([episode(text) for text in TEXTS])
    assert values == pytest.approx(expected, abs=1e-4) and min(values) > 0.01
    turned = Divergence(other, tiny_model)([episode(TEXTS[0])])
    assert turned == pytest.approx([naive(*models[::-1], tiny_model, TEXTS[0])], abs=1e-4)
    asked = Divergence(tiny_model, other, prompt="{source} So:")([episode(TEXTS[0])])
    assert asked == pytest.approx([naive(*models, tiny_model, TEXTS[0], "{source} So:")], abs=1e-4)


def test_models_that_agree_and_a_text_without_words_have_none(tiny_model, other, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "same")
    assert Divergence(tiny_model, str(tmp_path / "same"))([episode(TEXTS[0])]) == [pytest.approx(0, abs=1e-6)]
    assert Divergence(tiny_model, other)([episode(""), episode(" \n")]) == [0.0, 0.0]


def test_a_text_scores_the_same_whatever_else_is_in_the_batch(tiny_model, other):
    episodes = [episode(text, source) for source in (SOURCE, "Snow.") for text in (*TEXTS, "")]
    together = Divergence(tiny_model, other)(episodes)
    assert together == pytest.approx([Divergence(tiny_model, other)([e])[0] for e in episodes], abs=1e-5)
    assert Divergence(tiny_model, other)(episodes[::-1])[::-1] == pytest.approx(together, abs=1e-5)


def test_a_runs_adapter_is_the_policy_and_its_base_the_other(tiny_model, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with quiet_peft():
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            p.add_(0.3 if "lora_B" in name else 0.0)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=False)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with quiet_peft():
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path)).eval()
    values = Divergence(tiny_model, tiny_model, adapter=str(tmp_path))([episode(text) for text in TEXTS])
    assert values == pytest.approx([naive(policy, plain, tiny_model, text) for text in TEXTS], abs=1e-4)
    assert np.min(values) > 1e-3


def test_mistakes_are_told(tiny_model):
    with pytest.raises(LLMGymError, match="never differs from itself"):
        Divergence(tiny_model, tiny_model)
    with pytest.raises(LLMGymError, match="number tokens differently"):
        Divergence(tiny_model, "tiny-1k")([episode("Rain.")])
    with pytest.raises(LLMGymError, match="prompt must say something"):
        Divergence(tiny_model, "tiny-1k", prompt=" ")
    with pytest.raises(LLMGymError, match="holds no adapter_config.json"):
        Divergence(tiny_model, tiny_model, adapter="nowhere")([episode("Rain.")])
