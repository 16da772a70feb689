"""Examples for a task: rows checked against its columns, and divided into splits that do not overlap."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_gym.data.examples import Store
from llm_gym.data.files import READERS, read_rows
from llm_gym.data.hub import HubData, is_hub_id, read_hub
from llm_gym.errors import LLMGymError

if TYPE_CHECKING:
    from llm_gym.tasks.base import Task

SPLITS = ("train", "validation", "test", "all")
LIST_COLUMNS = frozenset(
    {
        "facts",
        "briefing",
        "elements",
        "answers",
        "relevant",
        "liked",
        "disliked",
        "held_out",
        "told",
        "forbidden",
        "turns",
    }
)
"""Columns that hold a list of strings."""
MAYBE_EMPTY_COLUMNS = frozenset({"answers"})
"""Those of them in which an empty list says something."""
OBJECT_COLUMNS = frozenset({"goals", "asked"})
"""Columns that hold a list of JSON objects."""
TRIPLE_COLUMNS = frozenset({"triples"})
"""Columns that hold a list of `[subject, relation, object]`; a column that is in none of the three is a string."""
MARKED = re.compile(r"<(triplet|subj|obj)>")

CONSTANT = "="
"""Before what stands for a column: not the name of the file's column, but the value of every row."""


class Row(NamedTuple):
    """A row of a data file.

    Attributes:
        number: Its line in the file, from 1.
        raw: All of its columns, as in the file.
        example: Its id (a string) and the task's columns under the task's names, checked.
    """

    number: int
    raw: dict[str, Any]
    example: dict[str, Any]


def load_examples(
    data: str | Path | None,
    split: str,
    task: Task,
    columns: Mapping[str, str] | None = None,
) -> Sequence[dict[str, Any]]:
    """Return the examples of one split.

    Rows are read one by one. Where they do not fit into memory (`llm_gym.data.examples`), a temporary file holds them,
    and the sequence that is returned reads each when it is asked for.

    A file with a `split` column is divided by it; a row marked `all` is in every split, as in toy tasks whose few rows
    are to be fitted. Any other is divided by the rank of the SHA-256 of each id (of the text, where a row has no id),
    so the order of rows does not matter: a tenth is test, a tenth validation, at least one of each, the rest train.
    Rows with the same value of the task's first column stay together.

    Args:
        data: A JSONL, CSV or Parquet file, a hub data set `owner/name` or `owner/name:config`, a folder of files
            by split, or a short name of the task's `public` data sets; None for the corpus bundled with the task.
        split: One of `train`, `validation`, `test`, `all`.
        task: Names the columns, and the bundled corpus.
        columns: The file's name of a column by the task's name of it, such as `{"document": "dialogue"}`. A dot
            leads into an object, `{"source": "translation.de"}`; `{"languages": "=de-en"}` is a value for every row,
            which `id` cannot have. The task knows the columns of its `public` data sets; what is given here goes
            before.

    Returns:
        A dict for each example, in the file's order: `id` (a string, `row-<line>` where the row has none),
        every required column, and the optional ones that the row has.

    Raises:
        LLMGymError: The file, a row, a column or the split is not what it must be.
    """
    if split not in SPLITS:
        raise LLMGymError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if data is None:
        resource = files("llm_gym.data").joinpath("corpora", f"{task.corpus}.jsonl")
        if not resource.is_file():
            raise LLMGymError(f"task {task.name!r} has no corpus {task.corpus!r}: pass data='FILE.jsonl'")
        with as_file(resource) as path:
            return load_examples(path, split, task, columns)
    data, columns, _ = _resolved(data, task, columns)
    path, store = Path(data), Store()
    column, id_column = columns.get("split", "split"), columns.get("id", "id")
    lines: dict[str, int] = {}
    marks: list[tuple[int, Any]] = []
    ranks: list[tuple[bytes, bytes]] = []
    divided = column.startswith(CONSTANT)
    for row in iter_examples(data, task, columns):
        _check_unique(path, row, lines)
        divided |= column in row.raw
        marks.append((row.number, _value(row.raw, column)))
        ranks.append(_rank(row, task, id_column))
        store.append(row.example)
    if divided:
        names = [_named_split(path, number, mark, column) for number, mark in marks]
    elif split == "all":
        names = [split] * len(marks)
    else:
        names = _ranked_splits(path, ranks)
    chosen = [place for place, name in enumerate(names) if name in (split, "all") or split == "all"]
    if not chosen:
        held = ", ".join(name for name in SPLITS if name in names)
        raise LLMGymError(
            f"{path} has no {split} rows, only {held}: ask for one of these, or mark some in a column "
            "(--columns split=NAME)"
        )
    return store.pick(chosen)


def read_examples(path: str | Path, task: Task, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read a whole file and check every row against the task's columns; ids may repeat.

    Args:
        path: A JSONL, CSV or Parquet file, or what else `load_examples` reads.
        task: Names the columns.
        columns: As in `load_examples`.

    Returns:
        All rows, in the file's order.

    Raises:
        LLMGymError: As for `load_examples`.
    """
    return list(iter_examples(path, task, columns))


def iter_examples(path: str | Path, task: Task, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Yield what `read_examples` returns, row by row; the data are gone through twice, first for their columns."""
    data, columns, known_set = _resolved(path, task, columns)
    path = Path(data)
    known = (*task.required, *task.optional, "id", "split")
    for name in columns:
        if name not in known:
            raise LLMGymError(
                f"unknown column {name!r}: task {task.name!r} has {', '.join(known)}; "
                f"write --columns {task.required[0]}=NAME"
            )
    if columns.get("id", "").startswith(CONSTANT):
        raise LLMGymError(f"id={columns['id']!r} gives every row the same id: name a column with --columns id=NAME")
    group = columns.get(task.required[0], task.required[0])
    present = list(dict.fromkeys(name for _, row in _converted(path, group, known_set) for name in row))
    for name in dict.fromkeys((*task.required, *columns)):
        column = columns.get(name, name)
        if column not in present and not column.startswith(CONSTANT):
            raise LLMGymError(
                f"{path} has no column {column!r}, only {', '.join(map(repr, present)) or 'empty rows'}: "
                f"name the right one with --columns {name}=NAME"
            )
    for number, row in _converted(path, group, known_set):
        yield Row(number, row, _example(path, number, row, task, columns, known_set.values))


def _converted(path: Path, group: str, known: HubData) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbered rows as `_made` returns them; those with the same value of the column `group` stay together.

    Where there is no such column, as `group` may be a constant, only equal rows do.
    """
    for number, raw in read_data(path, lambda raw: (_made(raw, known) or raw).get(group, raw)):
        if (row := _made(raw, known)) is not None:
            yield number, row


def _made(raw: dict[str, Any], known: HubData) -> dict[str, Any] | None:
    """Return the row, flat, with what the data set's conversion makes of it; None where that makes nothing of it."""
    made = known.convert(raw) if known.convert else {}
    return None if made is None else _flat({**raw, **made})


def _resolved(
    data: str | Path, task: Task, columns: Mapping[str, str] | None
) -> tuple[str | Path, dict[str, str], HubData]:
    """Return name and columns of data, and the data set if the task knows it; a file of its short name goes first."""
    known = None if os.path.exists(data) else task.public.get(str(data))
    known = known or next((public for public in task.public.values() if public.name == str(data)), None)
    if known is None:
        return data, dict(columns or {}), HubData(str(data))
    return known.name, {**known.columns, **(columns or {})}, known


def read_data(
    data: str | Path, group: Callable[[dict[str, Any]], Any] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the numbered rows of a file, a hub data set or a folder; a file of that name goes first.

    Where a data set lacks a split, rows for which `group` returns the same value stay together.
    """
    path = Path(data)
    if os.path.isdir(path) or (
        not os.path.exists(path) and path.suffix.lower() not in READERS and is_hub_id(str(data))
    ):
        return read_hub(str(data), group)
    return read_rows(path)


def _value(raw: dict[str, Any], column: str) -> Any:
    return column.removeprefix(CONSTANT) if column.startswith(CONSTANT) else raw.get(column)


def _flat(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the entries of its objects as columns too, under names with a dot.

    >>> _flat({"id": 1, "translation": {"de": "Guten Tag."}})["translation.de"]
    'Guten Tag.'
    """
    objects = {name: value for name, value in raw.items() if isinstance(value, dict)}
    inner = {f"{name}.{key}": value for name, found in objects.items() for key, value in found.items()}
    return {**inner, **raw} if inner else raw


def _example(
    path: Path,
    number: int,
    raw: dict[str, Any],
    task: Task,
    columns: Mapping[str, str],
    values: Mapping[str, Mapping[Any, str]],
) -> dict[str, Any]:
    """Return the row under the task's names, its types checked."""
    example: dict[str, Any] = {"id": _identity(path, number, raw.get(columns.get("id", "id")))}
    for name in (*task.required, *task.optional):
        column = columns.get(name, name)
        value = _value(raw, column)
        where = f"{path}:{number}: column {column!r}"
        if name in values and isinstance(value, str | int):
            value = values[name].get(value, value)
        if not _absent(value) or (value == [] and name in MAYBE_EMPTY_COLUMNS):
            example[name] = _typed(name, where, path, value)
        elif name in task.required:
            state = "empty" if column in raw else "missing"
            raise LLMGymError(f"{where} is {state}; every row needs it")
    if wrong := task.check(example):
        raise LLMGymError(f"{path}:{number}: {wrong}; mend the row")
    return example


def _typed(name: str, where: str, path: Path, value: Any) -> Any:
    if name in LIST_COLUMNS:
        return _strings(where, path, value)
    if name in TRIPLE_COLUMNS:
        return _triples(where, path, value)
    if name not in OBJECT_COLUMNS:
        return _string(where, value)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise LLMGymError(f"{where} must be a list of objects, not {_short(value)}; use JSONL or Parquet")
    return value


def _absent(value: Any) -> bool:
    """Whether a value stands for nothing: null, NaN (how pandas writes null), blank text or an empty list."""
    return value is None or value != value or value == [] or (isinstance(value, str) and not value.strip())


def _identity(path: Path, number: int, value: Any) -> str:
    if _absent(value):
        return f"row-{number}"
    if isinstance(value, (list, dict, bool)):
        raise LLMGymError(f"{path}:{number}: column 'id' must be a string or a number, not {_short(value)}")
    return _string(f"{path}:{number}: column 'id'", str(value))


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise LLMGymError(f"{where} must be a string, not {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which no tokenizer takes
        what = f"has half a character at position {error.start}"
        raise LLMGymError(f"{where} {what}; expected valid Unicode, remove it") from error
    return value


def _strings(where: str, path: Path, value: Any) -> list[str]:
    """Return a list of strings; in CSV, which has no lists, from a JSON list or a ;-separated string."""
    if isinstance(value, str) and path.suffix.lower() == ".csv":
        value = _split_cell(where, value)
    if not isinstance(value, list) or any(_absent(item) for item in value):
        raise LLMGymError(f"{where} must be a list of non-empty strings, not {_short(value)}")
    return [_string(f"{where}, item {k}", item) for k, item in enumerate(value, 1)]


def _triples(where: str, path: Path, value: Any) -> list[list[str]]:
    """Return lists of three strings; each may also be written `subject | relation | object`, or all as REBEL does."""
    if isinstance(value, str) and MARKED.match(value.lstrip()):
        value = _marked_triples(value)
    elif isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        value = [item.split("|") for item in _strings(where, path, value)]
    if not isinstance(value, list) or not all(isinstance(item, list) and len(item) == 3 for item in value):
        raise LLMGymError(f"{where} must be a list of [subject, relation, object], not {_short(value)}")
    return [[part.strip() for part in _strings(f"{where}, item {k}", path, item)] for k, item in enumerate(value, 1)]


def _marked_triples(text: str) -> list[list[str]]:
    """Take apart REBEL's `<triplet> subject <subj> object <obj> relation`, where a subject may have several pairs.

    >>> _marked_triples("<triplet> Oda <subj> Halvdal <obj> residence <subj> Tindra <obj> founded")
    [['Oda', 'residence', 'Halvdal'], ['Oda', 'founded', 'Tindra']]
    """
    triples, subject, thing = [], "", ""
    _, *pieces = MARKED.split(text)
    for mark, piece in zip(pieces[::2], pieces[1::2], strict=True):
        if mark == "triplet":
            subject = piece.strip()
        elif mark == "subj":
            thing = piece.strip()
        else:
            triples.append([subject, piece.strip(), thing])
    return triples


def _split_cell(where: str, cell: str) -> Any:
    if not cell.lstrip().startswith("["):
        return [part.strip() for part in cell.split(";") if part.strip()]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise LLMGymError(f"{where} is no JSON list: {_short(cell)}; mend it, or separate by ;") from error


def _short(value: Any) -> str:
    """Return a value and its type on one short line."""
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"


def _check_unique(path: Path, row: Row, lines: dict[str, int]) -> None:
    name = row.example["id"]
    if name in lines:
        raise LLMGymError(
            f"{path}: id {name!r} is on lines {lines[name]} and {row.number}: "
            "ids must be unique (another column with --columns id=NAME)"
        )
    lines[name] = row.number


def _named_split(path: Path, number: int, value: Any, column: str) -> str:
    if not isinstance(value, str) or value.strip() not in SPLITS:
        raise LLMGymError(
            f"{path}:{number}: column {column!r} must be train, validation, test or all, not {_short(value)}"
        )
    return value.strip()


def _rank(row: Row, task: Task, id_column: str) -> tuple[bytes, bytes]:
    """Return hashes of what keeps rows together, and of what they are ranked by: neither order nor neighbours."""
    # an id made from the line number changes with the order, the text does not
    nameless = _absent(row.raw.get(id_column))
    key = json.dumps([row.example[name] for name in task.required]) if nameless else row.example["id"]
    group = json.dumps(row.example[task.required[0]])
    return hashlib.sha256(group.encode()).digest(), hashlib.sha256(key.encode()).digest()


def _ranked_splits(path: Path, rows: list[tuple[bytes, bytes]]) -> list[str]:
    """Divide rows by the rank of their group's least hash."""
    ranks: dict[bytes, bytes] = {}
    for group, digest in rows:
        ranks[group] = min(digest, ranks.get(group, digest))
    if len(ranks) < 3:
        raise LLMGymError(
            f"{path} has {len(ranks)} different texts, too few for train, validation and test: "
            "add rows (3 at least), or pass split='all'"
        )
    held = max(1, len(ranks) // 10)
    order = sorted(ranks, key=lambda group: ranks[group])
    split = dict.fromkeys(order, "train")
    split.update(dict.fromkeys(order[:held], "test"))
    split.update(dict.fromkeys(order[held : 2 * held], "validation"))
    return [split[group] for group, _ in rows]
