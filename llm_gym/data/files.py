"""Rows out of JSONL, CSV and Parquet files, each with the line it stands on."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_gym.errors import LLMGymError

Rows = Iterator[tuple[int, dict[str, Any]]]


def read_rows(path: str | Path) -> Rows:
    """Read a file of rows; the suffix says which kind it is.

    Args:
        path: A `.jsonl` or `.json` file with one JSON object a line, a `.csv` file with a header, or a
            `.parquet` file. Text is UTF-8, with or without a byte order mark; blank lines are skipped.

    Returns:
        An iterator of (line number from 1, row). A CSV row that spans several lines has the number of its
        first; in a Parquet file, rows are counted. Values are as the file has them: all strings in CSV.

    Raises:
        LLMGymError: At once if the file is missing, a folder or of another kind; while iterating if it
            cannot be read, holds a malformed row (its line is named) or no row at all.
    """
    path = Path(path)
    if not os.path.exists(path):  # unlike Path.exists, False also for a name too long to exist
        raise LLMGymError(f"no such file: {path}; {_similar(path)}")
    if path.is_dir():
        raise LLMGymError(f"{path} is a folder: give one file in it ({', '.join(READERS)})")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise LLMGymError(f"cannot read {path}: its suffix must be one of {', '.join(READERS)}")
    return _guarded(path, reader)


def write_aside(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def whole_path(name: str) -> str:
    """Return the name of a file or folder as an absolute path, so that it holds from any other folder too.

    What there is no file or folder of, such as a model's name, stays as it is.
    """
    return os.path.abspath(name) if os.path.exists(name) else name


def new_file(path: str | Path) -> Path:
    """Return the path of a file or folder that is going to be written.

    Raises:
        LLMGymError: There is something at that place already.
    """
    path = Path(path)
    if path.exists():
        raise LLMGymError(f"{path} exists already and nothing is overwritten: delete it, or pass another --out")
    return path


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSONL file in one piece, where others may be reading and appending too."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def _guarded(path: Path, reader: Callable[[Path], Rows]) -> Rows:
    """Yield the reader's rows; an unreadable file or one without rows is an error."""
    empty = True
    try:
        for numbered in reader(path):
            empty = False
            yield numbered
    except OSError as error:
        what = error.strerror or " ".join(str(error).split())
        raise LLMGymError(f"cannot read {path}: {what}; check the file") from error
    if empty:
        raise LLMGymError(f"{path} has no rows: give a file with at least one")


def _similar(path: Path) -> str:
    """Return a hint for a missing file: close names in its folder."""
    folder = path.parent
    if not os.path.isdir(folder):
        return f"there is no folder {folder}, check the path"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in READERS)
    except OSError:
        names = []
    close = [str(folder / name) for name in difflib.get_close_matches(path.name, names)]
    return f"did you mean {' or '.join(close)}?" if close else "check the path"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield decoded lines with their numbers; decoding line by line tells where a bad byte is."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"expected UTF-8 text, found byte 0x{error.object[error.start]:02x}"
                raise LLMGymError(f"{path}:{number}: {what}; save the file as UTF-8") from error


def _read_jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            what = f"malformed JSON ({error.msg} at column {error.colno})"
            raise LLMGymError(f"{path}:{number}: {what}; each line must be one JSON object") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets as deep
            raise LLMGymError(f"{path}:{number}: JSON too large to read ({error}); mend the line") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise LLMGymError(f"{path}:{number}: each line must be one JSON object, found a {kind}")
        yield number, row


def _read_csv(path: Path) -> Rows:
    # strict: an unclosed quote is an error instead of a row that swallows the rest of the file
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            what = f"malformed CSV ({error})"
            raise LLMGymError(f"{path}:{number}: {what}; mend the row, or use JSONL") from error
        if cells is None:
            return
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        if header is None:
            header = _header(path, number, cells)
        elif len(cells) != len(header):
            raise LLMGymError(
                f"{path}:{number}: malformed CSV ({len(cells)} cells under a header of {len(header)}); "
                "quote cells that hold commas"
            )
        else:
            yield number, dict(zip(header, cells, strict=True))


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LLMGymError(f"{path}:{number}: column {twice[0]!r} is in the header twice; rename one")
    return names


def _read_parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise LLMGymError(f"reading {path} needs pyarrow: pip install llm-gym[parquet]") from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = file.read().to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        what = " ".join(str(error).split())
        raise LLMGymError(f"{path} is not a sound Parquet file ({what}); write it again") from error
    yield from enumerate(rows, 1)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
