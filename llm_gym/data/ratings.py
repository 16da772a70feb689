"""Turn a table of ratings into rows for `Recommendation-v0`, one for each person, and a catalogue.

    python -m llm_gym.data.ratings ashraq/movielens_ratings movielens
    python -m llm_gym.data.ratings ml-latest-small/ratings.csv movielens --items ml-latest-small/movies.csv
    python -m llm_gym.data.ratings Video_Games.jsonl games --items meta_Video_Games.jsonl
    llm-gym evaluate Recommendation-v0 --data movielens/users.jsonl

A table of ratings has a row for each person and title (Harper and Konstan 2015, MovieLens; Hou et al. 2024, Amazon
Reviews). The columns of these three are known; other tables' are named by `--columns user=... title=... rating=...`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_gym.data.files import write_jsonl
from llm_gym.data.source import read_data
from llm_gym.errors import LLMGymError

NAMES: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userId"),
    "item": ("item", "movie_id", "movieId", "parent_asin"),
    "title": ("title",),
    "rating": ("rating",),
    "genres": ("genres", "categories"),
    "time": ("timestamp",),
}
"""What the columns of known tables are called."""
HELD_OUT, HISTORY, DISLIKED = 4, 8, 2
LIKED, HATED = 4.0, 2.5  # at least, at most; of five stars


def join(
    data: str | Path,
    folder: str | Path,
    items: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Write `users.jsonl` and `items.jsonl` into a folder.

    Of each person, the last four titles that got at least four stars are held out, and at most eight before them are
    the history, with at most two of those that got 2.5 stars or fewer. People with fewer than eight likes are left out.

    Args:
        data: The ratings, a file or a hub data set: with a column `timestamp`, or in the order in which they were made.
        folder: Where to write; `users.jsonl` names the catalogue by its absolute path.
        items: A table of the titles and genres, if the ratings name items by number alone.
        columns: The table's names of `user`, `item`, `title`, `rating`, `genres` and `time`, where they are not known.

    Returns:
        The path of `users.jsonl`.

    Raises:
        LLMGymError: A table cannot be read or lacks a column, `columns` has an unknown name, a rating or time is no
            number, or nobody likes enough.
    """
    folder, columns = Path(folder).absolute(), columns or {}
    if unknown := [name for name in columns if name not in NAMES]:
        raise LLMGymError(f"unknown column {unknown[0]!r}: known are {', '.join(NAMES)}; write --columns user=NAME")
    ratings = list(read_data(data))
    described = ratings if items is None else list(read_data(items))
    if "genres" in columns:
        _column(described[0][1], "genres", columns, data if items is None else items)
    about = {} if items is None else _by_number([row for _, row in described], columns)
    titles: dict[str, dict[str, str]] = {}
    people: dict[str, dict[str, float]] = {}
    first = ratings[0][1]
    user, rating, item = (_column(first, name, columns, data) for name in ("user", "rating", "item"))
    when = _column(first, "time", columns, data) if "time" in columns else NAMES["time"][0]
    if when in first:
        ratings.sort(key=lambda numbered: _number(data, numbered[0], numbered[1], when))
    for number, given in ratings:
        thing = about.get(str(given[item]), {}) if items is not None else _described(given, columns, data)
        if thing.get("title"):
            titles.setdefault(thing["title"], thing)
            people.setdefault(str(given[user]), {})[thing["title"]] = _number(data, number, given, rating)
    rows = [row for name, stars in people.items() if (row := _person(name, stars, folder / "items.jsonl"))]
    if not rows:
        raise LLMGymError(f"nobody in {data} gave {2 * HELD_OUT} titles {LIKED} stars or more; give more ratings")
    write_jsonl(folder / "items.jsonl", titles.values())
    write_jsonl(folder / "users.jsonl", rows)
    return folder / "users.jsonl"


def _person(name: str, stars: dict[str, float], catalogue: Path) -> dict[str, Any] | None:
    """Return the row of somebody, None who likes too little."""
    likes = [title for title, given in stars.items() if given >= LIKED]
    if len(likes) < 2 * HELD_OUT:
        return None
    *before, _, _, _, _ = likes
    disliked = [title for title, given in stars.items() if given <= HATED][-DISLIKED:]
    row = {"id": name, "liked": before[-HISTORY:], "held_out": likes[-HELD_OUT:], "catalogue": str(catalogue)}
    return {**row, "disliked": disliked} if disliked else row


def _by_number(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    number = _column(rows[0], "item", columns, "the table of items")
    return {str(row[number]): _described(row, columns, "the table of items") for row in rows}


def _described(row: dict[str, Any], columns: Mapping[str, str], data: Any) -> dict[str, str]:
    """Return title and genres of a row; genres may be a list or a string."""
    title = row[_column(row, "title", columns, data)]
    named = columns.get("genres", next((name for name in NAMES["genres"] if name in row), ""))
    genres = row.get(named) or ""
    text = genres if isinstance(genres, str) else "|".join(map(str, genres))
    return {"title": " ".join(str(title or "").split()), "genres": text.replace(", ", "|")}


def _column(row: dict[str, Any], name: str, columns: Mapping[str, str], data: Any) -> str:
    for known in (columns[name],) if name in columns else NAMES[name]:
        if known in row:
            return known
    raise LLMGymError(f"{data} has no column for {name!r}, only {', '.join(row)}; write --columns {name}=NAME")


def _number(data: Any, number: int, row: dict[str, Any], column: str) -> float:
    value = row.get(column)
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise LLMGymError(f"{data}:{number}: column {column!r} must be a number, not {value!r:.40}; mend the row")
    return found


def main() -> None:
    """Turn one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the ratings: a file, or a hub data set")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--items", help="table of titles, where the ratings name items by number")
    parser.add_argument("--columns", nargs="*", default=(), metavar="NAME=COLUMN")
    arguments = parser.parse_args()
    try:
        columns = dict(pair.split("=", 1) for pair in arguments.columns)
    except ValueError:
        parser.error("--columns takes NAME=COLUMN, such as user=reader")
    try:
        print(join(arguments.data, arguments.folder, arguments.items, columns))
    except LLMGymError as error:
        parser.exit(1, f"error: {error}\n")
    except OSError as error:
        parser.exit(1, f"error: cannot write {arguments.folder}: {error.strerror or error}; give another folder\n")


if __name__ == "__main__":
    main()
