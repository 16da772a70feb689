"""Pairs of texts of which one is better: what a judge says of a policy's texts, for a preference model to learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llm_gym.data.files import read_rows
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import PairwiseScorer
from llm_gym.feedback.compose import Composite

BATCH = 64  # texts scored, or pairs compared, in one call

Pair = tuple[Episode, Episode]


@dataclass
class Labelled:
    """What a scorer said of pairs.

    Attributes:
        rows: A row a pair: `id`, `source`, `chosen`, `rejected`, and by how much the chosen one is better, `margin`.
        ties: How many pairs it did not tell apart.
        abstained: How many it abstained from.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    ties: int = 0
    abstained: int = 0


def about(episode: Episode) -> str:
    """Return what a text is about: its source, and in a conversation what the partner said last."""
    return f"{episode.source}\n\n{episode.said}" if episode.said else episode.source


def read_texts(paths: Sequence[str | Path]) -> list[Episode]:
    """Read texts, a row each: episodes as `Episode.to_json` writes them, or at least their `source` and `text`.

    Raises:
        LLMGymError: A file or a row is not what it must be.
    """
    return [_episode(f"{path}:{number}", number, row) for path in paths for number, row in read_rows(path)]


def _episode(where: str, number: int, row: dict[str, Any]) -> Episode:
    for name in ("source", "text"):
        if not isinstance(row.get(name), str):
            raise LLMGymError(f"{where}: column {name!r} must be a string, not {json.dumps(row.get(name))[:40]}")
    try:
        return Episode.from_record({"example": {"id": f"row-{number}"}, **row})
    except (TypeError, ValueError) as error:
        raise LLMGymError(f"{where} is no episode ({error}); give source and text, or what `sample` wrote") from error


def label(feedback: Composite, episodes: Sequence[Episode]) -> Labelled:
    """Compare every two different texts about the same source.

    A lone `PairwiseScorer` is shown both texts in both orders, and the margin is the mean; any other feedback scores
    each text, and the margin is the difference. The weight of a scorer counts.
    """
    pairs = _pairs(episodes)
    found = Labelled()
    for (one, other), margin in zip(pairs, _margins(feedback, pairs), strict=True):
        if np.isnan(margin):
            found.abstained += 1
        elif margin == 0:
            found.ties += 1
        else:
            better, worse = (one, other) if margin > 0 else (other, one)
            found.rows.append(
                {
                    "id": one.example["id"],
                    "source": about(one),
                    "chosen": better.text,
                    "rejected": worse.text,
                    "margin": round(abs(margin), 6),
                }
            )
    return found


def _pairs(episodes: Sequence[Episode]) -> list[Pair]:
    """Return every two different texts about the same source, in order."""
    documents: dict[str, dict[str, Episode]] = {}
    for episode in episodes:
        documents.setdefault(about(episode), {}).setdefault(episode.text, episode)
    return [pair for texts in documents.values() for pair in combinations(texts.values(), 2)]


def _margins(feedback: Composite, pairs: list[Pair]) -> list[float]:
    """Return how much better the first text of each pair is; NaN where the feedback abstains."""
    (name, scorer), *more = feedback.scorers.items()
    if isinstance(scorer, PairwiseScorer) and not more:
        return [feedback.weights[name] * margin for margin in _compared(scorer, pairs)]
    texts = list({id(episode): episode for pair in pairs for episode in pair}.values())
    batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    values = {id(e): s.value for batch in batches for e, s in zip(batch, feedback(batch), strict=True)}
    return [values[id(one)] - values[id(other)] for one, other in pairs]


def _compared(scorer: PairwiseScorer, pairs: list[Pair]) -> list[float]:
    margins: list[float] = []
    for start in range(0, len(pairs), BATCH):
        firsts, seconds = zip(*pairs[start : start + BATCH], strict=True)
        shown, swapped = scorer.compare(firsts, seconds), scorer.compare(seconds, firsts)
        margins += [(a - b) / 2 for a, b in zip(shown, swapped, strict=True)]
    return margins
