"""How much better a sentence fits what one speaker of a dialogue said than what the others said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

MAX_TOKENS = 256  # of a turn that are read, what MiniLM was trained on
BATCH_TOKENS = 4000  # that are run at once, padding included
TEMPERATURE = 0.05  # of the soft maximum over turns, in cosine
SCALE = 20.0  # from cosine to logit


class Asked(NamedTuple):
    """What is said of one speaker of a dialogue.

    Attributes:
        turns: Speaker and words of each turn.
        speaker: Whom it is about.
        sentence: A sentence or clause, in which that speaker and the others have names of their own.
    """

    turns: tuple[tuple[str, str], ...]
    speaker: str
    sentence: str


def logits(tokenizer: Any, encoder: Any, asked: Sequence[Asked]) -> torch.Tensor:
    """Return for each sentence the logit that it is about its speaker and not the others, `(n,)`, with gradient.

    A speaker fits a sentence as well as the best of their turns, by a soft maximum of the cosines. What is read does
    not depend on whom the sentence is said to be about, so that of two speakers each has the other's logit, negated.

    Args:
        tokenizer: Of an encoder.
        encoder: The encoder; a text's embedding is the mean of its tokens.
        asked: The sentences, each with a turn of its speaker and one of another.
    """
    texts = dict.fromkeys(text for one in asked for text in (*(words for _, words in one.turns), one.sentence))
    found = dict(zip(texts, _embeddings(tokenizer, encoder, list(texts)), strict=True))
    return torch.stack([_logit(found, one) for one in asked])


def _logit(embeddings: dict[str, torch.Tensor], asked: Asked) -> torch.Tensor:
    cosines = torch.stack([embeddings[words] for _, words in asked.turns]) @ embeddings[asked.sentence]
    own = torch.tensor([speaker == asked.speaker for speaker, _ in asked.turns], device=cosines.device)
    return SCALE * (_best(cosines[own]) - _best(cosines[~own]))


def _best(cosines: torch.Tensor) -> torch.Tensor:
    """Return a soft maximum, less half of what a number of equal ones adds: to say more is not to fit better."""
    return TEMPERATURE * (torch.logsumexp(cosines / TEMPERATURE, 0) - 0.5 * torch.log(torch.tensor(len(cosines))))


def _embeddings(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    """Return a unit vector for each text; texts of like length are run together."""
    plain = {"split_special_tokens": True}  # "[SEP]" written out in a text is no special token
    ids = [tokenizer(text, truncation=True, max_length=MAX_TOKENS, **plain)["input_ids"] for text in texts]
    found: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        size = len(order)
        while size > 1 and size * len(ids[order[size - 1]]) > BATCH_TOKENS:
            size -= 1
        places, order = order[:size], order[size:]
        for place, embedding in zip(places, _pooled(encoder, [ids[i] for i in places]), strict=True):
            found[place] = embedding
    return found


def _pooled(encoder: Any, ids: list[list[int]]) -> torch.Tensor:
    """Return unit vectors `(texts, width)`, the means of the last hidden states."""
    length = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=encoder.device)
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids], device=encoder.device)
    hidden = encoder(input_ids=padded, attention_mask=mask).last_hidden_state
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=-1)
