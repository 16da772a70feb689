"""Join a data set of BEIR's layout into rows for `Retrieval-v0`.

    python -m llm_gym.data.beir mteb/scifact scifact
    llm-gym evaluate Retrieval-v0 --data scifact/needs.jsonl

BEIR keeps three tables: the configs `corpus` and `queries`, with `_id` and `text`, and `default`, with `query-id`,
`corpus-id` and `score` by split (Thakur et al. 2021).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm_gym.data.files import write_jsonl
from llm_gym.data.hub import SPLITS, load_hub
from llm_gym.errors import LLMGymError


def join(name: str, folder: str | Path) -> Path:
    """Write `needs.jsonl` and `documents.jsonl` into a folder.

    Args:
        name: A hub data set `owner/name`, or a local folder laid out like one.
        folder: Where to write; `needs.jsonl` names the documents by their absolute path.

    Returns:
        The path of `needs.jsonl`.

    Raises:
        LLMGymError: The data set cannot be loaded, or is not of this layout.
    """
    folder = Path(folder).absolute()
    documents = folder / "documents.jsonl"
    corpus, queries = (_table(name, config, {"_id", "text"}) for config in ("corpus", "queries"))
    texts = {row["_id"]: row["text"] for part in queries.values() for row in part}
    needs = []
    for split, part in _table(name, "default", {"query-id", "corpus-id", "score"}).items():
        relevant: dict[str, list[str]] = {}
        for row in part:
            if row["score"] > 0 and row["query-id"] in texts:
                relevant.setdefault(row["query-id"], []).append(row["corpus-id"])
        for query, found in relevant.items():
            row = {"id": query, "need": texts[query], "relevant": found, "documents": str(documents)}
            needs.append({**row, "split": SPLITS.get(split, "test")})
    if not needs:
        raise LLMGymError(f"data set {name!r} judges no document relevant; give one of BEIR's layout")
    kept = (
        {"id": row["_id"], "title": row.get("title") or "", "text": row["text"]}
        for part in corpus.values()
        for row in part
    )
    write_jsonl(documents, kept)
    write_jsonl(folder / "needs.jsonl", needs)
    return folder / "needs.jsonl"


def _table(name: str, config: str, columns: set[str]) -> Any:
    """Return the rows of a config by split; each split has `columns`."""
    parts = load_hub(f"{name}:{config}")
    for part in parts.values():
        if missing := columns - set(part.column_names):
            raise LLMGymError(
                f"config {config!r} of data set {name!r} has no {', '.join(sorted(missing))}; give one of BEIR's layout"
            )
    return parts


def main() -> None:
    """Join one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="hub data set, or a local folder laid out like one")
    parser.add_argument("folder", help="where to write")
    arguments = parser.parse_args()
    try:
        print(join(arguments.name, arguments.folder))
    except LLMGymError as error:
        parser.exit(1, f"error: {error}\n")
    except OSError as error:
        parser.exit(1, f"error: cannot write {arguments.folder}: {error.strerror or error}; give another folder\n")


if __name__ == "__main__":
    main()
