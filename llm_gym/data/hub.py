"""Rows of a data set from the Hugging Face hub, or of a local folder laid out like one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_gym.errors import LLMGymError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


class HubData(NamedTuple):
    """A well-known data set on the hub.

    Attributes:
        name: `owner/name` or `owner/name:config`.
        columns: Its name of a column by the task's name of it, where they differ, as for `--columns`.
        values: For a column of the task, what the data set's values stand for, such as `{"label": {0: "negative"}}`.
        convert: Where renaming is not enough: makes columns of the task out of a row, or None where there are none.
    """

    name: str
    columns: dict[str, str] = {}
    values: dict[str, dict[Any, str]] = {}
    convert: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None


def is_hub_id(data: str) -> bool:
    """Return whether `data` looks like a data set's name, `owner/name` or `owner/name:config`.

    >>> is_hub_id("knkarthick/dialogsum"), is_hub_id("data/rows.jsonl"), is_hub_id("../rows")
    (True, True, False)
    """
    return HUB_ID.fullmatch(data) is not None and not data.startswith(".")


def load_hub(name: str) -> Any:
    """Return the tables of a data set by split, a `datasets.DatasetDict`; nothing in it is executed.

    Raises:
        LLMGymError: `datasets` is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise LLMGymError(f"reading {name} needs datasets: pip install llm-gym[hub]") from error
    path, _, config = name.partition(":")
    try:
        return datasets.load_dataset(path, config or None)
    except Exception as error:  # datasets, its file systems and its network raise many kinds
        what = " ".join(str(error).split())[:200]
        raise LLMGymError(
            f"cannot load data set {name!r} ({type(error).__name__}: {what}); "
            "check its name and the network, or give a local file"
        ) from error


def read_hub(name: str, group: Callable[[dict[str, Any]], Any] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read all splits of a data set; nothing in it is executed.

    A `split` column says where each row belongs; numbered classes are given by their names. A data set without a test
    or validation split gives a tenth of its training rows to each that it lacks, chosen by a hash of the row, or of
    what `group` returns for it.

    Args:
        name: `owner/name`, `owner/name:config`, or a local folder of JSONL, CSV or Parquet files by split.
        group: Rows for which it returns the same value stay together, such as questions about one passage.

    Returns:
        An iterator of (row number from 1, row).

    Raises:
        LLMGymError: `datasets` is not installed, or the data set cannot be loaded or has no training rows.
    """
    found = load_hub(name)
    rows = [
        {**row, **_class_names(row, part.features), "split": SPLITS[split]}
        for split, part in found.items()
        if split in SPLITS
        for row in part
    ]
    if not any(row["split"] == "train" for row in rows):
        raise LLMGymError(f"data set {name!r} has splits {', '.join(found)}, but no 'train'; give a file instead")
    yield from enumerate(_completed(rows, group), 1)


def _class_names(row: dict[str, Any], features: Any) -> dict[str, Any]:
    """Return the columns of `row` whose numbers the data set has names for, by name; -1 is a missing label."""
    named = {column: row[column] for column, feature in features.items() if hasattr(feature, "int2str")}
    return {
        column: None if number is None or number < 0 else features[column].int2str(number)
        for column, number in named.items()
    }


def _completed(rows: list[dict[str, Any]], group: Callable[[dict[str, Any]], Any] | None) -> list[dict[str, Any]]:
    """Move a tenth of the training rows into each split that is missing."""
    missing = [split for split in ("test", "validation") if all(row["split"] != split for row in rows)]
    if not missing:
        return rows
    groups: dict[bytes, list[dict[str, Any]]] = {}
    for row in rows:
        if row["split"] == "train":
            groups.setdefault(_digest(group(row) if group else row), []).append(row)
    share = max(1, sum(map(len, groups.values())) // 10)
    order = iter(sorted(groups))
    for split in missing:
        moved = 0
        while moved < share and (digest := next(order, None)) is not None:
            for row in groups[digest]:
                row["split"] = split
            moved += len(groups[digest])
    return rows


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
