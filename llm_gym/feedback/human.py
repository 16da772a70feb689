"""Files of human judgements: ratings of texts, or preferences between two."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llm_gym.data.files import read_rows
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.statistics import evenly_spaced

RATINGS = ("source", "candidate", "human")
PAIRS = ("prompt", "response_a", "response_b", "preferred")
PREFERENCES = ("source", "chosen", "rejected")
KINDS = {"ratings": RATINGS, "pairs": PAIRS, "preferences": PREFERENCES}
COLUMNS = tuple(dict.fromkeys((*RATINGS, *PAIRS, *PREFERENCES, "id", "reference")))
JUDGED = ("human", "preferred")  # columns that are no texts
HIDDEN = frozenset({*JUDGED, "candidate", "response_a", "response_b", "chosen", "rejected", "margin"})
"""What a scorer must not look up."""
PREFERRED = {"a": (0, 1), "b": (1, 0)}

Numbered = list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Judgements:
    """Texts and what people thought of them.

    Attributes:
        kind: `ratings` or `pairs`.
        episodes: The texts, as scorers take them; of pairs first all replies `a`, then all replies `b`.
        documents: int `(texts,)`, which document each is about, numbered from 0.
        human: Ratings, float `(texts,)`, by dimension; empty for pairs.
        better: int `(comparisons, 2)`, by dimension: places of two texts about the same document, the one that people
            think better first. Two texts that people think equal are not compared.
        ties: How many pairs people thought equal; 0 for ratings.
    """

    kind: str
    episodes: list[Episode]
    documents: np.ndarray
    human: dict[str, np.ndarray]
    better: dict[str, np.ndarray]
    ties: int = 0

    @property
    def overall(self) -> np.ndarray:
        """The comparisons by the mean over dimensions, int `(comparisons, 2)`, as in `better`."""
        if len(self.better) == 1:
            return next(iter(self.better.values()))
        return _comparisons(np.mean(list(self.human.values()), 0), self.documents)

    def of(self, kept: np.ndarray) -> Judgements:
        """Return what is known of some of the texts alone, bool `(texts,)`: comparisons of both texts kept."""
        places = np.cumsum(kept) - 1
        return replace(
            self,
            episodes=[episode for episode, keep in zip(self.episodes, kept, strict=True) if keep],
            documents=np.unique(self.documents[kept], return_inverse=True)[1],
            human={name: ratings[kept] for name, ratings in self.human.items()},
            better={name: places[pairs[kept[pairs].all(1)]] for name, pairs in self.better.items()},
        )


def read_judgements(
    path: str | Path, columns: Mapping[str, str] | None = None, documents: int | None = None
) -> Judgements:
    """Read a JSONL, CSV or Parquet file of human judgements; its columns say which kind it is.

    Ratings have `source`, `candidate` and `human`, a number or an object of numbers by dimension (in CSV, as JSON);
    the rows of a document share their `id`, or, where there is none, their source. Pairs have `prompt`, `response_a`,
    `response_b` and `preferred`, which is `a`, `b` or `tie`, or else `source`, `chosen` and `rejected`; rows of the
    same prompt or source are a document. All may have a `reference`. Further columns are there for scorers that read
    columns of the example.

    Args:
        path: The file.
        columns: The file's name of a column by its name here, such as `{"candidate": "summary"}`.
        documents: Keep only so many documents, evenly spaced.

    Raises:
        LLMGymError: The file, a row or a column is not what it must be.
    """
    rows = _renamed(Path(path), list(read_rows(path)), dict(columns or {}))
    present = {name for _, row in rows for name in row}
    kinds = [kind for kind, required in KINDS.items() if present.issuperset(required)]
    if len(kinds) != 1:
        expected = " or ".join(f"{', '.join(required)} ({kind})" for kind, required in KINDS.items())
        raise LLMGymError(
            f"{path} must have the columns {expected}, it has {', '.join(sorted(present))}; name others with "
            f"--columns {RATINGS[1]}=NAME"
        )
    (kind,) = kinds
    where = [f"{path}:{number}" for number, _ in rows]
    for place, (_, row) in zip(where, rows, strict=True):
        _check_strings(place, row, [name for name in KINDS[kind] if name not in JUDGED])
    source = KINDS[kind][0]
    ids = [row.get("id") if kind == "ratings" else None for _, row in rows]
    names = [row[source] if i in (None, "") else str(i) for i, (_, row) in zip(ids, rows, strict=True)]
    if kind == "ratings":
        _check_sources(where, rows, names)
    every = list(dict.fromkeys(names))
    kept = evenly_spaced(every, documents or len(every))
    numbers = {name: number for number, name in enumerate(kept)}
    chosen = [(w, row, numbers[n]) for w, (_, row), n in zip(where, rows, names, strict=True) if n in numbers]
    if kind == "ratings":
        return _ratings(chosen)
    return _pairs(chosen if kind == "pairs" else _sided(chosen))


def _sided(rows: list[tuple[str, dict[str, Any], int]]) -> list[tuple[str, dict[str, Any], int]]:
    """Return preferences as pairs; the chosen text is `a` in every other row, so that the side tells nothing."""
    sided = []
    for k, (where, row, number) in enumerate(rows):
        a, b = (row["chosen"], row["rejected"]) if k % 2 == 0 else (row["rejected"], row["chosen"])
        pair = {"prompt": row["source"], "response_a": a, "response_b": b, "preferred": "ab"[k % 2]}
        sided.append((where, {**row, **pair}, number))
    return sided


def _renamed(path: Path, rows: Numbered, columns: dict[str, str]) -> Numbered:
    """Return the rows under the names used here."""
    for name, column in columns.items():
        if name not in COLUMNS:
            raise LLMGymError(f"unknown column {name!r}: a file of judgements has {', '.join(COLUMNS)}")
        if not any(column in row for _, row in rows):
            raise LLMGymError(f"{path} has no column {column!r}, only {', '.join(sorted(rows[0][1]))}; mend --columns")
    taken = set(columns.values())
    return [
        (n, {k: v for k, v in row.items() if k not in taken} | {k: row[c] for k, c in columns.items() if c in row})
        for n, row in rows
    ]


def _check_strings(where: str, row: dict[str, Any], names: list[str]) -> None:
    for name in names:
        if not isinstance(row.get(name), str):
            raise LLMGymError(f"{where}: column {name!r} must be a string, not {json.dumps(row.get(name))[:40]}")
    if not isinstance(row.get("reference", ""), str | None):
        raise LLMGymError(f"{where}: column 'reference' must be a string, not {json.dumps(row['reference'])[:40]}")


def _check_sources(where: list[str], rows: Numbered, names: list[str]) -> None:
    first: dict[str, tuple[str, str]] = {}
    for place, (_, row), name in zip(where, rows, names, strict=True):
        before, source = first.setdefault(name, (place, row["source"]))
        if source != row["source"]:
            raise LLMGymError(
                f"{place}: the document {name[:40]!r} has another source at {before}; the rows of a document share "
                "their 'id' and their source"
            )


def _episode(row: dict[str, Any], source: str, text: str, number: int) -> Episode:
    example = {"id": str(number), **{name: value for name, value in row.items() if name not in HIDDEN}}
    return Episode(example, source=source, text=text, reference=row.get("reference"))


def _ratings(rows: list[tuple[str, dict[str, Any], int]]) -> Judgements:
    rated = [_human(where, row["human"]) for where, row, _ in rows]
    dimensions = list(rated[0])
    for (where, _, _), ratings in zip(rows, rated, strict=True):
        if set(ratings) != set(dimensions):
            raise LLMGymError(
                f"{where}: 'human' has {', '.join(ratings)} where other rows have {', '.join(dimensions)}; "
                "every row needs the same dimensions"
            )
    documents = np.array([number for _, _, number in rows])
    human = {name: np.array([ratings[name] for ratings in rated]) for name in dimensions}
    episodes = [_episode(row, row["source"], row["candidate"], number) for _, row, number in rows]
    better = {name: _comparisons(values, documents) for name, values in human.items()}
    return Judgements("ratings", episodes, documents, human, better)


def _human(where: str, value: Any) -> dict[str, float]:
    """Return ratings by dimension; a lone number is the dimension `human`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            pass  # told below, as any other value that is no number
    ratings = value if isinstance(value, dict) else {"human": value}
    for rating in ratings.values():
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not math.isfinite(rating):
            raise LLMGymError(
                f"{where}: 'human' must be a number or an object of numbers, not {json.dumps(value, default=str)[:60]}"
            )
    if not ratings:
        raise LLMGymError(f"{where}: 'human' has no rating; give a number or an object of numbers")
    return {name: float(rating) for name, rating in ratings.items()}


def _comparisons(ratings: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the places of all two texts of a document that were rated differently, the better one first."""
    found = [np.zeros((0, 2), int)]
    for document in range(documents.max() + 1):
        (places,) = np.nonzero(documents == document)
        one, other = np.nonzero(ratings[places][:, None] > ratings[places])
        found.append(np.stack([places[one], places[other]], -1))
    return np.concatenate(found)


def _pairs(rows: list[tuple[str, dict[str, Any], int]]) -> Judgements:
    better = []
    for place, (where, row, _) in enumerate(rows):
        if row["preferred"] in PREFERRED:
            better.append([place + len(rows) * side for side in PREFERRED[row["preferred"]]])
        elif row["preferred"] != "tie":
            raise LLMGymError(f"{where}: 'preferred' must be a, b or tie, not {json.dumps(row['preferred'])[:40]}")
    episodes = [
        _episode(row, row["prompt"], row[name], number)
        for name in ("response_a", "response_b")
        for _, row, number in rows
    ]
    documents = np.array([number for _, _, number in rows] * 2)
    compared = np.array(better, int).reshape(-1, 2)
    return Judgements("pairs", episodes, documents, {}, {"preferred": compared}, len(rows) - len(better))
