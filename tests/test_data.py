"""Data files, splits and the bundled corpus."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_gym.data import load_examples, read_examples, read_rows
from llm_gym.errors import LLMGymError
from llm_gym.tasks.summary import TextSummary

TASK = TextSummary()
GENRES = ("news", "science", "howto", "mail", "minutes", "reviews", "stories")


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def documents(n: int, **more: str) -> list[dict]:
    return [{"id": f"d{k}", "document": f"Text {k}.", **more} for k in range(n)]


def error(path: str | Path, split: str = "all", columns: dict[str, str] | None = None) -> str:
    """Load what must not load; return the message, which is one line."""
    with pytest.raises(LLMGymError) as caught:
        load_examples(str(path), split, TASK, columns)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# --- the three kinds of file --------------------------------------------------------------------------------


ROWS = [
    {"id": "a", "document": "A long text, with commas.", "summary": "Short.", "facts": ["x", "y z"]},
    {"id": "b", "document": 'Two\nlines and a "quote".', "summary": None, "facts": None},
    {"id": "c", "document": "Žluťoučký kůň", "summary": "Horse.", "facts": ["kůň"]},
]
EXAMPLES = [ROWS[0], {"id": "b", "document": ROWS[1]["document"]}, ROWS[2]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".JSONL"])
def test_json_lines_are_read_and_null_optional_values_become_absent(tmp_path, suffix):
    path = write_jsonl(tmp_path / f"rows{suffix}", ROWS)
    assert load_examples(str(path), "all", TASK, None) == EXAMPLES
    assert load_examples(path, "all", TASK, {}) == EXAMPLES


def test_csv_is_read_with_facts_as_a_json_list_or_separated_by_semicolons(tmp_path):
    cells = [["id", "document", "summary", "facts"]]
    cells += [["a", ROWS[0]["document"], "Short.", "x; y z;"], ["b", ROWS[1]["document"], "", ""]]
    cells += [["c", ROWS[2]["document"], "Horse.", '["kůň"]']]
    assert load_examples(str(write_csv(tmp_path / "rows.csv", cells)), "all", TASK, None) == EXAMPLES


def test_parquet_is_read(tmp_path):
    assert load_examples(str(write_parquet(tmp_path / "rows.parquet", ROWS)), "all", TASK, None) == EXAMPLES


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install llm-gym[parquet]" in error(tmp_path / "rows.parquet")


def test_a_broken_parquet_file_is_one_line(tmp_path):
    pytest.importorskip("pyarrow")
    for k, content in enumerate([b"no parquet at all", b"PAR1" + bytes(60) + b"PAR1", b""]):
        path = tmp_path / f"broken{k}.parquet"
        path.write_bytes(content)
        assert str(path) in error(path)


def test_reading_text_imports_neither_pyarrow_nor_pandas():
    code = (
        "import sys; from llm_gym.data import load_examples; from llm_gym.tasks.summary import TextSummary;"
        "load_examples(None, 'test', TextSummary(), None);"
        "assert not {'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path):
    jsonl, table = tmp_path / "rows.jsonl", tmp_path / "rows.csv"
    jsonl.write_bytes(b'\xef\xbb\xbf{"document": "One."}\r\n\r\n   \r\n{"document": "Two."}\r\n')
    table.write_bytes(b"\xef\xbb\xbfdocument, summary\r\n\r\nOne.,\r\n\r\nTwo.,Second\r\n")
    assert load_examples(jsonl, "all", TASK, None) == [
        {"id": "row-1", "document": "One."},
        {"id": "row-4", "document": "Two."},
    ]
    assert load_examples(table, "all", TASK, None) == [
        {"id": "row-3", "document": "One."},
        {"id": "row-5", "document": "Two.", "summary": "Second"},
    ]


def test_read_rows_numbers_the_lines_and_keeps_every_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('document,text\n"One\nmore",\nTwo,judge me\n', encoding="utf-8")
    assert list(read_rows(path)) == [
        (2, {"document": "One\nmore", "text": ""}),
        (4, {"document": "Two", "text": "judge me"}),
    ]
    rows = [{"document": "One", "text": "judge me", "score": 3}]
    assert list(read_rows(str(write_jsonl(tmp_path / "rows.jsonl", rows)))) == [(1, rows[0])]
    assert list(read_rows(write_parquet(tmp_path / "rows.parquet", rows))) == [(1, rows[0])]


def test_read_examples_gives_the_raw_row_beside_the_example_and_lets_ids_repeat(tmp_path):
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"id": 1, "dialogue": "Hello.", "text": "A."}, {"id": 1, "dialogue": "Hello.", "text": "B."}],
    )
    rows = read_examples(path, TASK, {"document": "dialogue"})
    assert [(row.number, row.raw["text"]) for row in rows] == [(1, "A."), (2, "B.")]
    assert [row.example for row in rows] == [{"id": "1", "document": "Hello."}] * 2


# --- columns ------------------------------------------------------------------------------------------------


def test_columns_map_the_names_of_the_task_to_those_of_the_file(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"nr": 7, "dialogue": "Hello.", "document": "No.", "gist": "Hi."}])
    columns = {"document": "dialogue", "summary": "gist", "id": "nr"}
    assert load_examples(path, "all", TASK, columns) == [{"id": "7", "document": "Hello.", "summary": "Hi."}]


def test_unknown_or_missing_columns_are_named_with_the_remedy(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"dialogue": "Hello.", "topic": "x"}])
    message = error(path)
    assert "'document'" in message and "'dialogue', 'topic'" in message
    assert "--columns document=NAME" in message
    message = error(path, columns={"document": "dialog"})
    assert "'dialog'" in message and "'dialogue', 'topic'" in message and "--columns document=NAME" in message
    message = error(path, columns={"document": "dialogue", "summary": "gist"})
    assert "'gist'" in message and "--columns summary=NAME" in message
    message = error(path, columns={"source": "dialogue"})
    assert "'source'" in message and "document, summary, facts" in message
    assert "--columns document=NAME" in message


def test_columns_apply_to_the_bundled_corpus_too():
    examples = load_examples(None, "test", TASK, {"document": "summary", "summary": "document"})
    assert all(len(example["document"]) < len(example["summary"]) for example in examples)


def test_a_constant_split_holds_for_every_row_and_a_constant_id_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", documents(4, split="test"))
    columns = {"split": "=train"}
    assert [e["id"] for e in load_examples(path, "train", TASK, columns)] == ["d0", "d1", "d2", "d3"]
    assert "has no test rows, only train: ask for one of these" in error(path, "test", columns)
    assert "must be train, validation, test or all, not 'dev'" in error(path, "test", {"split": "=dev"})
    assert "id='=d' gives every row the same id" in error(path, columns={"id": "=d"})
    with pytest.raises(LLMGymError, match="--columns id=NAME"):
        read_examples(path, TASK, {"id": "=d"})


# --- what is wrong, and where -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"document": 3}, "must be a string, not 3 (int)"),
        ({"document": "  "}, "is empty"),
        ({"document": None}, "is empty"),
        ({"summary": "No document."}, "is missing"),
        ({"document": "x", "summary": ["a"]}, "'summary' must be a string"),
        ({"document": "x", "facts": "a; b"}, "'facts' must be a list of non-empty strings, not 'a; b' (str)"),
        ({"document": "x", "facts": ["a", 1]}, "'facts', item 2 must be a string, not 1 (int)"),
        ({"document": "x", "facts": ["a", ""]}, "'facts' must be a list of non-empty strings"),
        ({"document": "x", "facts": {"a": 1}}, "'facts' must be a list of non-empty strings"),
        ({"document": "x", "id": ["a"]}, "'id' must be a string or a number"),
        ({"document": "x", "id": True}, "'id' must be a string or a number"),
        ({"document": "half \ud83d"}, "half a character at position 5"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_file_and_line(tmp_path, row, words):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"document": "Fine."}, row])
    message = error(path)
    assert f"{path}:2" in message and words in message


def test_a_wrong_value_in_csv_and_parquet_is_an_error_with_file_and_line(tmp_path):
    table = write_csv(tmp_path / "rows.csv", [["document", "facts"], ["Fine.", "a"], ["Two.", '["a", 1]']])
    assert f"{table}:3" in error(table)
    table = write_csv(tmp_path / "rows.csv", [["document", "facts"], ["Fine.", '["a"']])
    assert f"{table}:2" in error(table) and "no JSON list" in error(table)
    parquet = write_parquet(tmp_path / "rows.parquet", [{"document": 1}, {"document": 2}])
    assert f"{parquet}:1" in error(parquet)


@pytest.mark.parametrize(
    "line", ['{"document": "x"', "document", '{"document": "x"} {}', "{'document': 'x'}", "[" * 100_000]
)
def test_a_malformed_json_line_is_an_error_with_file_and_line(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"document": "x"}\n\n' + line + "\n", encoding="utf-8")
    assert f"{path}:3" in error(path) and "JSON" in error(path)


@pytest.mark.parametrize("line", ["[]", "3", '"text"', "null"])
def test_a_json_line_that_is_no_object_is_an_error(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    assert f"{path}:1: each line must be one JSON object" in error(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("document,summary\nOne.\n", ":2: malformed CSV (1 cells under a header of 2)"),
        ("document,summary\nOne.,x\nTwo, and,x\n", ":3: malformed CSV (3 cells"),
        ('document\nOne.\n"unclosed\nTwo.\n', ":3: malformed CSV"),
        ("document,document\nOne.,x\n", ":1: column 'document' is in the header twice"),
        ("document\n" + "x" * 140_000 + "\n", ":2: malformed CSV (field larger"),
    ],
)
def test_malformed_csv_is_an_error_with_file_and_line(tmp_path, text, words):
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    assert f"{path}{words}" in error(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_bytes_that_are_not_utf8_are_an_error_with_file_and_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'document\n{"document": "caf\xe9"}\n' if name.endswith("csv") else b'{"a": 1}\n"caf\xe9"\n')
    assert f"{path}:2: expected UTF-8 text, found byte 0xe9" in error(path)


def test_utf16_is_an_error_with_the_remedy(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"document": "x"}\n'.encode("utf-16"))
    assert "save the file as UTF-8" in error(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.jsonl", "\ufeff"), ("a.csv", ""), ("a.csv", "document\n")],
)
def test_a_file_without_rows_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert "has no rows" in error(tmp_path / name)


def test_a_parquet_file_without_rows_is_an_error(tmp_path):
    assert "has no rows" in error(write_parquet(tmp_path / "rows.parquet", []))


def test_a_missing_file_suggests_near_names_in_the_same_folder(tmp_path):
    write_jsonl(tmp_path / "dialogsum.jsonl", documents(1))
    (tmp_path / "dialogsum.txt").write_text("x")
    message = error(tmp_path / "dialogusm.jsonl")
    assert "no such file" in message and f"did you mean {tmp_path / 'dialogsum.jsonl'}?" in message
    assert "did you mean" not in error(tmp_path / "qqq.jsonl")
    assert f"there is no folder {tmp_path / 'deep'}" in error(tmp_path / "deep" / "rows.jsonl")
    assert "no such file" in error(tmp_path / ("x" * 300))


def test_an_unknown_suffix_is_an_error_that_names_the_kinds(tmp_path):
    (tmp_path / "rows.txt").write_text("x")
    message = error(tmp_path / "rows.txt")
    assert str(tmp_path / "rows.txt") in message and ".jsonl, .json, .csv, .parquet" in message


def test_read_rows_rejects_a_missing_file_before_the_first_row(tmp_path):
    with pytest.raises(LLMGymError, match="no such file"):
        read_rows(tmp_path / "rows.jsonl")


# --- ids and splits -----------------------------------------------------------------------------------------


def test_ids_become_strings_and_a_row_without_one_is_named_by_its_line(tmp_path):
    rows = [{"id": 1, "document": "a"}, {"id": None, "document": "b"}, {"id": "x", "document": "c"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [e["id"] for e in load_examples(path, "all", TASK, None)] == ["1", "row-2", "x"]


def test_duplicate_ids_are_an_error_with_both_lines(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*documents(3), {"id": "d1", "document": "Again."}])
    assert "'d1' is on lines 2 and 4" in error(path)
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "document": "a"}, {"id": "1", "document": "b"}])
    assert "'1' is on lines 1 and 2" in error(path)


def test_an_unknown_split_is_an_error_that_lists_the_known(tmp_path):
    assert "'dev'" in error(tmp_path, split="dev") and "train, validation, test, all" in error(tmp_path, "dev")


def test_a_split_column_is_used_and_its_values_are_checked(tmp_path):
    rows = documents(4)
    for row, split in zip(rows, ["test", "train", "train", "validation"], strict=True):
        row["split"] = split
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    loaded = {split: [e["id"] for e in load_examples(path, split, TASK, None)] for split in ("train", "test")}
    assert loaded == {"train": ["d1", "d2"], "test": ["d0"]}
    assert len(load_examples(path, "all", TASK, None)) == 4
    rows[1]["split"] = "all"
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    loaded = {split: [e["id"] for e in load_examples(path, split, TASK, None)] for split in ("train", "test", "all")}
    assert loaded == {"train": ["d1", "d2"], "test": ["d0", "d1"], "all": ["d0", "d1", "d2", "d3"]}
    for value in ("dev", "", None, 1):
        rows[2]["split"] = value
        for split in ("train", "all"):
            message = error(write_jsonl(path, rows), split)
            assert f"{path}:3" in message and "train, validation, test or all" in message
    del rows[2]["split"]
    assert f"{path}:3" in error(write_jsonl(path, rows))


def test_a_split_that_the_split_column_never_names_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", documents(4, split="train"))
    assert "has no test rows, only train" in error(path, "test")


def test_without_a_split_column_a_tenth_is_test_and_a_tenth_validation_by_rank_of_the_hashed_id(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", documents(50))
    by_rank = sorted((f"d{k}" for k in range(50)), key=lambda name: hashlib.sha256(name.encode()).digest())
    ids = {s: {e["id"] for e in load_examples(path, s, TASK, None)} for s in ("test", "validation", "train")}
    assert ids == {"test": {*by_rank[:5]}, "validation": {*by_rank[5:10]}, "train": {*by_rank[10:]}}


def test_splits_of_a_small_file_hold_at_least_one_row_each_and_need_three_different_texts(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", documents(3))
    assert [len(load_examples(path, s, TASK, None)) for s in ("train", "validation", "test", "all")] == [
        1,
        1,
        1,
        3,
    ]
    two = write_jsonl(tmp_path / "two.jsonl", documents(2))
    same = write_jsonl(tmp_path / "same.jsonl", [{"document": "Same."}] * 9)
    for file, n in ((two, 2), (same, 9)):
        assert len(load_examples(file, "all", TASK, None)) == n
        for split in ("train", "validation", "test"):
            assert "3 at least" in error(file, split) and "split='all'" in error(file, split)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), with_ids=st.booleans())
def test_splits_are_disjoint_complete_and_blind_to_the_order_of_rows(tmp_path_factory, data, with_ids):
    texts = data.draw(st.lists(TEXTS, min_size=3, max_size=30).filter(lambda t: len(set(t)) >= 3))
    rows = [{"document": text, "summary": str(k)} for k, text in enumerate(texts)]
    if with_ids:
        names = data.draw(st.lists(TEXTS, min_size=len(rows), max_size=len(rows), unique=True))
        rows = [{"id": name, **row} for name, row in zip(names, rows, strict=True)]
    path = tmp_path_factory.mktemp("splits") / "rows.jsonl"

    def split(rows: list[dict]) -> list[set[tuple[str, str]]]:
        write_jsonl(path, rows)
        loaded = [load_examples(path, name, TASK, None) for name in ("train", "validation", "test")]
        assert sum(map(len, loaded)) == len(rows) and all(loaded)
        return [{(example["document"], example["summary"]) for example in part} for part in loaded]

    parts = split(rows)
    assert set.union(*parts) == {(row["document"], row["summary"]) for row in rows}
    seen = [{document for document, _ in part} for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert split(data.draw(st.permutations(rows))) == parts


# --- the bundled corpus -------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def corpus() -> list[dict]:
    path = files("llm_gym.data") / "corpora" / "text_summary.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_holds_every_genre_in_equal_parts_in_every_split(corpus):
    assert len(corpus) == 182
    counts = collections.Counter((row["split"], row["genre"]) for row in corpus)
    sizes = {"train": 15, "validation": 3, "test": 8}
    assert counts == {(split, genre): size for split, size in sizes.items() for genre in GENRES}
    assert [row["genre"] for row in corpus] == list(GENRES) * 26


def test_corpus_documents_have_60_to_180_words_and_summaries_12_to_36(corpus):
    for row in corpus:
        assert set(row) == {"id", "genre", "split", "document", "summary", "facts"}
        assert 60 <= len(words(row["document"])) <= 180, row["id"]
        assert 12 <= len(words(row["summary"])) <= 36, row["id"]


def test_corpus_facts_stand_in_the_document_and_in_the_summary(corpus):
    for row in corpus:
        assert 4 <= len(row["facts"]) <= 6
        for text in (row["document"], row["summary"]):
            spaced = f" {' '.join(words(text))} "
            for fact in row["facts"]:
                assert f" {' '.join(words(fact))} " in spaced, (row["id"], fact)


def test_corpus_summaries_never_copy_five_words_running(corpus):
    for row in corpus:
        text, summary = f" {' '.join(words(row['document']))} ", words(row["summary"])
        for k in range(len(summary) - 4):
            assert f" {' '.join(summary[k : k + 5])} " not in text, row["id"]


def test_corpus_texts_and_ids_are_unique(corpus):
    for column in ("id", "document", "summary"):
        assert len({row[column] for row in corpus}) == len(corpus)
    assert len({tuple(words(row["document"])[:4]) for row in corpus}) == len(corpus)


@pytest.mark.parametrize(
    ("split", "size", "digest"),
    [
        ("train", 105, "5e2512ec8944d661"),
        ("validation", 21, "6506c658e2164598"),
        ("test", 56, "0e60acd3fc61a17f"),
    ],
)
def test_corpus_splits_are_fixed(split, size, digest):
    ids = sorted(example["id"] for example in load_examples(None, split, TASK, None))
    assert len(ids) == size
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == digest


def test_corpus_examples_have_the_id_and_the_columns_of_the_task(corpus):
    examples = load_examples(None, "all", TASK, None)
    assert [set(example) for example in examples] == [{"id", "document", "summary", "facts"}] * 182
    assert examples == [{name: row[name] for name in ("id", "document", "summary", "facts")} for row in corpus]


def test_a_task_without_a_bundled_corpus_asks_for_a_file():
    class Bare(TextSummary):
        corpus = "nothing_here"

    with pytest.raises(LLMGymError, match="no corpus 'nothing_here': pass data='FILE.jsonl'"):
        load_examples(None, "train", Bare(), None)
