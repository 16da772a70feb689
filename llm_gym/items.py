"""Catalogues of things to recommend: titles, what kind they are of, and what there is to know about them."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_gym.errors import LLMGymError


class Item(NamedTuple):
    """A thing to recommend: its title, the kind and genres it is of, and a description; these may be empty."""

    title: str
    kind: str
    genres: tuple[str, ...]
    text: str


class Catalogue:
    """Items by title.

    Args:
        items: The items, titles unique.
    """

    def __init__(self, items: list[Item]) -> None:
        self.items = {item.title: item for item in items}
        self._titles: dict[str, tuple[str, ...]] = {"": tuple(self.items)}

    def titles(self, kind: str = "") -> tuple[str, ...]:
        """Return the titles of a kind, or all of them."""
        if kind not in self._titles:
            self._titles[kind] = tuple(item.title for item in self.items.values() if item.kind == kind)
        return self._titles[kind]

    def find(self, entry: str) -> Item | None:
        """Return the item that an entry `title` or `title: comment` is about, None if there is none.

        >>> ring = Item("Salt: A Ledger", "books", ("history",), "A town lives by salt.")
        >>> Catalogue([ring]).find("Salt: A Ledger: I read it twice.").title
        'Salt: A Ledger'
        """
        title = entry.strip()
        while title not in self.items:
            title, colon, _ = title.rpartition(":")
            if not colon:
                return None
        return self.items[title]

    def embed(self, entries: list[str], model: str) -> np.ndarray:
        """Return unit embeddings float32 `(n, D)` of entries, each read with what the catalogue says of its item."""
        from llm_gym.feedback.similarity import embedder

        found = [self.find(entry) for entry in entries]
        texts = [
            f"{entry}. {item.text}" if item and item.text else entry for entry, item in zip(entries, found, strict=True)
        ]
        return embedder(model)(texts)


@lru_cache(maxsize=8)
def shared_catalogue(catalogue: str) -> Catalogue:
    """Return the process-wide catalogue behind a name.

    Args:
        catalogue: A JSONL, CSV or Parquet file with the column `title` and optionally `kind`, `genres` (separated by
            `|`, as MovieLens does) and `text`; or the name of a bundled one under `llm_gym/data/corpora`, without
            `.jsonl`.

    Raises:
        LLMGymError: The file, or a row of it, is not what it must be.
    """
    resource = files("llm_gym.data").joinpath("corpora", f"{catalogue}.jsonl")
    if catalogue.isidentifier() and not os.path.exists(catalogue) and resource.is_file():
        with as_file(resource) as path:
            return Catalogue(_read(path))
    return Catalogue(_read(Path(catalogue)))


def _read(path: Path) -> list[Item]:
    from llm_gym.data.files import read_rows

    items: dict[str, Item] = {}
    for number, row in read_rows(path):
        title, kind, genres, text = (row.get(name) or "" for name in ("title", "kind", "genres", "text"))
        if not all(isinstance(value, str) for value in (title, kind, genres, text)) or not title.strip():
            raise LLMGymError(f"{path}:{number}: an item needs a 'title', and 'kind', 'genres', 'text' are strings")
        title = " ".join(title.split())
        if title in items:
            raise LLMGymError(f"{path}:{number}: the title {title!r} is there twice; titles must be unique")
        items[title] = Item(title, kind, tuple(filter(None, genres.split("|"))), text)
    return list(items.values())
