"""Scoring: one source read for all its candidates, and scores that are remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.feedback import build
from llm_gym.feedback.likelihood import PROMPT, filled, language_model
from llm_gym.models.load import load_tokenizer, shared_causal_lm
from llm_gym.models.packing import Packed, Segment, logits, pack
from llm_gym.registration import find_task
from speed_rows.common import MODEL, against, seconds


def candidates(repeat: int) -> dict[str, Any]:
    """16 candidates of one source under the default's likelihood and grounding: one call against 16 calls."""
    task = find_task("TextSummary-v0")
    rows = load_examples(None, "train", task)[:16]
    texts = [str(task.reference(row)) for row in rows]  # of about the length that a policy writes
    episodes = [Episode(rows[0], source=task.source(rows[0]), text=text) for text in texts]
    spec = {name: task.feedback[name] for name in ("likelihood", "grounding")}

    def forgotten() -> Any:
        language_model(MODEL)._known.clear()
        return build(spec)

    def together() -> None:
        forgotten()(episodes)

    def apart() -> None:
        for episode in episodes:
            forgotten()([episode])

    feedback = build(spec)
    feedback(episodes)
    again = seconds(lambda: feedback(episodes), repeat)
    return against(
        "likelihood and grounding of 16 texts about one source: seconds in one call against 16 calls",
        seconds(together, repeat),
        seconds(apart, repeat),
        **{"milliseconds when remembered": round(1e3 * float(np.median(again)), 2)},
    )


def many(repeat: int) -> dict[str, Any]:
    """512 finished summaries, 8 about each of 64 documents: the likelihood scorer against its forward passes alone."""
    task = find_task("TextSummary-v0")
    rows = load_examples(None, "train", task)[:64]
    texts = [str(task.reference(row)) for row in rows]
    written = [[texts[(i + shift) % 64] for shift in range(8)] for i in range(64)]
    episodes = [
        Episode(row, source=task.source(row), text=text)
        for row, some in zip(rows, written, strict=True)
        for text in some
    ]
    packs = [_packed(task.source(row), some) for row, some in zip(rows, written, strict=True)]
    model = shared_causal_lm(MODEL, dtype="float32")

    def scored() -> None:
        language_model(MODEL)._known.clear()
        build("likelihood")(episodes)

    @torch.no_grad()
    def bare() -> None:
        for packed in packs:
            logits(model, packed)

    ours, theirs = seconds(scored, repeat), seconds(bare, repeat)
    feedback = build("likelihood")
    feedback(episodes)
    again = seconds(lambda: feedback(episodes), repeat)
    return against(
        "likelihood of 512 summaries of 64 documents: seconds of the bare forward passes against those of the scorer",
        theirs,
        ours,
        **{"milliseconds when remembered": round(1e3 * float(np.median(again)), 2)},
    )


def _packed(source: str, texts: list[str]) -> Packed:
    """Return what the scorer reads of a document and its texts."""
    tokenizer = load_tokenizer(MODEL)

    def encode(text: str) -> np.ndarray:
        return np.asarray(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], int)

    context = encode(filled(PROMPT, source, ""))
    branches = [encode(f" {text}") for text in texts]
    return pack([Segment(context, ids, np.ones(len(ids), bool)) for ids in branches])
