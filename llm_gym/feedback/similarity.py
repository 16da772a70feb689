"""Similarity of meaning, by sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_gym.episode import Episode
from llm_gym.feedback.base import Scorer
from llm_gym.feedback.memory import Memory
from llm_gym.feedback.rules import sentences
from llm_gym.models.version import one_a_model, version


class Embedder:
    """Unit sentence embeddings by mean pooling, remembered by text.

    Args:
        model: Name of an embedding model.
    """

    def __init__(self, model: str = "minilm-l6") -> None:
        self.model = model
        self._known = Memory(f"embedding/{version(model)}")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 `(len(texts), D)`; an empty text is the zero vector."""
        known = {text: self._known[text] for text in texts if text in self._known}
        new = sorted({text for text in texts if text.strip() and text not in known}, key=lambda text: (len(text), text))
        for start in range(0, len(new), 32):
            batch = new[start : start + 32]
            for text, vector in zip(batch, self._embed(batch), strict=True):
                known[text] = self._known[text] = vector
        width = len(next(iter(self._known.values()))) if self._known else 1
        return np.stack([known[t] if t.strip() else np.zeros(width, np.float32) for t in texts])

    def _embed(self, texts: list[str]) -> np.ndarray:
        import torch

        from llm_gym.models.embedding import embeddings, token_ids
        from llm_gym.models.load import load_tokenizer, shared_encoder

        tokenizer, model = load_tokenizer(self.model), shared_encoder(self.model)
        with torch.no_grad():
            return embeddings(model, token_ids(tokenizer, texts), tokenizer.pad_token_id).cpu().numpy()


@one_a_model
def embedder(model: str) -> Embedder:
    """Return the process-wide embedder behind a model's name, so that the parts of a score share its memory."""
    return Embedder(model)


class Similarity(Scorer):
    """Cosine between the embeddings of the text and of the source, -1 to 1; 0 for an empty text.

    Alone it is hacked by copying (see `docs/environments.md`).

    Args:
        model: Name of an embedding model.
        sentences: Compare by sentence: the mean over the text's sentences of the best cosine with a sentence of the
            source. Of a long source, all is read; a text that is about one detail of it loses nothing.
    """

    def __init__(self, model: str = "minilm-l6", sentences: bool = False) -> None:
        self.embedder, self.sentences = embedder(model), sentences

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Return the cosines."""
        if self.sentences:
            return [self._best(sentences(e.text), sentences(e.source)) for e in self._ready(episodes)]
        texts, sources = self.embedder([e.text for e in episodes]), self.embedder([e.source for e in episodes])
        return (texts * sources).sum(1).tolist()

    def _ready(self, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """Return the episodes once their sentences are embedded, those of all in full batches."""
        self.embedder([part for text in {t for e in episodes for t in (e.source, e.text)} for part in sentences(text)])
        return episodes

    def _best(self, texts: list[str], sources: list[str]) -> float:
        if not texts or not sources:
            return 0.0
        return float((self.embedder(texts) @ self.embedder(sources).T).max(1).mean())
