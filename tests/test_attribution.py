"""Attribution: whom a sentence is about, whose turns it fits, and the model that tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from agents.attribution import dialogues, train_attribution
from agents.preference import held_out
from llm_gym.cli import main
from llm_gym.data import load_examples
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.attribution import AttributionModel, asked_of
from llm_gym.feedback.corruption import corruptions
from llm_gym.feedback.speakers import speaker_names, turns
from llm_gym.models.attribution import logits
from llm_gym.models.load import load_encoder, load_tokenizer
from llm_gym.registration import find_task

CORPORA = Path(__file__).parents[1] / "llm_gym" / "data" / "corpora"
MILL = (
    "#Person1#: Excuse me, how do I get to the old mill?\n"
    "#Person2#: Take the lane behind the church, then it's a mile along the river.\n"
    "#Person1#: Is there a bus? My knee hurts.\n"
    "#Person2#: Not on Sundays, I'm afraid. I could drive you, I'm a farmer up there.\n"
    "#Person1#: That would be wonderful."
)
RIGHT = "#Person1# asks #Person2# the way. #Person1# has a bad knee. #Person2# offers a lift."


def episode(text: str, source: str = MILL) -> Episode:
    return Episode({"id": "a"}, source=source, text=text)


@pytest.fixture(scope="module")
def minilm() -> tuple:
    return load_tokenizer("minilm-l6"), load_encoder("minilm-l6")


# --- whom a text is about -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name", "whose"),
    [
        ("#A#: Thanks, Tom.\n#B#: Not at all.", "Tom", "#B#"),
        ("#A#: Good morning, Dr. Lee!\n#B#: Morning.", "Dr. Lee", "#B#"),
        ("#A#: Dr. Lee? It hurts.\n#B#: Where?", "Lee", "#B#"),
        ("#A#: Hello, this is Tom Reed.\n#B#: Hello.", "Tom Reed", "#A#"),
        ("#A#: I'm Tom.\n#B#: Hi Tom!", "Tom", "#A#"),
        ("#A#: Have you met my brother Tom yet?\n#B#: No.", "Tom", None),
        ("#A#: Well, Tom, and you?\n#B#: Yes, Tom, fine.", "Tom", None),
        ("#A#: Thanks, Tom.\n#B#: Not at all.\n#C#: Fine.", "Tom", None),
    ],
)
def test_who_goes_by_a_name_is_told_by_how_they_are_addressed(said, name, whose):
    assert speaker_names(f"Then {name} leaves.", turns(said)).get(name) == whose


@pytest.mark.parametrize("source", ["", "It rained.\nNote: bring boots.", "Ann: Is it far?\nAnn: Hello?"])
def test_what_is_no_dialogue_has_no_turns_and_scores_nothing(source):
    assert turns(source) == [] and asked_of(source, "Ann asks the way.") == []
    assert build("attribution")([episode("Ann asks the way.", source)])[0].value == 0


def test_clauses_about_nobody_everybody_or_somebody_else_count_nothing():
    text = "#Person1# and #Person2# talk. It is Sunday. So Oda Brenn thanks #Person2#."
    assert asked_of(MILL, text) == [None, None, None]
    half, whole = build("attribution")(
        [episode("#Person1# asks the way. It is late."), episode("#Person1# asks the way.")]
    )
    assert half.value == pytest.approx(whole.value / 2, abs=1e-6) and whole.value > 0


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("Ann is lost, but Bob knows the way.", [("Ann", "Anna is lost"), ("Bob", "Anna knows the way.")]),
        ("Ann and Bob talk, and Ann leaves.", [None, ("Ann", "Anna leaves.")]),
        ("Bob thinks of Ann, Carl and Bob's mother.", [("Bob", "Anna thinks of Ben, Carl and Anna's mother.")]),
        ("Since Ann limps, Bob drives her.", [("Ann", "Since Anna limps"), ("Bob", "Anna drives her.")]),
    ],
)
def test_a_sentence_is_cut_where_a_speaker_begins_a_clause(text, clauses):
    found = asked_of("Ann: Is it far? My Carl waits.\nBob: A mile.", text)
    assert [one and (one.speaker, one.sentence) for one in found] == clauses


# --- the numbers --------------------------------------------------------------------------------------------


def test_of_two_speakers_each_has_the_others_logit_negated(minilm):
    asked = asked_of(MILL, RIGHT)
    others = {"#Person1#": "#Person2#", "#Person2#": "#Person1#"}
    with torch.no_grad():
        told = logits(*minilm, asked)
        reverse = logits(*minilm, [one._replace(speaker=others[one.speaker]) for one in asked])
    torch.testing.assert_close(told, -reverse)


def test_many_at_once_are_as_one_by_one(minilm):
    rows = load_examples(CORPORA / "who_said_what.jsonl", "all", find_task("TextSummary-v0"))
    asked = [one for row in list(rows)[:8] for one in asked_of(row["document"], row["summary"]) if one]
    with torch.no_grad():
        together = logits(*minilm, asked)
        alone = torch.cat([logits(*minilm, [one]) for one in asked])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


def test_special_tokens_in_a_dialogue_are_plain_characters(minilm):
    (asked,) = asked_of("Ann: Is it [SEP] far?\nBob: A mile.", "Ann asks the way.")
    (plain,) = asked_of("Ann: Is it far?\nBob: A mile.", "Ann asks the way.")
    with torch.no_grad():
        assert torch.isfinite(logits(*minilm, [asked, plain])).all()


def test_what_was_scored_before_is_remembered_and_the_same():
    scorer = build("attribution")
    texts = [episode(RIGHT), episode("#Person2# asks the way.")]
    assert scorer(texts)[0] == build("attribution")(texts[:1])[0]


# --- training -----------------------------------------------------------------------------------------------


def pairs(count: int) -> list[tuple[str, str]]:
    rows = load_examples(CORPORA / "who_said_what.jsonl", "all", find_task("TextSummary-v0"))
    return [(row["document"], row["summary"]) for row in list(rows)[:count]]


def test_a_model_comes_back_as_it_was_saved_and_the_same_seed_gives_the_same(tmp_path):
    configs = [train_attribution(pairs(10), tmp_path / name, epochs=1) for name in ("one", "two")]
    assert configs[0] == configs[1] and configs[0]["dialogues"] == 8
    for file in ("adapter_model.safetensors", "attribution.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert not (tmp_path / "one" / "README.md").exists()
    found, test = held_out(dialogues(pairs(10)))
    told = AttributionModel(str(tmp_path / "one"))([one for dialogue in test for one in dialogue.asked])
    hits = sum(logit > 0 for logit in told)
    assert hits / len(told) == pytest.approx(configs[0]["held_out"]["accuracy"]["value"])


def test_training_makes_the_right_speakers_likelier(tmp_path):
    lines: list[str] = []
    train_attribution(pairs(40), tmp_path / "model", epochs=3, say=lines.append)
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.2


def test_what_cannot_be_learned_from_is_said(tmp_path):
    with pytest.raises(LLMGymError, match="summaries sentences such as"):
        train_attribution([("It rained.", "Rain.")], tmp_path / "model")
    with pytest.raises(LLMGymError, match="at least 2"):
        train_attribution([(MILL, RIGHT)], tmp_path / "model")
    (tmp_path / "model").mkdir()
    with pytest.raises(LLMGymError, match="exists already"):
        train_attribution(pairs(4), tmp_path / "model")
    with pytest.raises(LLMGymError, match="is no attribution model"):
        build({"attribution": {"path": str(tmp_path / "model")}})
    (tmp_path / "model" / "attribution.json").write_text(json.dumps({"llm_gym_attribution": 99}))
    with pytest.raises(LLMGymError, match="another version"):
        build({"attribution": {"path": str(tmp_path / "model")}})


def test_the_command_trains_from_any_columns(tmp_path, capsys):
    data = tmp_path / "talks.jsonl"
    rows = [{"id": str(i), "talk": talk, "minutes": text} for i, (talk, text) in enumerate(pairs(8))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "model")
    arguments = ["--data", str(data), "--columns", "document=talk", "summary=minutes", "--epochs", "1", "--out", out]
    assert main(["feedback", "train-attribution", *arguments]) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    assert -1 <= build({"attribution": {"path": out}})([episode(RIGHT)])[0].value <= 1


# --- the bundled model --------------------------------------------------------------------------------------


def test_the_bundled_model_tells_swapped_speakers_in_dialogues_that_it_has_not_seen():
    from random import Random

    rows = list(load_examples(CORPORA / "who_said_what.jsonl", "all", find_task("TextSummary-v0")))
    rows += list(load_examples(CORPORA / "who_did_what_dialogues.jsonl", "all", find_task("TextSummary-v0")))
    unseen = {d.source for d in held_out(dialogues((row["document"], row["summary"]) for row in rows))[1]}
    tested = [row for row in rows if row["document"] in unseen][:60]
    scorer, hits = build("attribution"), []
    for row in tested:
        for wrong in corruptions(row["summary"], row["document"], Random(0)).get("swapped", []):
            good, bad = scorer([episode(row["summary"], row["document"]), episode(wrong, row["document"])])
            hits.append(good.value > bad.value)
    assert len(hits) > 50 and sum(hits) / len(hits) > 0.7


def test_the_bundled_model_is_small():
    files = list((CORPORA.parents[1] / "models" / "who-said-what").iterdir())
    assert {file.name for file in files} == {"adapter_config.json", "adapter_model.safetensors", "attribution.json"}
    assert sum(file.stat().st_size for file in files) < 2_000_000
