"""Comparing agents by what they wrote about the same held-out documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from agents.evaluate import Evaluation
from agents.policy import LLMPolicy
from llm_gym.episode import Episode
from llm_gym.feedback.rules import words
from llm_gym.feedback.vocabulary import Distinct
from llm_gym.models.packing import Segment, pack, passes
from llm_gym.statistics import Estimate, win_rate, wins

TOKENS = 2048  # run at once


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluations of several runs on the same documents as one, with as many more texts for each."""
    return Evaluation(
        [episode for evaluation in evaluations for episode in evaluation.episodes],
        [score for evaluation in evaluations for score in evaluation.judged],
        sum(evaluation.texts for evaluation in evaluations),
    )


def win_rates(mine: Evaluation, theirs: Evaluation) -> tuple[Estimate, Estimate]:
    """Return how often my texts beat theirs about the same document by the second judge, plain and at equal length.

    Documents that were not judged are left out; the values are None where none was.
    """
    values = [_grid(e, _judgements(e)) for e in (mine, theirs)]
    judged = np.isfinite(np.concatenate(values, 1)).all(1)
    if not judged.any():
        return Estimate(None, None, None), Estimate(None, None, None)
    won = wins(*(grid[judged] for grid in values))
    lengths = [_grid(e, _sizes(e))[judged] for e in (mine, theirs)]
    longer = lengths[0][:, :, None] - lengths[1][:, None, :]
    return win_rate(won), win_rate(won, longer.reshape(won.shape))


def measures(evaluation: Evaluation) -> dict[str, float | None]:
    """Return the means over documents of `Evaluation.columns`, and `distinct_2`; None where nothing was measured.

    `distinct_2` is that of all first texts together: a policy that says the same of every document is found out.
    """
    means = {name: values[np.isfinite(values)] for name, values in evaluation.columns().items()}
    found: dict[str, float | None] = {name: float(v.mean()) if len(v) else None for name, v in means.items()}
    together = Episode({"id": "all"}, source="", text=" ".join(e.text for e in evaluation.firsts))
    return {**found, "distinct_2": float(Distinct(2)([together])[0])}


@torch.no_grad()
def divergences(episodes: Sequence[Episode], reference: LLMPolicy) -> list[float]:
    """Return log p(the policy that wrote it) - log p(reference) of each text, in nats.

    Args:
        episodes: With the log-probabilities of who wrote them.
        reference: Such as the untrained policy, at the same temperature.
    """
    order = sorted(range(len(episodes)), key=lambda i: episodes[i].prompt_ids.tobytes())  # a prompt is read once
    segments = [Segment(e.prompt_ids, e.response_ids, e.agent_mask) for e in (episodes[i] for i in order)]
    found = [math.nan] * len(episodes)
    for run in passes(segments, TOKENS):
        packed = pack([segments[i] for i in run]).to(reference.device)
        _, log_probs, _ = reference.evaluate_actions(packed, packed.targets)
        sizes = [int(segments[i].trained.sum()) for i in run]
        for i, known in zip(run, log_probs.split(sizes), strict=True):
            episode = episodes[order[i]]
            mine = episode.log_probs[episode.agent_mask]  # type: ignore[index]
            found[order[i]] = float(mine.sum()) - float(known.sum())
    return found


def bound(n: int) -> float:
    """Return the most nats that the best of `n` texts can be from the policy that wrote them.

    >>> round(bound(4), 2)
    0.64
    """
    return math.log(n) - (n - 1) / n


def _judgements(evaluation: Evaluation) -> list[float]:
    return [math.nan if score is None else score.value for score in evaluation.judged]


def _sizes(evaluation: Evaluation) -> list[float]:
    return [float(len(words(e.text))) for e in evaluation.episodes]


def _grid(evaluation: Evaluation, values: Sequence[float]) -> np.ndarray:
    """Return values `(documents, texts)`."""
    return np.reshape(values, (evaluation.texts, -1)).T
