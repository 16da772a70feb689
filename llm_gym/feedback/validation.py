"""Is a scorer to be trusted? Its agreement with people, against simple baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from llm_gym import statistics
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import PairwiseScorer
from llm_gym.feedback.compose import Composite, build
from llm_gym.feedback.human import Judgements
from llm_gym.feedback.rules import copied_share, words
from llm_gym.statistics import Statistic, by_document, difference, ratio, spearman

BASELINES = {"longer wins": "length", "source bigrams": "bigram_precision", "ROUGE-1": "rouge"}
BATCH = 64  # texts scored in one call
BINS = 10  # of the calibration error
SHARE = (0.0, 1.0)
HEADLINE = ("spearman", "pearson", "accuracy_balanced")


def validate(feedback: Composite, data: Judgements, seed: int = 0) -> dict[str, Any]:
    """Return what a scorer's agreement with people is, as JSON types.

    Every figure is `{"value", "low", "high"}`: the figure and its 95 % bootstrap interval, resampling documents; None
    where it is undefined. By dimension of the human judgement, and as the mean over dimensions:

    - `spearman`: mean over documents of the rank correlation with the ratings of the document's texts. A document whose
      texts people rated alike is left out; one whose texts the scorer values alike counts 0.
    - `pearson`: correlation with the ratings over all texts.
    - `accuracy`: share of comparisons (two texts of a document that people judged differently) in which the scorer
      values the better one higher; an equal value is half a hit. `accuracy_shorter` and `accuracy_longer` are those
      where the better text has fewer or more words; `accuracy_balanced` is their mean, .5 for any rule on length.
    - `calibration`: the expected calibration error, see `calibration_error`.

    Texts that the scorer abstains from are left out, here and of the baselines; `abstained` says how many they are.

    Over all: `length` and `copying`, the association of the score with the number of words and the copied share
    (`people_length`, `people_copying`: the same of the human judgement), see `association`; `swap_consistency`, for
    pairwise scorers; `lift`, by baseline: how far the mean of each of the first measures lies above the baseline's,
    paired by document. A baseline that needs a reference is left out where there is none.

    Args:
        feedback: The scorer.
        data: What people judged.
        seed: Of the bootstrap.

    Raises:
        LLMGymError: The scorer abstains from every text.
    """
    facts = {"kind": data.kind, "documents": int(data.documents.max()) + 1, "texts": len(data.episodes)}
    scores, consistency = _judge(feedback, data)
    told = ~np.isnan(scores)
    if not told.any():
        raise LLMGymError("the scorer abstained from every text, so that nothing can be said of it; see why it does")
    data, scores = data.of(told), scores[told]
    facts["abstained"] = int(np.sum(~told))
    agreement = measure(scores, data)
    lifts = {}
    for title, name in BASELINES.items():
        baseline = build(name)
        if baseline.reads_reference and not all(e.reference for e in data.episodes):
            continue
        other = measure(_scores(baseline, data), data)["mean"]
        lifts[title] = {key: difference(agreement["mean"][key], other[key]) for key in HEADLINE if key in other}
    lengths = np.array([len(words(e.text)) for e in data.episodes], float)
    copied = np.array([copied_share(e.text, e.source) for e in data.episodes])
    report = {
        "dimensions": agreement,
        "swap_consistency": consistency,
        "length": association(scores, lengths, data.documents),
        "copying": association(scores, copied, data.documents),
        "people_length": _people(data, lengths),
        "people_copying": _people(data, copied),
        "lift": lifts,
    }
    return {**facts, "ties": data.ties, **_estimated(report, seed)}


# -------------------------------------------------------------------- scores


def _judge(feedback: Composite, data: Judgements) -> tuple[np.ndarray, Statistic | None]:
    """Return a score for each text, NaN where the scorer abstains, and the swap consistency of a pairwise scorer."""
    (scorer, *more) = feedback.scorers.items()
    if data.kind != "pairs" or more or not isinstance(scorer[1], PairwiseScorer):
        return _scores(feedback, data), None
    count = len(data.episodes) // 2
    firsts, seconds = data.episodes[:count], data.episodes[count:]
    shown = np.array(scorer[1].compare(firsts, seconds))
    swapped = np.array(scorer[1].compare(seconds, firsts))
    margins = feedback.weights[scorer[0]] * (shown - swapped) / 2
    told = ~np.isnan(margins)
    agrees = told & (np.sign(shown) == -np.sign(swapped))
    columns = np.stack([agrees, told], -1)
    sums = by_document(columns, data.documents[:count])
    return np.concatenate([margins, -margins]) / 2, ratio(sums[:, 0], sums[:, 1], SHARE)


def _scores(feedback: Composite, data: Judgements) -> np.ndarray:
    """Return a score for each text; texts of a document go into one batch, so that it is read once."""
    scores = np.zeros(len(data.episodes))
    order = np.argsort(data.documents, kind="stable")
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        scores[places] = [score.value for score in feedback([data.episodes[place] for place in places])]
    return scores


# -------------------------------------------------------------------- measures


def measure(scores: np.ndarray, data: Judgements) -> dict[str, dict[str, Statistic]]:
    """Return the agreement of `scores`, float `(texts,)`, with people by dimension, and its `mean`; see `validate`."""
    found = {name: _agreement(scores, data, name) for name in data.better}
    keys = next(iter(found.values()))
    found["mean"] = {key: statistics.mean([row[key] for row in found.values()]) for key in keys}
    return found


def _agreement(scores: np.ndarray, data: Judgements, dimension: str) -> dict[str, Statistic]:
    measures = accuracies(scores, data, dimension)
    if data.kind == "pairs":
        (one, other) = np.sort(data.better[dimension], 1).T
        first_won = (data.better[dimension][:, 0] == one).astype(float)
        return {
            **measures,
            "calibration": calibration_error(scores[one] - scores[other], first_won, data.documents[one]),
        }
    human = data.human[dimension]
    scaled = (human - human.min()) / (np.ptp(human) or 1.0)
    return {
        "spearman": rank_agreement(scores, human, data.documents),
        "pearson": statistics.correlation(scores, human, data.documents),
        **measures,
        "calibration": calibration_error(scores, scaled, data.documents),
    }


def rank_agreement(scores: np.ndarray, human: np.ndarray, documents: np.ndarray) -> Statistic:
    """Return the mean over documents of the rank correlation of `scores` with `human`, all `(texts,)`.

    A document in which `human` is constant (or has one text) is left out; one in which `scores` are counts 0.
    """
    found = np.zeros((documents.max() + 1, 2))
    for document in range(len(found)):
        x, y = scores[documents == document], human[documents == document]
        if np.ptp(y) > 0:
            found[document] = spearman(x, y) if np.ptp(x) else 0.0, 1
    return ratio(found[:, 0], found[:, 1], (-1.0, 1.0))


def accuracies(scores: np.ndarray, data: Judgements, dimension: str) -> dict[str, Statistic]:
    """Return in what share of the comparisons the better text has the higher score; see `validate`."""
    better, worse = data.better[dimension].T
    hits = (np.sign(scores[better] - scores[worse]) + 1) / 2
    lengths = np.array([len(words(e.text)) for e in data.episodes])
    shorter, longer = lengths[better] < lengths[worse], lengths[better] > lengths[worse]
    columns = np.stack([hits, np.ones(len(hits)), hits * shorter, shorter, hits * longer, longer], -1)
    sums = by_document(columns, data.documents[better], int(data.documents.max()) + 1)
    names = ("accuracy", "accuracy_shorter", "accuracy_longer")
    found = {name: ratio(sums[:, 2 * k], sums[:, 2 * k + 1], SHARE) for k, name in enumerate(names)}
    return {**found, "accuracy_balanced": statistics.mean([found[name] for name in names[1:]])}


def calibration_error(scores: np.ndarray, human: np.ndarray, documents: np.ndarray) -> Statistic:
    """Return how far judgements predicted from scores are off on average, on documents not used to predict.

    The expected calibration error of a rising map from score to judgement: an isotonic regression on the documents of
    even number predicts those of odd number, and the other way round. The predictions are put into ten bins of equal
    count; the error is the mean over bins, by count, of |mean prediction - mean judgement|. Chance alone makes it
    positive, by the order of sd(human) * sqrt(10 / n); a scorer that tells nothing predicts the mean, and is not off.

    Args:
        scores: float `(n,)`.
        human: The judgements, from 0 to 1, `(n,)`.
        documents: The document of each, `(n,)`.
    """
    odd = documents % 2 == 1
    if odd.all() or not odd.any():
        return ratio(np.zeros(1), np.zeros(1))
    predicted = np.zeros(len(scores))
    for fold in (odd, ~odd):
        predicted[fold] = statistics.isotonic(scores[~fold], human[~fold])(scores[fold])
    edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, predicted, "right")
    columns = np.zeros((len(scores), BINS + 1))
    columns[np.arange(len(scores)), bins] = predicted - human
    columns[:, BINS] = 1
    return Statistic(by_document(columns, documents), lambda s: np.abs(s[..., :BINS]).sum(-1) / s[..., BINS], SHARE)


def association(scores: np.ndarray, values: np.ndarray, documents: np.ndarray) -> Statistic:
    """Return the mean rank correlation of `scores` with `values` within documents, or over all texts.

    Over all texts where no document has two texts of different value.
    """
    within = rank_agreement(scores, values, documents)
    if within.sums[:, 1].any():
        return within
    return statistics.correlation(statistics.ranks(scores), statistics.ranks(values), documents)


def _people(data: Judgements, values: np.ndarray) -> Statistic:
    """Return the association of the human judgement with `values`, the mean over dimensions."""
    human = dict(data.human)
    for name, better in data.better.items() if data.kind == "pairs" else ():
        human[name] = np.zeros(len(data.episodes))
        human[name][better[:, 0]], human[name][better[:, 1]] = 1, -1
    return statistics.mean([association(ratings, values, data.documents) for ratings in human.values()])


def _estimated(found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the same with an estimate in place of each statistic."""
    return {
        name: _estimated(value, seed) if isinstance(value, dict) else value and asdict(value.estimate(seed))
        for name, value in found.items()
    }
