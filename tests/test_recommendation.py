"""Recommendation-v0: what may be named, the scores, catalogues, tables of ratings and the corpus."""

from __future__ import annotations

import collections
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_gym  # noqa: F401
from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.data import load_examples
from llm_gym.data.files import write_jsonl
from llm_gym.data.ratings import join, main
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import words
from llm_gym.items import shared_catalogue
from llm_gym.registration import find_task
from llm_gym.tasks.recommendation import ITEMS, MOST

TASK = find_task("Recommendation-v0")
RULES = {"hits": 6.0, "rank": 4.0}
ROWS = load_examples(None, "all", TASK)


def score(text: str, row: dict[str, Any] = ROWS[0], spec: Any = RULES) -> dict[str, float]:
    return build(spec)([TASK.episode(row, text)])[0].parts


# --- the environment ----------------------------------------------------------------------------------------


def test_masked_random_texts_name_different_titles_of_the_kind_and_never_the_history() -> None:
    made = {"tokenizer": "sp-1k", "feedback": RULES, "max_new_tokens": 120}
    envs = gym.make_vec("Recommendation-v0", num_envs=12, autoreset_mode="SameStep", **made)
    rng = np.random.default_rng(0)
    _, infos = envs.reset(seed=0)
    count = 0
    while count < 100:
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in infos["action_mask"]])
        _, rewards, terminated, _, infos = envs.step(actions)
        for row in np.flatnonzero(terminated):
            episode = envs.unwrapped.episodes[row]
            kind, said = episode.example["kind"], episode.text.split("\n")
            known = " ".join([*episode.example["liked"], *episode.example["disliked"]])
            assert episode.finish_reason == "stop" and 0 <= rewards[row] <= 10
            assert len(said) == len(set(said)) <= MOST and set(said) <= set(shared_catalogue(ITEMS).titles(kind))
            assert not any(f"{title}:" in known for title in said)
            count += 1


def test_the_reference_is_worth_everything_and_what_is_illegal_the_worst() -> None:
    class Says(ReferenceAgent):
        def turn(self, row: int) -> str:
            own = self.envs.reference_turn(row)
            known = self.envs.examples[self.envs._example[row]]["liked"][0].partition(":")[0]
            return (own, known, f"{own.splitlines()[0]}\n{own.splitlines()[0]}", "")[row]

    envs = make_envs("Recommendation-v0", 4, "all", {"tokenizer": "sp-1k", "feedback": RULES, "max_new_tokens": 120})
    episodes = play(Says(envs), envs, ["books-01"] * 4)
    assert [e.finish_reason for e in episodes] == ["stop", "illegal", "illegal", "illegal"]
    assert [e.reward for e in episodes] == [10.0, TASK.worst, TASK.worst, TASK.worst]


@pytest.mark.models
def test_references_fit_into_a_turn_and_prompts_are_whole() -> None:
    envs = make_envs("Recommendation-v0", 16, "all", {"feedback": RULES})
    episodes = play(ReferenceAgent(envs), envs, envs.example_ids)
    assert {e.finish_reason for e in episodes} == {"stop"}
    assert all(e.text == TASK.reference(e.example) for e in episodes)
    assert not any(envs._prompt(i).words_cut for i in range(len(envs.examples)))


@pytest.mark.models
def test_the_worst_is_the_least_that_the_feedback_can_give_and_a_reference_is_far_above() -> None:
    assert TASK.worst == -TASK.feedback["fit"]["weight"]  # of the parts only the fit can be below 0, down to -1
    assert all(part["weight"] > 0 for part in TASK.feedback.values())
    assert build(TASK.feedback)([TASK.episode(ROWS[0], TASK.reference(ROWS[0]))])[0].value > 10


# --- the scores ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*shared_catalogue(ITEMS).titles("books"), "no title", ""]), max_size=8))
def test_any_text_can_be_scored_and_no_order_beats_the_likes_first(lines: list[str]) -> None:
    parts = score("\n".join(lines))
    assert all(0 <= value <= 1 for value in parts.values())
    likes = ROWS[0]["held_out"]
    first = score("\n".join(sorted(dict.fromkeys(lines), key=lambda title: title not in likes)))
    assert first["rank"] >= parts["rank"] and first["hits"] >= parts["hits"]


def test_hits_and_rank_are_those_of_the_page() -> None:
    likes, wrong = ROWS[0]["held_out"], "Teeth"
    assert score("\n".join(likes)) == {"hits": 1.0, "rank": 1.0}
    assert score("\n".join(likes[::-1])) == {"hits": 1.0, "rank": 1.0}
    assert score("\n".join([likes[0]] * 4))["hits"] == 0.25
    assert score("\n".join([wrong, likes[0]]))["rank"] < score(likes[0])["rank"]
    assert score("Something else.") == score("") == {"hits": 0.0, "rank": 0.0}
    with pytest.raises(LLMGymError, match="has no 'held_out'"):
        score("Teeth", {**ROWS[0], "held_out": []})


@pytest.mark.models
def test_fit_follows_the_history_and_turns_from_what_was_disliked() -> None:
    row = {"id": "a", "kind": "books", "liked": ["The House That Breathed: I did not sleep."], "held_out": ["Teeth"]}
    both = {**row, "disliked": ["The Dragon Census: Dragons are silly."]}
    fit = {"fit": 1.0}
    ghosts, dragons = "The Whispering Nursery\nMidnight at Saint Agnes", "Thief of the Seventh Tower\nThe Salt Crown"
    assert score(ghosts, row, fit)["fit"] > score(dragons, row, fit)["fit"]
    assert score(ghosts, both, fit)["fit"] - score(dragons, both, fit)["fit"] > (
        score(ghosts, row, fit)["fit"] - score(dragons, row, fit)["fit"]
    )
    assert score(ghosts, row, fit)["fit"] > score("The Whispering Nursery", row, fit)["fit"] > 0
    like, unlike = "The Whispering Nursery\nMidnight at Saint Agnes", "Teeth\nTwo Kitchens"
    assert 0 < score(like, row, {"variety": 1.0})["variety"] < score(unlike, row, {"variety": 1.0})["variety"]


# --- catalogues and tables of ratings -----------------------------------------------------------------------


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    items.write_text("title,genres\nHeat (1995),Action|Crime\nStar Wars: Episode IV,Sci-Fi\nBabe,Children\n")
    row = {"liked": ["Star Wars: Episode IV: again!"], "held_out": ["Babe"], "catalogue": str(items)}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    example = load_examples(path, "all", TASK)[0]
    choices = TASK.choices(example, [])
    assert set(choices.texts) - choices.without == {"Heat (1995)", "Babe"}
    assert score("Babe", example, {"hits": 1.0, "held_out_genres": 1.0}) == {"hits": 1.0, "held_out_genres": 1.0}
    path.write_text(json.dumps({**row, "held_out": ["Star Wars: Episode IV"]}) + "\n")
    with pytest.raises(LLMGymError, match=":1: 'held_out' has 'Star Wars: Episode IV'"):
        load_examples(path, "all", TASK)
    items.write_text("title\nBabe\nBabe\n")
    with pytest.raises(LLMGymError, match=":3: the title 'Babe' is there twice"):
        shared_catalogue.cache_clear()
        shared_catalogue(str(items))


def ratings() -> list[dict[str, Any]]:
    stars = [5.0, 4.0, 1.0, 4.5, 5.0, 3.0, 4.0, 5.0, 2.0, 4.0, 4.0, 5.0]
    return [
        {"movie_id": 10 + k, "user_id": user, "rating": given if user != 3 else 3.0, "title": f"Film {k} (19{50 + k})"}
        | {"genres": ["Drama", "War"] if k % 2 else ["Comedy"]}
        for user in (1, 2, 3)
        for k, given in enumerate(stars)
    ]


def test_a_table_of_ratings_on_the_hub_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` prefers a local folder of the hub's name, which stands in for the hub here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "ashraq" / "movielens_ratings" / "data"
    folder.mkdir(parents=True)
    table = ratings()
    datasets.Dataset.from_list(table[:30]).to_parquet(folder / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(table[30:]).to_parquet(folder / "validation-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    rows = load_examples(join("ashraq/movielens_ratings", "out"), "all", TASK)
    assert [row["id"] for row in rows] == ["1", "2"]  # the third likes nothing
    assert rows[0]["held_out"] == [f"Film {k} (19{50 + k})" for k in (7, 9, 10, 11)]
    assert rows[0]["liked"] == [f"Film {k} (19{50 + k})" for k in (0, 1, 3, 4, 6)]
    assert rows[0]["disliked"] == ["Film 2 (1952)", "Film 8 (1958)"]
    assert score(TASK.reference(rows[0]), rows[0], {**RULES, "held_out_genres": 1.0})["held_out_genres"] == 1.0
    env = gym.make("Recommendation-v0", data="out/users.jsonl", split="all", tokenizer="sp-1k", feedback=RULES)
    assert 0 < env.reset(seed=0)[1]["action_mask"].sum() < 20


def test_movielens_own_files_become_the_same_rows(tmp_path: Path) -> None:
    films = {row["movie_id"]: row for row in ratings()}.values()
    lines = [f'{f["movie_id"]},"{f["title"]}",{"|".join(f["genres"])}\n' for f in films]
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + "".join(lines))
    lines = [f"{r['user_id']},{r['movie_id']},{r['rating']},1\n" for r in ratings()]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(lines))
    rows = load_examples(join(tmp_path / "ratings.csv", tmp_path / "out", tmp_path / "movies.csv"), "all", TASK)
    assert [row["id"] for row in rows] == ["1", "2"] and rows[1]["held_out"][-1] == "Film 11 (1961)"
    assert shared_catalogue(rows[0]["catalogue"]).items["Film 1 (1951)"].genres == ("Drama", "War")


def test_amazon_reviews_become_rows_in_the_order_of_their_time(tmp_path: Path) -> None:
    """Columns of the raw reviews and of the metadata of Amazon Reviews 2023; a review's own title is no item's."""
    reviews = [
        {"rating": r["rating"], "title": "Five stars", "text": "Good.", "images": [], "asin": f"A{r['movie_id']}"}
        | {"parent_asin": f"B{r['movie_id']}", "user_id": f"U{r['user_id']}", "timestamp": 10**12 + r["movie_id"]}
        | {"helpful_vote": 0, "verified_purchase": True}
        for r in reversed(ratings())
    ]
    games = {r["movie_id"]: {"main_category": "Video Games", "title": r["title"], "parent_asin": f"B{r['movie_id']}"}
        | {"categories": ["Video Games", "PC"]} for r in ratings()}  # fmt: skip
    write_jsonl(tmp_path / "Video_Games.jsonl", reviews)
    write_jsonl(tmp_path / "meta_Video_Games.jsonl", games.values())
    path = join(tmp_path / "Video_Games.jsonl", tmp_path / "out", tmp_path / "meta_Video_Games.jsonl")
    rows = load_examples(path, "all", TASK)
    assert sorted(row["id"] for row in rows) == ["U1", "U2"]
    assert rows[0]["held_out"] == [f"Film {k} (19{50 + k})" for k in (7, 9, 10, 11)]
    assert shared_catalogue(rows[0]["catalogue"]).items["Film 1 (1951)"].genres == ("Video Games", "PC")


def test_a_table_without_a_column_or_likes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("reader,movie_id,title,rating\na,1,Babe,5\n")
    with pytest.raises(LLMGymError, match="no column for 'user', only reader.*--columns user=NAME"):
        join(path, tmp_path / "out")
    with pytest.raises(LLMGymError, match="nobody in .* gave 8 titles 4.0 stars or more"):
        join(path, tmp_path / "out", columns={"user": "reader"})


def few_ratings(path: Path, **changes: Any) -> Path:
    """Write a table in which one person likes nine films, the last first by its time."""
    rows = [
        {"user": "a", "item": k, "title": f"Film {k}", "rating": 5, "when": 9 - k, "tags": "Drama"} for k in range(9)
    ]
    rows[3].update(changes)
    write_jsonl(path, rows)
    return path


def test_columns_of_ones_own_must_be_known_and_there(tmp_path: Path) -> None:
    path, out = few_ratings(tmp_path / "ratings.jsonl"), tmp_path / "out"
    rows = load_examples(join(path, out, columns={"time": "when", "genres": "tags"}), "all", TASK)
    assert rows[0]["held_out"] == ["Film 3", "Film 2", "Film 1", "Film 0"]
    assert shared_catalogue(rows[0]["catalogue"]).items["Film 1"].genres == ("Drama",)
    for columns, message in (
        ({"reader": "user"}, "unknown column 'reader': known are user, item, title, rating, genres, time"),
        ({"time": "date"}, "no column for 'time', only user.*--columns time=NAME"),
        ({"genres": "kinds"}, "no column for 'genres', only user.*--columns genres=NAME"),
    ):
        with pytest.raises(LLMGymError, match=message):
            join(path, out, columns=columns)
    with pytest.raises(LLMGymError, match=f"{path} has no column for 'genres'"):
        join(few_ratings(tmp_path / "more.jsonl", when=1), out, items=path, columns={"genres": "kinds"})


@pytest.mark.parametrize("value", ["five", "", None, "nan", [5], 10**400], ids=lambda value: repr(value)[:8])
def test_a_rating_or_time_that_is_no_number_is_an_error_with_its_row(tmp_path: Path, value: Any) -> None:
    columns = {"time": "when"}
    for name in ("rating", "when"):
        path = few_ratings(tmp_path / "ratings.jsonl", **{name: value})
        with pytest.raises(LLMGymError, match=f"{path}:4: column '{name}' must be a number, not ") as caught:
            join(path, tmp_path / "out", columns=columns)
        assert repr(value)[:30] in str(caught.value) and len(str(caught.value)) < 400


def test_the_command_line_tells_each_mistake_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = few_ratings(tmp_path / "ratings.jsonl"), tmp_path / "file"
    file.write_text("")
    for arguments, code, message in (
        ([str(path), str(tmp_path / "out"), "--columns", "user"], 2, "--columns takes NAME=COLUMN"),
        ([str(tmp_path / "no.jsonl"), str(tmp_path / "out")], 1, "error: no such file"),
        ([str(few_ratings(tmp_path / "bad.jsonl", rating="five")), str(tmp_path / "out")], 1, "not 'five'"),
        ([str(path), str(file / "out")], 1, f"error: cannot write {file / 'out'}: Not a directory; give another"),
    ):
        monkeypatch.setattr("sys.argv", ["ratings", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        told = capsys.readouterr().err
        assert caught.value.code == code and message in told and ("--columns takes" in told) is (code == 2)
        assert code == 2 or told.count("\n") == 1


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_corpus() -> None:
    sizes = [len(load_examples(None, split, TASK)) for split in ("train", "validation", "test")]
    assert sizes == [92, 24, 36] and len(ROWS) == 152
    catalogue = shared_catalogue(ITEMS)
    assert collections.Counter(item.kind for item in catalogue.items.values()) == dict.fromkeys(
        ("books", "films", "recipes", "places"), 80
    )
    for row in ROWS:
        history = [catalogue.find(entry) for entry in (*row["liked"], *row["disliked"])]
        titles = [item.title for item in history if item] + row["held_out"]
        assert len(titles) == len(set(titles)) == 9 and len(row["held_out"]) == MOST, row["id"]
        assert {catalogue.items[title].kind for title in titles} == {row["kind"]}, row["id"]
        assert all(": " in entry and entry.endswith(".") for entry in (*row["liked"], *row["disliked"]))
    assert len({tuple(sorted(row["held_out"])) for row in ROWS}) == len(ROWS)
    for item in catalogue.items.values():
        assert item.title.isascii() and len(words(item.title)) <= 7 and 6 <= len(words(item.text)) <= 24, item
        assert item.genres and "\n" not in item.title
    lines = (files("llm_gym.data") / "corpora" / "recommendation.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == {"id", "split", "kind", "liked", "disliked", "held_out"} for line in lines)
