"""Sentence embeddings: the mean of an encoder's last hidden states, as unit vectors, with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MAX_TOKENS = 256  # what MiniLM was trained on; the rest of a longer text is not read


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text; special tokens written out in it, such as "[SEP]", are plain characters."""
    return tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS, split_special_tokens=True)["input_ids"]


def embeddings(encoder: Any, ids: Sequence[list[int]], pad: int | None) -> torch.Tensor:
    """Return float32 `(len(ids), width)`, run at once.

    Args:
        encoder: See `llm_gym.models.load.shared_encoder`.
        ids: At least one text's, as `token_ids` returns them.
        pad: The tokenizer's `pad_token_id`.
    """
    length = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=encoder.device)
    padded = torch.tensor([row + [pad or 0] * (length - len(row)) for row in ids], device=encoder.device)
    hidden = encoder(input_ids=padded, attention_mask=mask).last_hidden_state.float()
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=-1)
