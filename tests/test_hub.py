"""Data sets: the real `datasets` loader on folders of local files laid out like a hub data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.evaluate import make_envs, play
from agents.reference import ReferenceAgent
from llm_gym.data import load_examples
from llm_gym.data.hub import is_hub_id
from llm_gym.errors import LLMGymError
from llm_gym.registration import find_task
from llm_gym.tasks.sentiment import SentimentMonitoring
from llm_gym.tasks.summary import TextSummary
from llm_gym.tasks.translation import Translation

TASK = TextSummary()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


COLUMNS = {"document": "dialogue"}


def write(folder: Path, **splits: int) -> str:
    folder.mkdir(parents=True)
    for split, count in splits.items():
        rows = [{"dialogue": f"{split} line {i}", "summary": f"Sum {i}.", "topic": "x"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_splits_and_columns_are_those_of_the_data_set(tmp_path: Path) -> None:
    data = write(tmp_path / "rows", train=5, validation=2, test=3)
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        examples = load_examples(data, split, TASK, COLUMNS)
        assert [example["document"] for example in examples] == [f"{split} line {i}" for i in range(count)]
        assert examples[0]["summary"] == "Sum 0." and "topic" not in examples[0]


def test_a_missing_split_is_a_tenth_of_the_training_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "rows", train=40, test=3)
    train, validation, test = (load_examples(data, split, TASK, COLUMNS) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (36, 4, 3)
    texts = [example["document"] for examples in (train, validation, test) for example in examples]
    assert len(set(texts)) == 43 and texts == [
        example["document"] for split in (train, validation, test) for example in split
    ]


def held_out(data: str, task: Any, columns: dict[str, str] | None = None) -> list[set[str]]:
    """Return the values of the task's first column in each split."""
    parts = [load_examples(data, split, task, columns) for split in ("train", "validation", "test")]
    return [{example[task.required[0]] for example in part} for part in parts]


def test_rows_with_the_same_value_of_a_nested_column_stay_together(tmp_path: Path) -> None:
    rows = [
        {"translation": {"en": f"Line {i}.", "de": f"Zeile {i}, Fassung {k}."}} for i in range(20) for k in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"source": "translation.en", "target": "translation.de", "languages": "=en-de"}
    train, validation, test = held_out(str(tmp_path), Translation(), columns)
    assert (len(train), len(validation), len(test)) == (16, 2, 2) and len(train | validation | test) == 20


def test_rows_of_which_the_conversion_makes_the_same_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = find_task("TextGeneration-v0")
    folder = tmp_path / task.public["imdb"].name
    folder.mkdir(parents=True)
    rows = [{"text": f"{i}" + " word" * 70 + f" {k}", "label": "pos"} for i in range(20) for k in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, validation, test = held_out("imdb", task)
    assert (len(train), len(validation), len(test)) == (16, 2, 2) and len(train | validation | test) == 20


def test_a_constant_in_the_first_column_leaves_rows_apart(tmp_path: Path) -> None:
    parts = [
        load_examples(write(tmp_path / split, train=40), split, TASK, {"document": "=Same."})
        for split in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [32, 4, 4]


def test_a_hub_id_is_loaded_by_name(tmp_path: Path) -> None:
    """`datasets` prefers a local folder of that name, which stands in for the hub here."""
    write(tmp_path / "owner" / "rows", train=4, validation=1, test=1)
    code = (
        "from llm_gym.data.hub import read_hub\n"
        "rows = list(read_hub('owner/rows'))\n"
        "print(len(rows), rows[0][0], rows[0][1]['split'], rows[0][1]['dialogue'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[0] == "6 1 train train line 0", done.stderr


def test_what_looks_like_a_data_set_name() -> None:
    assert is_hub_id("knkarthick/dialogsum") and is_hub_id("abisee/cnn_dailymail:3.0.0")
    assert not is_hub_id("rows") and not is_hub_id("/a/b") and not is_hub_id("../b") and not is_hub_id("a/b/c")


def test_a_folder_without_training_rows_and_a_data_set_out_of_reach_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LLMGymError, match="no 'train'"):
        load_examples(write(tmp_path / "rows", test=3), "test", TASK, COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLMGymError, match="cannot load data set"):
        load_examples(tmp_path / "empty", "test", TASK, COLUMNS)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(LLMGymError, match="cannot load data set 'nobody/nothing'.*network"):
        load_examples("nobody/nothing", "test", TASK, COLUMNS)


def test_without_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LLMGymError, match=r"pip install llm-gym\[hub\]"):
        load_examples(write(tmp_path / "rows", train=3), "train", TASK, COLUMNS)


# --- public data sets by short name -------------------------------------------------------------------------

PASSAGES = [f"Passage {i} says that the bridge opens at {i}." for i in range(20)]
PUBLIC: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "squad": (
        "QuestionAnswering-v0",
        [
            {"id": f"{i}-{k}", "title": "Bridges", "context": context, "question": f"Question {k}?"}
            | {"answers": {"text": [f"at {i}", str(i)], "answer_start": [20, 23]}}
            for i, context in enumerate(PASSAGES)
            for k in range(3)
        ],
    ),
    "writingprompts": (
        "Story-v0",
        [{"prompt": f"[ WP ] The bridge opens {i} times.", "story": f"Once it opened {i} times."} for i in range(20)],
    ),
    "rocstories": (
        "Story-v0",
        [{"prompt": f"Ann built {i} bridges.", "continuation": f"All {i} of them stood."} for i in range(20)],
    ),
    "dialogsum": (
        "TextSummary-v0",
        [{"id": f"train_{i}", "dialogue": f"Ann: {i}?", "summary": f"Ann asks {i}.", "topic": "x"} for i in range(20)],
    ),
}
PUBLIC["squad_v2"] = (
    "QuestionAnswering-v0",
    [
        {**row, "answers": {"text": [], "answer_start": []}} if row["id"].endswith("0") else row
        for row in PUBLIC["squad"][1]
    ],
)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("held", [("train",), ("train", "validation")])
def test_a_public_data_set_is_read_by_its_short_name(name, held, tmp_path, monkeypatch) -> None:
    """`datasets` prefers a local folder of the hub's name, which stands in for the hub here."""
    env_id, rows = PUBLIC[name]
    task = find_task(env_id)
    folder = tmp_path / task.public[name].name
    folder.mkdir(parents=True)
    for i, split in enumerate(held):
        part = rows[i * len(rows) // len(held) : (i + 1) * len(rows) // len(held)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    monkeypatch.chdir(tmp_path)
    parts = [load_examples(name, split, task) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(rows) and all(parts)
    texts = [{example[task.required[0]] for example in part} for part in parts]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    columns = {
        "story": ("premise", "story"),
        "question_answering": ("context", "question", "answers"),
        "summary": ("document", "summary"),
    }[task.name]
    assert all(set(columns) <= set(example) for part in parts for example in part)
    if name == "squad_v2":
        answers = [example["answers"] for part in parts for example in part]
        assert sum(answer == [] for answer in answers) == 20 and ["at 3", "3"] in answers


def test_a_file_goes_before_a_short_name_and_own_columns_before_the_tables(tmp_path, monkeypatch) -> None:
    task = find_task("Story-v0")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / task.public["rocstories"].name
    folder.mkdir(parents=True)
    rows = [{"prompt": f"Ann built {i} bridges.", "continuation": "They stood.", "title": f"T{i}"} for i in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_examples("rocstories", "all", task, {"premise": "title"})[0]["premise"] == "T0"
    (tmp_path / "rocstories").mkdir()
    (tmp_path / "rocstories" / "train.jsonl").write_text('{"premise": "Mine."}\n')
    assert load_examples("rocstories", "all", task) == [{"id": "row-1", "premise": "Mine."}]


def test_a_field_of_a_nested_column_that_is_not_there_is_an_error(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PUBLIC["squad"][1][0]) + "\n")
    task = find_task("QuestionAnswering-v0")
    with pytest.raises(LLMGymError, match="has no column 'answers.texts', only 'answers.text'"):
        load_examples(path, "all", task, {"answers": "answers.texts"})
    with pytest.raises(LLMGymError, match="no column 'replies.text'"):
        load_examples(path, "all", task, {"answers": "replies.text"})
    assert load_examples(path, "all", task, {"answers": "answers.text"})[0]["answers"] == ["at 0", "0"]


# --- public data sets that a task knows ----------------------------------------------------------------------


def stand_in(folder: Path, name: str, config: str, features: Any, **splits: list[dict[str, Any]]) -> None:
    """Write Parquet files laid out, described and typed like the hub's copy of a data set."""
    import datasets

    root = folder / name / config
    root.mkdir(parents=True)
    for split, rows in splits.items():
        datasets.Dataset.from_list(rows, features=features).to_parquet(root / f"{split}.parquet")
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: {config}/{split}.parquet\n" for split in splits)
    (folder / name / "README.md").write_text(card + "---\n")


@pytest.mark.parametrize(
    ("data", "pair"),
    [("wmt/wmt14:de-en", ("de", "en")), ("Helsinki-NLP/opus_books:en-fr", ("en", "fr"))],
)
def test_translation_knows_the_columns_of_wmt_and_opus(
    data: str, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    name, _, config = data.partition(":")
    features = datasets.Features({"translation": datasets.Translation(languages=pair)})
    rows = [{"translation": {code: f"{code} sentence {i}." for code in pair}} for i in range(20)]
    stand_in(tmp_path, name, config, features, train=rows)
    monkeypatch.chdir(tmp_path)
    examples = [e for split in ("train", "validation", "test") for e in load_examples(data, split, Translation())]
    assert len(examples) == 20 and {e["languages"] for e in examples} == {config}
    assert all(e["source"].startswith(pair[0]) and e["target"].startswith(pair[1]) for e in examples)
    other = {
        "source": f"translation.{pair[1]}",
        "target": f"translation.{pair[0]}",
        "languages": f"={pair[1]}-{pair[0]}",
    }
    turned = load_examples(data, "train", Translation(), other)
    assert all(e["source"].startswith(pair[1]) and e["languages"] == f"{pair[1]}-{pair[0]}" for e in turned)


def test_sentiment_knows_the_columns_and_labels_of_two_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    names = ["negative", "neutral", "positive"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = [{"text": f"Post {i}.", "label": i % 3} for i in range(6)]
    stand_in(tmp_path, "cardiffnlp/tweet_eval", "sentiment", features, train=rows, validation=rows[:1], test=rows[:2])
    examples = load_examples("cardiffnlp/tweet_eval:sentiment", "train", SentimentMonitoring())
    assert [(e["news"], e["label"]) for e in examples] == [(f"Post {i}.", names[i % 3]) for i in range(6)]

    folder = tmp_path / "zeroshot" / "twitter-financial-news-sentiment"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = [f'"{split}: shares move, again {i}",{i % 3}\n' for i in range(12)]
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(lines))
    examples = load_examples("zeroshot/twitter-financial-news-sentiment", "all", SentimentMonitoring())
    assert {e["news"][-2:].strip(): e["label"] for e in examples if "again 0" in e["news"]}["0"] == "negative"
    assert [e["label"] for e in examples[:3]] == ["negative", "positive", "neutral"] and len(examples) == 24
    assert all("alarm" not in e and "reason" not in e for e in examples)  # neither data set has them


@pytest.mark.parametrize(
    ("name", "labels", "columns"),
    [
        ("imdb", ["neg", "pos"], {"tone": {"disappointed", "enthusiastic"}, "topic": {"films"}}),
        (
            "ag_news",
            ["World", "Sports", "Business", "Sci/Tech"],
            {"tone": {"formal"}, "topic": {"world affairs", "sport", "business", "science and technology"}},
        ),
    ],
)
def test_generation_cuts_the_texts_of_two_data_sets_into_openings(
    name: str, labels: list[str], columns: dict[str, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    task = find_task("TextGeneration-v0")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=labels)})
    rows = [{"text": f"{i}<br /><br />" + " word" * 70, "label": i % len(labels)} for i in range(20)]
    short = {"text": "Too short to be cut.", "label": 0}
    stand_in(tmp_path, task.public[name].name, "plain_text", features, train=[*rows, short], test=rows[:4])
    examples = load_examples(name, "all", task)
    assert len(examples) == 24  # the short text gives none
    assert {column: {e[column] for e in examples} for column in columns} == columns
    for example in examples:
        assert len(example["prompt"].split()) == 16 and len(example["continuation"].split()) == 40
        assert "<br" not in example["prompt"]
    parts = [load_examples(name, split, task) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [18, 2, 4]


def test_dialogue_takes_goals_from_the_questions_of_coqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    task = find_task("Dialogue-v0")
    text, place = datasets.Value("string"), datasets.Value("int32")
    many = getattr(datasets, "List", datasets.Sequence)
    answers = {"input_text": many(text), "answer_start": many(place), "answer_end": many(place)}
    features = datasets.Features({"source": text, "story": text, "questions": many(text), "answers": answers})
    said = ["white", "unknown", "in a barn.", "Yes", "her mother"]
    row = {"source": "mctest", "questions": ["What colour?", "Why?", "Where?", "Alone?", "With whom?"]}
    row["answers"] = {"input_text": said, "answer_start": [0] * 5, "answer_end": [1] * 5}
    silent = {**row, "story": "Nothing.", "answers": {**row["answers"], "input_text": ["unknown"] * 5}}
    rows = [{**row, "story": f"Kitten {i} was white and lived in a barn."} for i in range(10)]
    stand_in(tmp_path, "stanfordnlp/coqa", "default", features, train=[*rows, silent], validation=rows[:2])
    examples = load_examples("coqa", "all", task)
    assert len(examples) == 12
    goals = examples[0]["goals"]
    assert [(goal["ask"], goal["key"]) for goal in goals] == [
        ("What colour?", ["white"]),
        ("Where?", ["in a barn"]),
        ("Alone?", ["Yes"]),
    ]
    envs = make_envs("Dialogue-v0", 2, "train", {"data": "coqa", "tokenizer": "sp-1k", "feedback": {"goals": 30.0}})
    episodes = play(ReferenceAgent(envs), envs, envs.example_ids[:2]) or []
    assert [episode.reward for episode in episodes] == [6.0, 6.0]  # the annotated answers meet all goals
