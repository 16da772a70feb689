"""Zero-shot classification: does a text have the wanted tone, is it about the wanted topic?"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError, number
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.likelihood import language_model
from llm_gym.feedback.similarity import embedder

TONES = ("cheerful", "gloomy", "angry", "tender", "humorous", "formal", "suspenseful", "calm")
TOPICS = ("travel", "food", "work", "sport", "science", "family", "nature", "money", "music", "technology")

PASSAGES = (
    "The whole street came out to dance, and even the baker left his oven to join them, flour on his nose.",
    "Nobody had lived in the house since the funeral, and the rain came through the roof into her empty cup.",
    "Three times we wrote to you, three times you lied, and now you dare to send us the bill?",
    "He tucked the blanket round her feet, kissed her hair and sat beside her until she slept.",
    "My uncle trained the goose to guard the house, and since then none of us has been able to get in.",
    "Members are kindly requested to submit their applications in writing to the secretary before the first of May.",
    "The stairs creaked again, closer this time, and the handle of the cellar door began to turn.",
    "The lake lay still, a heron stood in the reeds, and nothing needed to be done before evening.",
)
"""Passages of different tones, to tell how likely the name of a tone is whatever the text."""


class ZeroShot(Scorer):
    """Probability that a model gives to the wanted label among all labels, 0 to 1; 0 for an empty text.

    The wanted label is the row's value of the column. Its name is taken out of the text first: to name a tone is not
    to have it.

    Args:
        labels: What the wanted label is compared with; it joins them if it is none of them. None for the usual ones.
    """

    column: ClassVar[str]
    default_labels: ClassVar[tuple[str, ...]]
    prompt: ClassVar[str]

    def __init__(self, labels: Sequence[str] | None) -> None:
        self.labels = self.default_labels if labels is None else tuple(labels)
        # A string is a sequence too, and its letters are no labels.
        if isinstance(labels, str) or not all(isinstance(label, str) for label in self.labels):
            raise LLMGymError(f"labels={labels!r} must be a list of texts, as in {list(self.default_labels[:2])}")
        if len(set(self.labels)) < 2:
            raise LLMGymError(f"labels={labels!r} must be at least two different ones to compare with")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the probabilities.

        Raises:
            LLMGymError: A row has no wanted label.
        """
        texts, indices, label_sets = [], [], []
        for episode in episodes:
            label = self._wanted(episode)
            labels = self.labels if label in self.labels else (*self.labels, label)
            texts.append(re.sub(rf"\b{re.escape(label)}\b", "", episode.text, flags=re.IGNORECASE).strip())
            label_sets.append(labels)
            indices.append(labels.index(label))
        values = self._evidence(texts, label_sets)
        return [_softmax(v)[i] if text else 0.0 for v, i, text in zip(values, indices, texts, strict=True)]

    def _wanted(self, episode: Episode) -> str:
        label = episode.example.get(self.column)
        if not isinstance(label, str):
            raise LLMGymError(
                f"example {episode.example.get('id')!r} has no {self.column!r}, which this scorer compares with"
            )
        return label

    @abstractmethod
    def _evidence(self, texts: list[str], labels: list[tuple[str, ...]]) -> list[np.ndarray]:
        """Return for each text the logits of its labels, float64 `(labels,)`."""


class ByLikelihood(ZeroShot):
    """By a language model: how likely is the label's name after the text and the prompt?

    Against how likely it is on average after eight passages of different tones: some names are likelier than others
    whatever the text (calibration, Zhao et al. 2021; over real texts, Zhou et al. 2023).

    Args:
        model: Name of a causal language model.
        labels: What the wanted label is compared with.
    """

    def __init__(self, model: str = "smollm2-135m", labels: Sequence[str] | None = None) -> None:
        super().__init__(labels)
        self.lm = language_model(model)

    def _evidence(self, texts: list[str], labels: list[tuple[str, ...]]) -> list[np.ndarray]:
        names = sorted({label for row in labels for label in row})
        usual = self._told(PASSAGES, [names] * len(PASSAGES))
        prior = dict(zip(names, np.mean(usual, axis=0).tolist(), strict=True))
        told = self._told(texts, labels)
        return [row - [prior[label] for label in names] for row, names in zip(told, labels, strict=True)]

    def _told(self, texts: Sequence[str], labels: Sequence[Sequence[str]]) -> list[np.ndarray]:
        pairs = [
            (self.prompt.replace("{text}", text), f" {label}")
            for text, names in zip(texts, labels, strict=True)
            for label in names
        ]
        values = self.lm(pairs)
        ends = np.cumsum([len(names) for names in labels])
        return [np.array(values[end - len(names) : end]) for end, names in zip(ends, labels, strict=True)]


class ByEmbedding(ZeroShot):
    """By sentence embeddings: the softmax of the text's cosines with the prompt, each label in it.

    Args:
        model: Name of an embedding model.
        labels: What the wanted label is compared with.
        temperature: Of the softmax.
    """

    def __init__(
        self, model: str = "minilm-l6", labels: Sequence[str] | None = None, temperature: float = 0.05
    ) -> None:
        super().__init__(labels)
        self.embedder, self.temperature = embedder(model), number("temperature", temperature, above_zero=True)

    def _evidence(self, texts: list[str], labels: list[tuple[str, ...]]) -> list[np.ndarray]:
        said = self.embedder(texts)
        return [
            self.embedder([self.prompt.replace("{label}", label) for label in names]) @ vector / self.temperature
            for names, vector in zip(labels, said, strict=True)
        ]


class Tone(ByLikelihood):
    """Probability of the wanted tone, by a language model."""

    column, default_labels = "tone", TONES
    prompt = "{text}\n\nThe tone of this text is"


class Topic(ByEmbedding):
    """Probability of the wanted topic, by sentence embeddings."""

    column, default_labels = "topic", TOPICS
    prompt = "A text about {label}."


class JudgedTone(ByEmbedding):
    """Probability of the wanted tone, by sentence embeddings: a second judge of what `Tone` trains."""

    column, default_labels = "tone", TONES
    prompt = "The mood is {label}."


class JudgedTopic(ByLikelihood):
    """Probability of the wanted topic, by a language model: a second judge of what `Topic` trains."""

    column, default_labels = "topic", TOPICS
    prompt = "{text}\n\nThis text is about"


def _softmax(logits: np.ndarray) -> list[float]:
    shares = np.exp(logits - logits.max())
    return (shares / shares.sum()).tolist()
