"""How much better a sentence fits what one speaker of a dialogue said than what the others said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from llm_gym.models.embedding import embeddings, token_ids

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


def _logit(known: dict[str, torch.Tensor], asked: Asked) -> torch.Tensor:
    cosines = torch.stack([known[words] for _, words in asked.turns]) @ known[asked.sentence]
    own = torch.tensor([speaker == asked.speaker for speaker, _ in asked.turns], device=cosines.device)
    return SCALE * (_best(cosines[own]) - _best(cosines[~own]))


def _best(cosines: torch.Tensor) -> torch.Tensor:
    """Return a soft maximum, less half of what a number of equal ones adds: to say more is not to fit better."""
    return TEMPERATURE * (torch.logsumexp(cosines / TEMPERATURE, 0) - 0.5 * torch.log(torch.tensor(len(cosines))))


def _embeddings(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    """Return a unit vector for each text; texts of like length are run together."""
    ids = token_ids(tokenizer, texts)
    found: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        size = len(order)
        while size > 1 and size * len(ids[order[size - 1]]) > BATCH_TOKENS:
            size -= 1
        places, order = order[:size], order[size:]
        run = embeddings(encoder, [ids[i] for i in places], tokenizer.pad_token_id)
        for place, embedding in zip(places, run, strict=True):
            found[place] = embedding
    return found
