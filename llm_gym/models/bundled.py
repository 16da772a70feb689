"""The project's own small tokenizer, `sp-1k`, and a random model over it, `tiny-1k`: no download for either.

The tokenizer is trained on the first rows of three bundled corpora by

    python -m llm_gym.models.bundled

which writes the folder `sp-1k` beside this file, the same bytes each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm_gym.errors import LLMGymError
from llm_gym.models.fetch import cache_dir, quiet_transformers

SP_1K = Path(__file__).parent / "sp-1k"
BUNDLED = {"sp-1k": "tokenizer", "tiny-1k": "causal"}
"""Name to kind."""

PIECES = 1000
CORPORA = {"dialogue": 64, "text_generation": 160, "text_summary": 182}
"""Corpora and how many of their first rows the tokenizer is trained on. What was written later is left out: it would
change every id."""
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "chat_template": "<s>{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
}
TINY_1K: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""The config of `tiny-1k`, a Llama of five million parameters."""


def place(name: str) -> Path:
    """Return the folder of a bundled name; `tiny-1k` is made in the cache when it is first asked for."""
    return SP_1K if name == "sp-1k" else _tiny()


def _tiny() -> Path:
    """Make the model aside and move it into place, so that two processes at once are no harm."""
    files = b"".join(file.read_bytes() for file in sorted(SP_1K.iterdir()) if file.is_file())
    made_of = json.dumps(TINY_1K, sort_keys=True).encode() + files
    folder = cache_dir() / "models" / f"tiny-1k-{hashlib.sha256(made_of).hexdigest()[:12]}"
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tiny-1k-", dir=folder.parent) as aside:
            _write_tiny(ready := Path(aside) / "ready")
            os.replace(ready, folder)
    except OSError as error:
        if not folder.exists():  # else another process was first
            raise LLMGymError(
                f"tiny-1k cannot be stored in the cache {cache_dir()} ({error}); set LLM_GYM_CACHE to a folder that "
                "can be written"
            ) from error
    return folder


def _write_tiny(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=PIECES, bos_token_id=1, eos_token_id=2, **TINY_1K)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in SP_1K.iterdir():
        shutil.copyfile(file, folder / file.name)
    mode = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)  # written with 0600, where users may share a cache


def train_tokenizer(folder: Path) -> None:
    """Train `sp-1k` on the rows of `CORPORA`, and write its two files into `folder`."""
    import sentencepiece

    model = io.BytesIO()  # not a file, whose path would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,  # any text can be written
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def _sentences() -> Iterator[str]:
    corpora = files("llm_gym.data").joinpath("corpora")
    for corpus, rows in CORPORA.items():
        for line in corpora.joinpath(f"{corpus}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]:
            yield from _texts(json.loads(line))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (line for line in value.splitlines() if " " in line)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


if __name__ == "__main__":
    train_tokenizer(SP_1K)
    print(f"{SP_1K}: {PIECES} pieces")
