"""Second judges: they compare the text with what a person wrote.

Training feedback uses them only where a task is `verifiable`: its reference is ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.rules import words
from llm_gym.feedback.similarity import embedder

FUNCTION_WORDS = frozenset(
    "a an the this that these those it its he she they his her their them him i you we my your our us me who whom "
    "which what and or but if so as at by for from in into of off on out over to up with about after before than "
    "then there when where while because is are was were be been being am do does did have has had will would can "
    "could may might must shall should not no nor only also very more most some any all each both few other such "
    "own same just too".split()
)


def references(episodes: Sequence[Episode]) -> list[str]:
    """Return the references of `episodes`.

    Raises:
        LLMGymError: One has none.
    """
    for episode in episodes:
        if not episode.reference:
            raise LLMGymError(
                f"example {episode.example.get('id')!r} has no reference to compare with; "
                "give the data a reference column or use feedback that needs none"
            )
    return [episode.reference or "" for episode in episodes]


def accepted(episodes: Sequence[Episode]) -> list[list[str]]:
    """Return all that a person would accept for each of `episodes`: the row's `answers`, or else the reference.

    Raises:
        LLMGymError: One has no reference.
    """
    return [e.example.get("answers") or [one] for e, one in zip(episodes, references(episodes), strict=True)]


def key_facts(episode: Episode) -> list[set[str]]:
    """Return the words of each key fact: the row's `facts`, or else each content word of the reference."""
    facts = episode.example.get("facts")
    if facts:
        return [found for fact in facts if (found := set(words(fact)))]
    return [{word} for word in dict.fromkeys(words(episode.reference or "")) if word not in FUNCTION_WORDS]


class KeyFacts(Scorer):
    """Recall of the reference's key facts, 0 to 1: the mean share of each fact's words that the text has."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the recalls."""
        references(episodes)
        return [self._recall(e) for e in episodes]

    def _recall(self, episode: Episode) -> float:
        found, facts = set(words(episode.text)), key_facts(episode)
        return sum(len(fact & found) / len(fact) for fact in facts) / len(facts) if facts else 0.0


class ChrF(Scorer):
    """chrF of the text against the reference, 0 to 1 (Popović 2015, by sacrebleu); of several, against the best."""

    reads_reference = True

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores."""
        from sacrebleu.metrics import CHRF

        metric = CHRF()
        pairs = zip(episodes, accepted(episodes), strict=True)
        return [metric.sentence_score(e.text, wanted).score / 100 for e, wanted in pairs]


class ReferenceSimilarity(Scorer):
    """Cosine between the embeddings of the text and of the reference, of several the best; 0 for an empty text."""

    reads_reference = True

    def __init__(self, model: str = "minilm-l6") -> None:
        self.embedder = embedder(model)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the cosines."""
        wanted = accepted(episodes)
        texts = self.embedder([e.text for e in episodes])
        return [float((self.embedder(row) @ text).max()) for text, row in zip(texts, wanted, strict=True)]
