"""Search engines over small collections of documents: BM25, embeddings, or both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_gym.errors import LLMGymError

ENGINES = ("bm25", "embedding", "hybrid")
FUSION = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009)."""
MODEL = "minilm-l6"


class Document(NamedTuple):
    """A document: its id, a title, which may be empty, and its text."""

    id: str
    title: str
    text: str


class Index:
    """A searchable collection.

    Args:
        documents: The collection, ids unique.
    """

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.places = {document.id: place for place, document in enumerate(documents)}
        self._texts = [f"{document.title}\n{document.text}".strip() for document in documents]
        self._bm25: Any = None

    def search(self, query: str, engine: str = "bm25", top: int = 10) -> list[Document]:
        """Return the best documents for a query, best first; ties in the collection's order.

        BM25 (Robertson et al. 1995, by `bm25s`; English stop words and stems) returns only documents that share a
        word with the query. `embedding` orders by cosine, `hybrid` by the sum of 1 / (60 + rank) under both.

        Raises:
            LLMGymError: An unknown engine.
        """
        if engine not in ENGINES:
            raise LLMGymError(f"search engine {engine!r} is unknown; expected one of {', '.join(ENGINES)}")
        if not query.strip():
            return []
        if engine == "hybrid":
            found = self._fused(query)
        else:
            found = self._by_words(query) if engine == "bm25" else self._by_meaning(query)
        return [self.documents[place] for place in found[:top]]

    def _by_words(self, query: str) -> list[int]:
        import bm25s

        if self._bm25 is None:
            self._bm25 = bm25s.BM25()
            self._bm25.index(stems(self._texts), show_progress=False)
        wanted = stems([query])[0]
        if not wanted:
            return []
        scores = self._bm25.get_scores(wanted)
        order = np.argsort(-scores, kind="stable")
        return [int(place) for place in order if scores[place] > 0]

    def _by_meaning(self, query: str) -> list[int]:
        from llm_gym.feedback.similarity import embedder

        embed = embedder(MODEL)
        return np.argsort(-(embed(self._texts) @ embed([query])[0]), kind="stable").tolist()

    def _fused(self, query: str) -> list[int]:
        scores = np.zeros(len(self.documents))
        for ranking in (self._by_words(query), self._by_meaning(query)):
            scores[ranking] += 1 / (FUSION + 1 + np.arange(len(ranking)))
        return np.argsort(-scores, kind="stable").tolist()


def stems(texts: list[str]) -> list[list[str]]:
    """Return the stems of the words of each text, without stop words.

    >>> stems(["The boats were repaired."])
    [['boat', 'were', 'repair']]
    """
    import bm25s
    import snowballstemmer

    stemmer = snowballstemmer.stemmer("english")
    return bm25s.tokenize(  # type: ignore[return-value]
        texts, stopwords="en", stemmer=stemmer.stemWords, return_ids=False, show_progress=False
    )


@lru_cache(maxsize=8)
def shared_index(documents: str) -> Index:
    """Return the process-wide index of a collection.

    Args:
        documents: A JSONL, CSV or Parquet file with the columns `id` (or `_id`, as in BEIR), `text` and optionally
            `title`; or the name of a bundled collection under `llm_gym/data/corpora`, without `.jsonl`.

    Raises:
        LLMGymError: The file, or a row of it, is not what it must be.
    """
    resource = files("llm_gym.data").joinpath("corpora", f"{documents}.jsonl")
    if documents.isidentifier() and not os.path.exists(documents) and resource.is_file():
        with as_file(resource) as path:
            return Index(list(_read(path)))
    return Index(list(_read(Path(documents))))


def _read(path: Path) -> Iterator[Document]:
    from llm_gym.data.files import read_rows

    seen: dict[str, int] = {}
    for number, row in read_rows(path):
        name, title, text = row.get("id", row.get("_id")), row.get("title") or "", row.get("text")
        if not isinstance(name, str | int) or not isinstance(title, str) or not isinstance(text, str):
            raise LLMGymError(f"{path}:{number}: a document needs 'id' and 'text', a string, and may have a 'title'")
        if str(name) in seen:
            raise LLMGymError(f"{path}: document {name!r} is on lines {seen[str(name)]} and {number}; ids are unique")
        seen[str(name)] = number
        yield Document(str(name), title, text)


def ndcg(found: list[str], relevant: list[str], top: int = 10) -> float:
    """Return nDCG@`top` with binary relevance, 0 to 1 (Järvelin and Kekäläinen 2002).

    >>> ndcg(["a", "x"], ["a"]), round(ndcg(["x", "a"], ["a"]), 3)
    (1.0, 0.631)
    """
    wanted = set(relevant)
    gains = sum(1 / np.log2(rank + 2) for rank, name in enumerate(found[:top]) if name in wanted)
    best = sum(1 / np.log2(rank + 2) for rank in range(min(top, len(wanted))))
    return float(gains / best) if best else 0.0
