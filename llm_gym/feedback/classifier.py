"""Classifiers: the probability of a wanted label, and whether the source entails what the text says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.memory import Memory
from llm_gym.feedback.rules import sentences
from llm_gym.models.version import one_a_model, version

BATCH = 32
OVERLAP = 64  # tokens that two stretches of a long text share
COMBINED: dict[str, Callable[[list[float]], Any]] = {"mean": np.mean, "min": np.min}


class SequenceClassifier:
    """Probabilities of a classifier's labels, remembered by text.

    Args:
        model: Name of a sequence classifier: a local folder or a hub id.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._known = Memory(f"classes/{version(model)}")

    @property
    def labels(self) -> list[str]:
        """The names of the labels."""
        named = self._config.id2label
        return [named[i] for i in range(self._config.num_labels)]

    @property
    def _config(self) -> Any:
        from llm_gym.models.load import shared_classifier

        return shared_classifier(self.model).config

    def place(self, label: str) -> int:
        """Return the place of a label among the labels; case does not matter.

        Raises:
            LLMGymError: The classifier has no such label, or gives a number instead of labels.
        """
        labels = [name.lower() for name in self.labels]
        if len(labels) < 2:
            raise LLMGymError(f"classifier {self.model!r} has one output, not labels to choose from; use another one")
        if label.lower() not in labels:
            raise LLMGymError(f"classifier {self.model!r} has no label {label!r}, only {', '.join(self.labels)}")
        return labels.index(label.lower())

    def __call__(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> np.ndarray:
        """Return the labels' probabilities, float64 `(len(texts), labels)`.

        What does not fit into the model is read in overlapping stretches of `texts`, and of each label the highest
        probability counts. Special tokens written out in a text are read as plain characters.

        Args:
            texts: The texts.
            seconds: What stands beside each, for a classifier of pairs.

        Raises:
            LLMGymError: A second text alone is too long for the model.
        """
        keys = list(zip(texts, [None] * len(texts) if seconds is None else seconds, strict=True))
        known = {key: self._known[key] for key in keys if key in self._known}
        new = sorted({key for key in keys if key not in known}, key=lambda key: (len(key[0]), key[0], key[1] or ""))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for key, shares in zip(batch, self._read(batch), strict=True):
                known[key] = self._known[key] = shares
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, len(self.labels)))

    def _read(self, batch: list[tuple[str, str | None]]) -> list[np.ndarray]:
        import torch

        from llm_gym.models.load import load_tokenizer, shared_classifier

        model, tokenizer = shared_classifier(self.model), load_tokenizer(self.model)
        padded = None not in (tokenizer.pad_token_id, model.config.pad_token_id)  # some cannot tell padding from text
        rows, owners = self._encoded(tokenizer, batch, padded)
        size = BATCH if padded else 1
        told = []
        for start in range(0, len(owners), size):
            inputs = {name: torch.tensor(row[start : start + size], device=model.device) for name, row in rows.items()}
            with torch.no_grad():
                told.append(model(**inputs).logits.double().cpu())
        logits = torch.cat(told)
        several = model.config.problem_type == "multi_label_classification"
        shares = (logits.sigmoid() if several else logits.softmax(-1)).numpy()
        return [shares[owners == place].max(0) for place in range(len(batch))]

    def _encoded(
        self, tokenizer: Any, batch: list[tuple[str, str | None]], padded: bool
    ) -> tuple[dict[str, list[list[int]]], np.ndarray]:
        """Return the model's inputs, a row a stretch, and of which of the batch each is a stretch."""
        seconds = [second for _, second in batch if second is not None]
        limit = min(tokenizer.model_max_length, getattr(self._config, "max_position_embeddings", 1 << 20))
        longest = max((len(tokenizer(second)["input_ids"]) for second in seconds), default=0)
        if longest > limit // 2:
            raise LLMGymError(f"classifier {self.model!r} reads {limit} tokens, and a sentence has {longest}")
        if not tokenizer.is_fast:
            raise LLMGymError(f"classifier {self.model!r} has no fast tokenizer, which is needed here; use another one")
        rows = tokenizer(
            [first for first, _ in batch],
            seconds or None,
            padding=padded,
            truncation="only_first",
            max_length=limit,
            stride=min(OVERLAP, limit // 8),
            return_overflowing_tokens=True,
            split_special_tokens=True,
        )
        owners = rows.pop("overflow_to_sample_mapping")
        return dict(rows), np.array(owners)


@one_a_model
def sequence_classifier(model: str) -> SequenceClassifier:
    """Return the process-wide classifier behind a model's name, so that the parts of a score share its memory."""
    return SequenceClassifier(model)


class Classifier(Scorer):
    """Probability that a classifier gives to the wanted label, 0 to 1; 0 for an empty text.

    Args:
        model: Name of a sequence classifier, such as of sentiment: a local folder or a hub id.
        label: The wanted label, for all rows alike,
        column: or the row's column that names it.
    """

    def __init__(self, model: str, label: str | None = None, column: str | None = None) -> None:
        if (label is None) == (column is None):
            raise LLMGymError("a classifier needs either label=..., the wanted one, or column=..., where rows name it")
        self.classifier, self.label, self.column = sequence_classifier(model), label, column

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the probabilities.

        Raises:
            LLMGymError: A row names no label, or one that the classifier has not.
        """
        places = [self.classifier.place(self._wanted(e)) for e in episodes]
        shares = iter(self.classifier([e.text for e in episodes if e.text.strip()]))
        return [float(next(shares)[p]) if e.text.strip() else 0.0 for p, e in zip(places, episodes, strict=True)]

    def _wanted(self, episode: Episode) -> str:
        label = self.label if self.column is None else episode.example.get(self.column)
        if not isinstance(label, str):
            raise LLMGymError(f"example {episode.example.get('id')!r} names no label in {self.column!r}; mend the row")
        return label


class Entailment(Scorer):
    """Probability that the source entails the text, by sentence; 0 to 1, 0 for a text without a sentence.

    By a classifier of natural language inference: the source is the premise, each sentence of the text a hypothesis. Of
    a source too long for the model, the stretch that says most for a sentence counts (Laban et al. 2022, SummaC).

    Args:
        model: Name of such a classifier: a local folder or a hub id.
        combine: `mean` of the sentences, or `min`: one that the source does not say spoils the text.
        label: What the classifier calls entailment.
    """

    def __init__(self, model: str, combine: str = "mean", label: str = "entailment") -> None:
        if combine not in COMBINED:
            raise LLMGymError(f"combine={combine!r} must be one of {', '.join(COMBINED)}")
        self.classifier, self.combine, self.label = sequence_classifier(model), COMBINED[combine], label

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the probabilities.

        Raises:
            LLMGymError: The classifier has no such label.
        """
        place = self.classifier.place(self.label)
        claims = [sentences(e.text) for e in episodes]
        hypotheses = [claim for row in claims for claim in row]
        premises = [e.source for e, row in zip(episodes, claims, strict=True) for _ in row]
        shares = iter(self.classifier(premises, hypotheses)[:, place])
        return [float(self.combine([next(shares) for _ in row])) if row else 0.0 for row in claims]
