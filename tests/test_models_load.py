"""Loading by name: local folders, GGUF files, sentencepiece tokenizers, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from llm_gym.errors import LLMGymError
from llm_gym.models import fetch as fetching
from llm_gym.models.fetch import fetch
from llm_gym.models.load import (
    fingerprint,
    hub_id,
    load_causal_lm,
    load_tokenizer,
    pick_device,
    resolve,
    shared_causal_lm,
    shared_encoder,
    stop_ids,
)

ASCII = "The small house over the river."
ACCENTED = "Le café à Zürich, déjà vu, naïve señor."
WORDS = (
    "the a small river house winter café naïve señor garçon Zürich over under train letter morning people write "
    "council water price école déjà vu voilà bring carry quick brown fox market garden"
).split()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine from which nothing can be reached: every name fails to resolve at once."""

    def refuse(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


def told(call: Any, *arguments: Any) -> str:
    """The one-line message of the error that `call` raises."""
    with pytest.raises(LLMGymError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def copy(tiny_model: str, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


# ------------------------------------------------------------------ names


def test_a_folder_resolves_to_itself_and_a_hub_id_is_left_alone(tiny_model: str, no_network: None) -> None:
    assert resolve(tiny_model) == tiny_model
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "missing.gguf", "", "~/no/such/folder"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(name: str) -> None:
    message = told(resolve, name)
    assert repr(name) in message and "does not exist" in message and "smollm2-135m" in message


def test_a_slip_for_a_catalogue_name_is_met_with_a_suggestion() -> None:
    assert "did you mean 'smollm2-135m'?" in told(resolve, "smollm2")
    assert "did you mean 'minilm-l6'?" in told(load_tokenizer, "MiniLM-L6")


def test_the_hub_id_of_a_catalogue_name_and_of_a_fetched_folder_never_names_a_path(tmp_path: Path) -> None:
    assert hub_id("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (tmp_path / "llm_gym.json").write_text('{"hub_id": "owner/model"}')
    assert hub_id(str(tmp_path)) == "owner/model"
    assert hub_id("owner/other") == "owner/other"


def test_an_unreachable_hub_is_one_line_that_comes_quickly(offline: None) -> None:
    for load in (load_tokenizer, load_causal_lm, shared_encoder):
        start = time.monotonic()
        message = told(load, "no-such-owner/no-such-model")
        assert "no-such-owner/no-such-model" in message and "cannot be reached" in message
        assert "smollm2-135m" in message and "local folder" in message
        assert time.monotonic() - start < 10
    assert "'smollm2-135m', its quantised copy" in told(load_causal_lm, hub_id("smollm2-135m"))


HUB_WITHOUT_THE_MODEL = """
import http.server, os, threading
class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_HEAD
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_OFFLINE="0", NO_PROXY="127.0.0.1")
from llm_gym.errors import LLMGymError
from llm_gym.models.load import load_causal_lm
try:
    load_causal_lm("owner/missing")
except LLMGymError as exc:
    print(exc)
"""


def test_a_hub_that_does_not_have_the_model_is_one_line(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", HUB_WITHOUT_THE_MODEL],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.count("\n") == 1 and child.stdout.startswith("model 'owner/missing' could not be loaded")
    assert "check the id" in child.stdout and "local folder" in child.stdout and child.stderr == ""


def test_devices_are_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert "unknown device 'gpu'" in told(pick_device, "gpu")
    assert "is not there" in told(pick_device, f"cuda:{torch.cuda.device_count()}")


# ------------------------------------------------------------------ models


def test_a_folder_loads_without_network_quietly_and_ready_to_use(
    tiny_model: str, no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    model = load_causal_lm(tiny_model, "cpu")
    tokenizer = load_tokenizer(tiny_model)
    logits = model(torch.tensor([tokenizer(ASCII)["input_ids"]])).logits
    assert logits.shape[-1] >= len(tokenizer) and torch.isfinite(logits).all()
    assert model.dtype == torch.float32 and not model.training and model.config._attn_implementation == "sdpa"
    assert capfd.readouterr().err == ""
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == (bars, level)


def test_each_causal_model_is_fresh_and_shared_ones_are_frozen_and_one(tiny_model: str) -> None:
    assert load_causal_lm(tiny_model, "cpu") is not load_causal_lm(tiny_model, "cpu")
    assert all(parameter.requires_grad for parameter in load_causal_lm(tiny_model, "cpu").parameters())
    shared = shared_causal_lm(tiny_model, "cpu")
    assert shared is shared_causal_lm(tiny_model, torch.device("cpu"))
    assert not shared.training and not any(parameter.requires_grad for parameter in shared.parameters())
    assert load_tokenizer(tiny_model) is load_tokenizer(tiny_model)


def test_a_dtype_can_be_chosen_by_name(tiny_model: str) -> None:
    assert load_causal_lm(tiny_model, "cpu", "bfloat16").dtype == torch.bfloat16
    assert shared_causal_lm(tiny_model, "cpu", torch.float16).dtype == torch.float16
    assert "unknown dtype 'int64'" in told(load_causal_lm, tiny_model, "cpu", "int64")


def test_a_folder_that_was_saved_anew_is_read_anew(copy: Path) -> None:
    old_model, old_tokenizer = shared_causal_lm(str(copy), "cpu"), load_tokenizer(str(copy))
    changed = load_causal_lm(str(copy), "cpu")
    torch.nn.init.zeros_(changed.lm_head.weight)
    changed.save_pretrained(copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(copy)
    assert shared_causal_lm(str(copy), "cpu") is not old_model
    assert shared_causal_lm(str(copy), "cpu").lm_head.weight.abs().sum() == 0
    assert len(load_tokenizer(str(copy))) == len(old_tokenizer) + 1


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "encoder-decoder" in told(load_causal_lm, str(tmp_path))
    assert "encoder-decoder" in told(shared_encoder, str(tmp_path))


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> str:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return str(tmp_path)


def test_an_encoder_loads_frozen_and_needs_no_pooler(tiny_encoder: str) -> None:
    encoder = shared_encoder(tiny_encoder, "cpu")
    assert encoder(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 16)
    assert encoder is shared_encoder(tiny_encoder, "cpu") and not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_model_with_missing_weights_is_refused_rather_than_filled_with_random_ones(tiny_encoder: str) -> None:
    assert "has no weights for" in told(load_causal_lm, tiny_encoder, "cpu")
    assert "embedding model, not a language model" in told(load_causal_lm, "minilm-l6")


def test_pickled_weights_are_never_read(copy: Path) -> None:
    torch.save({}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert "pytorch_model.bin, a pickle" in told(load_causal_lm, str(copy))


def test_code_that_comes_with_a_model_is_never_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_json(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "evil.Config"})
    message = told(load_causal_lm, str(copy))
    assert "code of its own" in message and not (tmp_path / "ran").exists()


def test_spoiled_folders_say_what_is_wrong(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not tensors")
    assert str(copy) in told(load_causal_lm, str(copy))
    (copy / "config.json").write_text("{")
    assert str(copy) in told(load_causal_lm, str(copy))
    (copy / "config.json").unlink()
    assert "no config.json" in told(load_causal_lm, str(copy))
    (copy / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in told(load_causal_lm, str(copy))
    (tmp_path / "empty").mkdir()
    assert "could not be loaded" in told(load_tokenizer, str(tmp_path / "empty"))


# ------------------------------------------------------------------ stop ids and fingerprints


def test_stop_ids_join_the_tokenizer_the_config_and_the_generation_config(copy: Path) -> None:
    tokenizer = load_tokenizer(str(copy))
    own = tokenizer.eos_token_id
    assert stop_ids(str(copy), tokenizer) == (own,)
    edit_json(copy / "config.json", eos_token_id=[own, 2], text_config={"eos_token_id": 9})
    GenerationConfig(eos_token_id=[3, 10_000]).save_pretrained(copy)
    assert stop_ids(str(copy), tokenizer) == tuple(sorted({own, 2, 3, 9}))
    (copy / "generation_config.json").unlink()
    assert stop_ids(str(copy), tokenizer) == tuple(sorted({own, 2, 9}))


def test_a_fingerprint_is_the_same_for_two_loads_and_after_saving_elsewhere(tiny_model: str, tmp_path: Path) -> None:
    first, second = AutoTokenizer.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    first.save_pretrained(tmp_path)
    assert len({fingerprint(first), fingerprint(second), fingerprint(load_tokenizer(str(tmp_path)))}) == 1


def test_a_fingerprint_is_not_moved_by_calls_or_by_the_pad_token(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = fingerprint(tokenizer)
    tokenizer([ASCII, "a"], truncation=True, max_length=5, padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    assert fingerprint(tokenizer) == before


def test_a_fingerprint_differs_when_one_token_one_merge_or_the_end_differs(copy: Path) -> None:
    def reloaded() -> str:
        return fingerprint(AutoTokenizer.from_pretrained(copy))

    seen = {reloaded()}
    path = copy / "tokenizer.json"
    original = json.loads(path.read_text())
    renamed = json.loads(path.read_text())
    last = max(renamed["model"]["vocab"], key=renamed["model"]["vocab"].get)
    renamed["model"]["vocab"][last + "x"] = renamed["model"]["vocab"].pop(last)
    renamed["model"]["merges"] = [m for m in renamed["model"]["merges"] if "".join(m) != last]
    swapped = json.loads(path.read_text())
    swapped["model"]["merges"][:2] = swapped["model"]["merges"][1::-1]
    for changed in (renamed, swapped):
        path.write_text(json.dumps(changed))
        seen.add(reloaded())
    path.write_text(json.dumps(original))
    edit_json(copy / "tokenizer_config.json", eos_token="<|user|>")
    seen.add(reloaded())
    assert len(seen) == 4


# ------------------------------------------------------------------ the sentencepiece family

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "tokenizer.model",
        {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True},
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "gemma": (
        "tokenizer.model",
        {
            "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "add_dummy_prefix": False,
            "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "pad_id": 0, "eos_id": 1,
            "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>",
            "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>"],
        },
        {
            "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
    ),
    "t5": (
        "spiece.model",
        {"model_type": "unigram", "vocab_size": 110, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        {
            "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
            "extra_ids": 10,
        },
    ),
}  # fmt: skip


def train_sentencepiece(family: str, folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a small model and lay its folder out as such models are distributed: no tokenizer.json."""
    file, options, config = FAMILIES[family]
    pick = random.Random(0)
    lines = [" ".join(pick.choice(WORDS) for _ in range(9)).capitalize() + "." for _ in range(300)]
    (folder / "corpus.txt").write_text("\n".join([*lines, ASCII, ACCENTED]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "m"), minloglevel=2, num_threads=1,
        character_coverage=1.0, **options,
    )  # fmt: skip
    (folder / "m.model").rename(folder / file)
    (folder / "m.vocab").unlink()
    (folder / "corpus.txt").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / file))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentencepiece_tokenizer_agrees_with_its_model_and_round_trips(
    family: str, tmp_path: Path, no_network: None
) -> None:
    reference = train_sentencepiece(family, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer) >= reference.vocab_size()
    for text in (ASCII, ACCENTED):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == reference.eos_id()
    assert stop_ids(str(tmp_path), tokenizer) == (reference.eos_id(),)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentencepiece_tokenizer_keeps_its_fingerprint_when_saved_and_loaded(family: str, tmp_path: Path) -> None:
    train_sentencepiece(family, tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert fingerprint(again) == fingerprint(tokenizer) == fingerprint(AutoTokenizer.from_pretrained(tmp_path))
    assert again(ACCENTED)["input_ids"] == tokenizer(ACCENTED)["input_ids"]


def test_a_tokenizer_that_lost_its_vocabulary_is_refused(tmp_path: Path) -> None:
    train_sentencepiece("llama", tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "sentencepiece.bpe.model")  # a name Llama's class does not read
    message = told(load_tokenizer, str(tmp_path))
    assert "sentencepiece.bpe.model has 400" in message and "tokenizer_class" in message


# ------------------------------------------------------------------ GGUF


def write_gguf(folder: str, path: Path) -> None:
    """Save the tiny Llama as GGUF, as llama.cpp's converter does: float32, queries and keys permuted."""
    tokenizer, model = load_tokenizer(folder), LlamaForCausalLM.from_pretrained(folder)
    config: LlamaConfig = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config.vocab_size)]
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)  # it has none; transformers 5.17 cannot do without
    writer.add_eos_token_id(tokenizer.eos_token_id)
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        value = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            rows, columns = value.shape
            value = value.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        target = mapping.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def test_a_gguf_file_loads_as_the_model_it_was_made_from(
    tiny_model: str, tmp_path: Path, no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_model, path)
    capfd.readouterr()
    tokenizer, original = load_tokenizer(str(path)), load_tokenizer(tiny_model)
    ids = tokenizer(ASCII, add_special_tokens=False)["input_ids"]
    assert ids == original(ASCII, add_special_tokens=False)["input_ids"] and tokenizer.decode(ids) == ASCII
    model = load_causal_lm(str(path), "cpu")
    expected = load_causal_lm(tiny_model, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits, expected(torch.tensor([ids])).logits)
    assert original.eos_token_id in stop_ids(str(path), tokenizer)
    assert capfd.readouterr().err == ""
    model.save_pretrained(tmp_path / "saved")  # a model that still counts as quantised refuses this
    assert resolve(str(tmp_path / "saved")) == str(tmp_path / "saved")


def test_a_folder_with_one_gguf_file_stands_for_it_and_two_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)) == str(tmp_path / "a.gguf")
    assert str(tmp_path) in told(load_causal_lm, str(tmp_path))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    assert "2 GGUF files" in told(resolve, str(tmp_path))


# ------------------------------------------------------------------ the real models


def fetched(name: str) -> Path:
    try:
        return fetch(name)
    except LLMGymError as exc:
        if "could not be downloaded" in str(exc):
            pytest.skip(str(exc))
        raise


@pytest.mark.models
def test_smollm2_speaks_and_its_gguf_was_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetched("smollm2-135m")

    def again(*arguments: object) -> None:
        raise AssertionError("the GGUF file was read again")

    monkeypatch.setattr(fetching, "read_gguf", again)
    monkeypatch.setattr(fetching, "_download", again)
    monkeypatch.setattr(socket.socket, "connect", again)
    assert Path(resolve("smollm2-135m")) == folder
    assert not list(folder.rglob("*.gguf")) and list(folder.glob("*.safetensors"))
    for file in folder.glob("*.json"):
        assert str(folder.parent) not in file.read_text(encoding="utf-8")
    tokenizer, model = load_tokenizer("smollm2-135m"), shared_causal_lm("smollm2-135m", "cpu")
    assert len(tokenizer) == 49_152 and stop_ids("smollm2-135m", tokenizer) == (2,)
    assert fingerprint(tokenizer) == fingerprint(AutoTokenizer.from_pretrained(folder))
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])


@pytest.mark.models
def test_minilm_puts_similar_sentences_closer_than_dissimilar_ones() -> None:
    fetched("minilm-l6")
    tokenizer, encoder = load_tokenizer("minilm-l6"), shared_encoder("minilm-l6", "cpu")
    texts = ["The cat sat on the mat.", "A kitten was sitting on a rug.", "Share prices fell sharply on Monday."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    similarity = pooled @ pooled.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
