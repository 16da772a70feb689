"""From a spec to feedback: a weighted sum of named scorers, each part kept visible."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Score, Scorer, as_scores
from llm_gym.feedback.memory import Memory, digest

SCORERS: dict[str, str] = {
    "similarity": "llm_gym.feedback.similarity:Similarity",
    "likelihood": "llm_gym.feedback.likelihood:Likelihood",
    "grounding": "llm_gym.feedback.likelihood:Grounding",
    "coverage": "llm_gym.feedback.likelihood:Coverage",
    "copying": "llm_gym.feedback.rules:Copying",
    "copied_share": "llm_gym.feedback.rules:CopiedShare",
    "repetition": "llm_gym.feedback.rules:Repetition",
    "brevity": "llm_gym.feedback.rules:Brevity",
    "length_ratio": "llm_gym.feedback.rules:LengthRatio",
    "complete": "llm_gym.feedback.rules:Complete",
    "cut_off": "llm_gym.feedback.rules:CutOff",
    "goals": "llm_gym.feedback.rules:Goals",
    "ndcg": "llm_gym.feedback.retrieval:NDCG",
    "refinement": "llm_gym.feedback.retrieval:Refinement",
    "excess": "llm_gym.feedback.retrieval:Excess",
    "resolution": "llm_gym.feedback.service:Resolution",
    "inquiry": "llm_gym.feedback.service:Inquiry",
    "breaches": "llm_gym.feedback.service:Breaches",
    "recital": "llm_gym.feedback.service:Recital",
    "rudeness": "llm_gym.feedback.service:Rudeness",
    "speech": "llm_gym.feedback.service:Speech",
    "extra_turns": "llm_gym.feedback.service:ExtraTurns",
    "triple_f1": "llm_gym.feedback.triples:TripleF1",
    "triple_pairs": "llm_gym.feedback.triples:TriplePairs",
    "triple_format": "llm_gym.feedback.triples:TripleFormat",
    "hits": "llm_gym.feedback.recommendation:Hits",
    "rank": "llm_gym.feedback.recommendation:Rank",
    "fit": "llm_gym.feedback.recommendation:Fit",
    "variety": "llm_gym.feedback.recommendation:Variety",
    "tone": "llm_gym.feedback.zero_shot:Tone",
    "topic": "llm_gym.feedback.zero_shot:Topic",
    "judged_tone": "llm_gym.feedback.zero_shot:JudgedTone",
    "judged_topic": "llm_gym.feedback.zero_shot:JudgedTopic",
    "rating": "llm_gym.feedback.judge:Rating",
    "yes_no": "llm_gym.feedback.judge:YesNo",
    "rubric": "llm_gym.feedback.judge:Rubric",
    "constitution": "llm_gym.feedback.judge:Constitution",
    "pairwise": "llm_gym.feedback.judge:Pairwise",
    "preference": "llm_gym.feedback.preference:Preference",
    "attribution": "llm_gym.feedback.attribution:Attribution",
    "classifier": "llm_gym.feedback.classifier:Classifier",
    "entailment": "llm_gym.feedback.classifier:Entailment",
    "divergence": "llm_gym.feedback.divergence:Divergence",
    "answer_format": "llm_gym.feedback.monitoring:AnswerFormat",
    "sentiment_label": "llm_gym.feedback.monitoring:SentimentLabel",
    "alarm_cost": "llm_gym.feedback.monitoring:AlarmCost",
    "reason_supported": "llm_gym.feedback.monitoring:ReasonSupported",
    "reason_overlap": "llm_gym.feedback.monitoring:ReasonOverlap",
    "length": "llm_gym.feedback.rules:Length",
    "distinct": "llm_gym.feedback.vocabulary:Distinct",
    "bigram_precision": "llm_gym.feedback.vocabulary:BigramPrecision",
    "supported": "llm_gym.feedback.vocabulary:Supported",
    "required_words": "llm_gym.feedback.vocabulary:RequiredWords",
    "banned_words": "llm_gym.feedback.vocabulary:BannedWords",
    "reading_level": "llm_gym.feedback.vocabulary:ReadingLevel",
    "spelling": "llm_gym.feedback.vocabulary:Spelling",
    "format": "llm_gym.feedback.vocabulary:Format",
    "elements": "llm_gym.feedback.rules:Elements",
    "coherence": "llm_gym.feedback.coherence:Coherence",
    "answer": "llm_gym.feedback.answers:Answer",
    "answer_exact": "llm_gym.feedback.answers:AnswerExact",
    "answer_support": "llm_gym.feedback.answers:AnswerSupport",
    "key_facts": "llm_gym.feedback.reference:KeyFacts",
    "chrf": "llm_gym.feedback.reference:ChrF",
    "reference_similarity": "llm_gym.feedback.reference:ReferenceSimilarity",
    "rouge": "llm_gym.feedback.metrics:Rouge",
    "bleu": "llm_gym.feedback.metrics:Bleu",
    "ter": "llm_gym.feedback.metrics:Ter",
    "exact": "llm_gym.feedback.metrics:Exact",
    "f1": "llm_gym.feedback.metrics:F1",
    "sentiment_order": "llm_gym.feedback.monitoring:SentimentOrder",
    "alarm_right": "llm_gym.feedback.monitoring:AlarmRight",
    "reason_similarity": "llm_gym.feedback.monitoring:ReasonSimilarity",
    "held_out_genres": "llm_gym.feedback.recommendation:HeldOutGenres",
    "held_out_similarity": "llm_gym.feedback.recommendation:HeldOutSimilarity",
    "gate": "llm_gym.feedback.operators:Gate",
    "minimum": "llm_gym.feedback.operators:Minimum",
    "ensemble": "llm_gym.feedback.operators:Ensemble",
    "length_controlled": "llm_gym.feedback.operators:LengthControlled",
    "own_words": "llm_gym.feedback.operators:OwnWords",
    "standardised": "llm_gym.feedback.operators:Standardised",
    "clipped": "llm_gym.feedback.operators:Clipped",
    "threshold": "llm_gym.feedback.operators:Threshold",
}
"""Scorer name to `module:class`. Another package's scorer is used by the same notation, `package.module:Class`."""


class Composite:
    """A weighted sum of scorers.

    Args:
        spec: Scorer names with their weight and options, e.g. `{"similarity": {"weight": 1.0, "model": "minilm-l6"}}`.

    Attributes:
        spec: The same, complete: what to write into a config.
    """

    def __init__(self, spec: dict[str, dict[str, Any]]) -> None:
        self.spec = spec
        self.weights = {name: float(options["weight"]) for name, options in spec.items()}
        self.scorers = {name: _make(name, options) for name, options in spec.items()}
        self._known = Memory()

    def __call__(self, episodes: Sequence[Episode]) -> list[Score]:
        """Return a score an episode: the weighted sum, and every part before its weight.

        Where a scorer abstains, its part and the value are NaN: a sum of the other parts would be of another scale.
        Such a score is not remembered, so the scorer is asked again next time.

        Raises:
            LLMGymError: A scorer gave a value that is not finite.
        """
        rows = {id(e.example): e.example for e in episodes}
        digests = {place: _row_digest(example) for place, example in rows.items()}
        keys = [_key(episode, digests[id(episode.example)]) for episode in episodes]
        known = {key: score for key in keys if (score := self._known.get(key)) is not None}
        new = {key: e for key, e in zip(keys, episodes, strict=True) if key not in known}
        for key, score in zip(new, self._score(list(new.values())), strict=True):
            known[key] = score
            if not score.abstained:
                self._known[key] = score
        return [known[key] for key in keys]

    def _score(self, episodes: list[Episode]) -> list[Score]:
        if not episodes:
            return []
        columns = {name: _scores(scorer, episodes) for name, scorer in self.scorers.items()}
        for name, values in columns.items():
            if len(values) != len(episodes):
                raise LLMGymError(f"scorer {name!r} gave {len(values)} values for {len(episodes)} episodes; mend it")
        return [self._sum(e, {name: column[i] for name, column in columns.items()}) for i, e in enumerate(episodes)]

    def _sum(self, episode: Episode, scores: dict[str, Score | None]) -> Score:
        values = {name: _finite(name, score, episode) for name, score in scores.items()}
        total = round(sum(self.weights[name] * value for name, value in values.items()), 6)
        inner = {
            f"{name}/{part}": value
            for name, score in scores.items()
            for part, value in (score.parts.items() if score else ())
        }
        return Score(total, {**values, **inner}, self.placed(episode))

    def placed(self, episode: Episode) -> tuple[tuple[int, float], ...]:
        """Return where in the text the value arises, see `Scorer.placed`."""
        return tuple(
            (end, self.weights[name] * value)
            for name, scorer in self.scorers.items()
            for end, value in getattr(scorer, "placed", lambda _: ())(episode)
        )

    @property
    def readers(self) -> list[str]:
        """The names of the parts that compare with what a person wrote."""
        return [name for name, scorer in self.scorers.items() if getattr(scorer, "reads_reference", False)]

    @property
    def reads_reference(self) -> bool:
        """Whether any part compares with what a person wrote."""
        return bool(self.readers)


def build(spec: str | dict[str, Any]) -> Composite:
    """Return the feedback behind a spec.

    Args:
        spec: A scorer's name, or names with weights, `{"likelihood": 1.0, "copying": -0.5}`, or with options,
            `{"copying": {"weight": -0.5, "run": 5}}`; also as a JSON string. A name may carry a label,
            `"likelihood#large"`, so that one scorer can be there twice.

    Raises:
        LLMGymError: Not JSON, an unknown scorer, or options that it does not take.

    >>> build({"brevity": -1.0}).spec
    {'brevity': {'weight': -1.0}}
    """
    if isinstance(spec, str):
        spec = _parse(spec)
    if not isinstance(spec, dict) or not spec:
        raise LLMGymError(f"feedback {spec!r} must be a scorer's name or a JSON object of names and weights")
    full = {}
    for name, options in spec.items():
        options = options if isinstance(options, dict) else {"weight": options}
        weight = options.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise LLMGymError(f"the weight of scorer {name!r} must be a finite number, got {weight!r}")
        full[name] = {**options, "weight": float(weight)}
    return Composite(full)


def _parse(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return {text: 1.0}
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise LLMGymError(
            f"feedback {text!r} is not JSON ({error}); expected e.g. '{{\"likelihood\": 1.0}}'"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, of which Python would silently keep the last of two equal names."""
    names = [name for name, _ in pairs]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise LLMGymError(
            f"feedback has {double!r} twice in one object; leave out one, or tell scorers apart: 'length#2'"
        )
    return dict(pairs)


def _scores(scorer: Any, episodes: list[Episode]) -> list[Score | None]:
    """Return a scorer's scores; any callable that returns values will do."""
    return scorer.scores(episodes) if isinstance(scorer, Scorer) else as_scores(scorer(episodes))


def _make(name: str, options: dict[str, Any]) -> Scorer:
    name = name.partition("#")[0]
    if name not in SCORERS and ":" not in name:
        near = difflib.get_close_matches(name, SCORERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SCORERS)}"
        raise LLMGymError(f"unknown scorer {name!r}; {hint}")
    module, _, attribute = SCORERS.get(name, name).partition(":")
    options = {key: value for key, value in options.items() if key != "weight"}
    if not module or not attribute:
        raise LLMGymError(f"scorer {name!r} cannot be loaded: expected 'package.module:Class'")
    try:
        make = getattr(importlib.import_module(module), attribute)
        return make(**options)
    except (ImportError, AttributeError) as error:
        raise LLMGymError(f"scorer {name!r} cannot be loaded: {error}") from error
    except TypeError as error:
        takes = ", ".join(inspect.signature(make).parameters) or "none"
        raise LLMGymError(f"scorer {name!r} does not take these options: {error}; it takes {takes}") from error


def _finite(name: str, score: Score | None, episode: Episode) -> float:
    """Return a scorer's value, NaN where it abstained.

    Raises:
        LLMGymError: The value is not finite.
    """
    if score is None:
        return math.nan
    if not math.isfinite(value := round(float(score.value), 6)):
        raise LLMGymError(
            f"scorer {name!r} gave {value} for example {episode.example.get('id')!r}; "
            "a reward must be finite: mend or remove that scorer"
        )
    return value


def _row_digest(example: dict[str, Any]) -> str:
    """Return a digest of a data row; its id names it, and nothing is said of it in a score."""
    return digest(tuple(part for name, value in sorted(example.items()) if name != "id" for part in (name, value)))


def _key(episode: Episode, row: str) -> str:
    """Return a digest of what a score may depend on, given that of the data row."""
    before = [turn["text"] for turn in episode.turns[:-1]]
    return digest((episode.source, episode.text, episode.finish_reason, episode.reference, episode.over, before, row))
