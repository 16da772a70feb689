"""CustomerService-v0: what a turn does and earns, the customer, the handbook, partners, columns and the corpus."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llm_gym  # noqa: F401
from agents.evaluate import make_envs
from agents.reference import ReferenceAgent
from agents.rollout import play
from llm_gym.data import load_examples
from llm_gym.envs.partner import ModelPartner
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build
from llm_gym.feedback.rules import copied_words, occurrences, says, words
from llm_gym.feedback.service import promises
from llm_gym.registration import find_task
from llm_gym.search import shared_index
from llm_gym.tasks.customer_service import (
    DECISIONS,
    NOTHING,
    agent_turns,
    facts_given,
    look_up,
    taken_apart,
)

ID = "CustomerService-v0"
TASK = find_task(ID)
MODELS = ("rudeness", "speech")
RULES = {name: options for name, options in TASK.feedback.items() if name not in MODELS}
ROWS = load_examples(None, "all", TASK)
ROW = next(row for row in ROWS if row["id"] == "larkfield-opened-1")
QUERY, QUESTION, LAST = ROW["turns"]
HANDBOOKS = sorted({row["handbook"] for row in ROWS})


class Sayer(ReferenceAgent):
    """Says what it is told, turn by turn, then nothing."""

    def __init__(self, envs: Any, *texts: str) -> None:
        super().__init__(envs)
        self.texts = texts

    def turn(self, row: int) -> str:
        asked = sum(turn["role"] == "agent" for turn in self.envs._turns[row])
        return self.texts[asked] if asked < len(self.texts) else ""


def make(num_envs: int = 1, **kwargs: Any) -> Any:
    arguments = {"tokenizer": "sp-1k", "feedback": RULES, "max_prompt_tokens": 700, "max_new_tokens": 160, **kwargs}
    return make_envs(ID, num_envs, arguments.pop("split", "all"), arguments)


def said(*texts: str) -> Episode:
    """Return the episode in which the agent said this to the customer with the lamp."""
    envs = make()
    return play(Sayer(envs, *texts), envs, [ROW["id"]])[0]


def agent(*texts: str) -> list[dict[str, str]]:
    return [{"role": "agent", "text": text} for text in texts]


def passage_of(row: dict[str, Any]) -> str:
    index = shared_index(row["handbook"])
    return index.documents[index.places[row["passage"]]].text


# --- a turn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "query", "heard", "decision"),
    [
        ("SEARCH: lost parcel", "lost parcel", "", None),
        ("  SEARCH:lost\nRESOLVE: refund", "lost", "", None),
        ("I look. SEARCH: lost", None, "I look. SEARCH: lost", None),
        ("Search: lost", None, "Search: lost", None),
        ("Done.\nRESOLVE: refund", None, "Done.", "refund"),
        ("Done. RESOLVE: 'Refund'. Bye", None, "Done.", "refund"),
        ("RESOLVE: refund, replace", None, "", "refund"),
        ("A RESOLVE: present RESOLVE: refund", None, "A", None),
        ("RESOLVE:", None, "", None),
        ("I resolve: refund", None, "I resolve: refund", None),
        ("", None, "", None),
    ],
)
def test_a_turn_looks_up_or_speaks_and_may_close_the_case(
    text: str, query: str | None, heard: str, decision: str | None
) -> None:
    assert taken_apart(text) == (query, heard, decision)


@pytest.mark.parametrize(
    ("text", "promised"),
    [
        ("You get a voucher.", True),
        ("Two Vouchers are yours!", True),
        ("We can't give you a voucher.", False),
        ("A voucher isn’t possible, sorry.", False),
        ("That is not possible. You get a voucher.", True),
        ("It's a vouchered thing.", False),
        ("Unfortunately there is no voucher", False),
        ("Don’t worry, you get a voucher.", True),
        ("We can't send it, but you get a voucher.", True),
        ("No lamp: you get a voucher instead.", True),
        ("You get a lamp instead of a voucher.", False),
        ("", False),
    ],
)
def test_a_promise_is_a_phrase_in_a_clause_that_denies_nothing(text: str, promised: bool) -> None:
    assert promises(text, "voucher") is promised


# --- the customer and the handbook --------------------------------------------------------------------------


def test_a_fact_is_given_when_it_is_asked_for_and_only_then() -> None:
    fact = ROW["asked"][0]["say"]
    assert TASK.reply(ROW, agent("When did it come?")) == fact
    assert TASK.reply(ROW, agent("Please tell me the date.")) == fact
    assert TASK.reply(ROW, agent("I know when it came.")) == ROW["again"]
    assert TASK.reply(ROW, agent("What colour is it?", "When did it come?")) == fact


def test_a_customer_who_is_not_helped_repeats_himself_and_then_insists() -> None:
    lines = [TASK.reply(ROW, agent(*["Hm."] * n)) for n in range(1, 6)]
    assert lines[0] == ROW["again"] and ROW["again"] not in lines[1:]
    assert all(one != other for one, other in itertools.pairwise(lines))
    assert TASK.reply(ROW, agent("SEARCH: lamp", "When did it come?", "Hm.")) == ROW["again"]


@given(st.lists(st.sampled_from(["Hm.", "SEARCH: lamp", "When?", "You are happy now. Say goodbye!", ""]), max_size=8))
def test_nothing_but_a_decision_ends_the_conversation(texts: list[str]) -> None:
    assert TASK.reply(ROW, agent(*texts, "Forget your lamp.")) is not None
    assert TASK.reply(ROW, agent(*texts, "Well. RESOLVE: decline")) is None
    assert TASK.farewell(ROW, agent(*texts, "Well. RESOLVE: decline")) == []
    assert TASK.farewell(ROW, agent(*texts, LAST)) == [{"role": "partner", "text": ROW["closing"]}]


def test_the_handbook_answers_a_search_with_its_two_best_passages() -> None:
    turns = agent("SEARCH: opening hours telephone")
    reply = TASK.reply(ROW, turns)
    assert reply.startswith("HANDBOOK\nOpening hours and how to reach us: The telephone is answered from 8")
    assert len(reply.splitlines()) <= 3 and TASK.speaker(turns) == "handbook"
    assert TASK.reply(ROW, agent("SEARCH: qzx")) == TASK.reply(ROW, agent("SEARCH:")) == NOTHING
    assert TASK.speaker(agent("Hm.")) == "partner"


def test_the_record_says_who_answered() -> None:
    episode = said(QUERY, QUESTION, LAST)
    assert [turn["role"] for turn in episode.turns] == [
        *("partner", "agent", "handbook", "agent", "partner", "agent", "partner")
    ]
    assert episode.turns[-1]["text"] == ROW["closing"] and episode.finish_reason == "stop"
    assert Episode.from_json(episode.to_json()).turns == episode.turns


def test_a_model_speaks_for_the_customer_never_for_the_handbook() -> None:
    partner = ModelPartner(TASK, "tiny-1k")
    opening = TASK.opening(ROW)
    asked = Episode(ROW, "", QUERY, turns=[*opening, *agent(QUERY)], over=False)
    idle = Episode(ROW, "", "Hm.", turns=[*opening, *agent("Hm.")], over=False)
    over = Episode(ROW, "", LAST, turns=[*opening, *agent(LAST)], over=False)
    replies = partner([asked, idle, over])
    assert replies[0] == TASK.reply(ROW, asked.turns) and replies[2] is None
    assert replies[1] is not None and replies[1].endswith(ROW["again"])
    looked_up = [*asked.turns, {"role": "handbook", "text": str(replies[0])}]
    prompt = partner._prompt(Episode(ROW, "", "Hm.", turns=[*looked_up, *agent("Hm.")]))
    assert ROW["opening"] in prompt and "HANDBOOK" not in prompt and ROW["asked"][0]["say"] not in prompt


# --- what a turn earns --------------------------------------------------------------------------------------


def test_a_case_is_worth_what_was_found_out_and_what_was_done() -> None:
    assert said(QUERY, QUESTION, LAST).reward == pytest.approx(7)
    assert said(LAST).reward == pytest.approx(6)  # nothing looked up or asked
    assert said(QUERY, LAST).reward == said(QUESTION, LAST).reward == pytest.approx(6.5)
    assert said(QUERY, QUESTION, "RESOLVE: refund").reward == pytest.approx(4)
    assert said(QUERY, QUESTION, "It comes back in full. RESOLVE: refund").reward == pytest.approx(5.5)
    assert said(QUERY, QUESTION, "That's for the card. RESOLVE: escalate").reward == pytest.approx(1)
    assert said(QUERY, QUESTION, "In full to your card. RESOLVE: decline").reward == pytest.approx(1 - 2)
    assert said("Hm.").reward == pytest.approx(-3 * 0.25)  # six turns where three will do


def test_what_was_said_earlier_counts_as_told_and_asking_again_earns_nothing() -> None:
    early = said(QUERY, "When did it come? You may get it back in full to your card.", "Good. RESOLVE: refund")
    assert early.reward == pytest.approx(7)
    again = said(QUERY, QUERY, QUESTION, LAST)
    assert again.reward == pytest.approx(7 - 0.25) and again.parts["inquiry"] == pytest.approx(1 / 6)


def test_each_promise_of_what_is_not_due_costs_in_each_turn_that_makes_it() -> None:
    assert said(QUERY, QUESTION, f"You get a voucher, a nice voucher. {LAST}").reward == pytest.approx(5)
    assert said(QUERY, QUESTION, f"You don't get a voucher. {LAST}").reward == pytest.approx(7)
    twice = said(QUERY, f"You get a voucher. {QUESTION}", f"You get a voucher. {LAST}")
    assert twice.reward == pytest.approx(3) and twice.parts["breaches"] == pytest.approx(2 / 6)


def test_to_read_a_passage_out_costs_and_to_quote_it_does_not() -> None:
    assert said(QUERY, QUESTION, f"The return label is in the parcel. {LAST}").reward == pytest.approx(7)
    recited = said(QUERY, QUESTION, f"{passage_of(ROW)} {LAST}")
    assert recited.parts["recital"] > 5 / 6 and recited.reward < 7 - 5 / 6


def test_no_turn_but_those_that_help_earns_anything() -> None:
    """So that talking longer earns nothing."""
    score = build(RULES)
    for texts in (["Hm."], ["SEARCH: hours"], ["Hm.", "Thank you, dear customer."], [QUERY, QUERY]):
        (value,) = score([Episode(ROW, "", texts[-1], turns=agent(*texts), over=False)])
        assert value.value <= 0


def test_a_row_that_is_no_case_is_an_error() -> None:
    with pytest.raises(LLMGymError, match="'a' has no 'decision' and 'told'"):
        build("resolution")([Episode({"id": "a"}, "", "Hm.")])


@pytest.mark.models
def test_insults_are_ruder_than_the_authors_turns_and_a_search_is_neither() -> None:
    episodes = [Episode(row, row["opening"], row["turns"][-1]) for row in ROWS[::4]]
    rude = [Episode(e.example, e.source, f"Stop whining, you fool, I hate talking to you. {e.text}") for e in episodes]
    score = build("rudeness")
    pairs = zip(score(episodes), score(rude), strict=True)
    assert sum(one.value < other.value for one, other in pairs) >= 0.85 * len(episodes)
    search, nothing = (Episode(ROW, ROW["opening"], text) for text in (QUERY, ""))
    assert [s.value for s in score([search, nothing])] == [0, 1]
    assert [s.value for s in build({"speech": {"ceiling": -4.0}})([search, nothing])] == [0, -4]


# --- data of one's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "sue"}, "'decision' is 'sue'; expected one of refund, replace"),
        ({"passage": "larkfield-lamps"}, "'larkfield-lamps', which is no passage of handbook_larkfield"),
        ({"asked": [{"about": ["when"]}]}, "fact 1 of 'asked' must have 'say', a string, not None"),
        ({"asked": [{"about": [], "say": "x"}]}, "fact 1 of 'asked' must have 'about', a list of strings, not \\[\\]"),
        ({"told": "card"}, "column 'told' must be a list of non-empty strings"),
    ],
)
def test_a_bad_row_is_an_error_that_says_how_to_mend_it(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({**ROW, **change}) + "\n")
    with pytest.raises(LLMGymError, match=message):
        load_examples(path, "all", TASK)


def test_a_handbook_and_cases_of_ones_own(tmp_path: Path) -> None:
    handbook, cases = tmp_path / "handbook.jsonl", tmp_path / "cases.jsonl"
    handbook.write_text(json.dumps({"id": "keys", "title": "Lost keys", "text": "A new key costs 5 (replace)."}) + "\n")
    row = {name: ROW[name] for name in ("situation", "partner", "manner", "again", "closing")}
    row |= {"passage": "keys", "handbook": str(handbook), "company": "Keyes", "opening": "I lost my key."}
    row |= {"decision": "replace", "told": ["5"], "turns": ["SEARCH: lost key", "It costs 5.\nRESOLVE: replace"]}
    cases.write_text(json.dumps(row) + "\n")
    envs = make(data=str(cases))
    assert play(ReferenceAgent(envs), envs, ["row-1"])[0].reward == pytest.approx(7)
    del row["turns"]
    cases.write_text(json.dumps(row) + "\n")
    envs = make(data=str(cases))
    with pytest.raises(LLMGymError, match="no references"):
        play(ReferenceAgent(envs), envs, ["row-1"])


def test_cases_about_one_passage_stay_together_where_a_file_has_no_splits(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "split"}) + "\n" for row in ROWS))
    parts = [{row["passage"] for row in load_examples(path, s, TASK)} for s in ("train", "validation", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


# --- the corpus ---------------------------------------------------------------------------------------------


def test_the_reference_agent_settles_every_case_within_the_turns_it_needs() -> None:
    envs = make(16)
    episodes = play(ReferenceAgent(envs), envs, envs.example_ids)
    assert episodes is not None and len(episodes) == 108
    for episode in episodes:
        assert episode.reward == pytest.approx(7), (episode.example["id"], episode.parts)
        assert episode.turns[-1]["text"] == episode.example["closing"]


@pytest.mark.parametrize(
    ("split", "size", "digest"),
    [("train", 70, "11160c3e4b23b7ee"), ("validation", 14, "eb824a00507c340a"), ("test", 24, "f103c929e93b7146")],
)
def test_splits_are_fixed(split: str, size: int, digest: str) -> None:
    ids = sorted(row["id"] for row in load_examples(None, split, TASK))
    assert len(ids) == size and hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == digest


def test_each_deciding_passage_has_two_cases_that_end_differently() -> None:
    passages = {row["passage"]: [other for other in ROWS if other["passage"] == row["passage"]] for row in ROWS}
    assert len(passages) == 54 and all(len(pair) == 2 for pair in passages.values())
    for one, other in passages.values():
        assert one["handbook"] == other["handbook"] and one["company"] == other["company"]
        assert one["told"] != other["told"]
    different = sum(one["decision"] != other["decision"] for one, other in passages.values())
    assert different >= 0.95 * len(passages)


def test_decisions_are_balanced_and_none_is_most_of_them() -> None:
    counts = {decision: sum(row["decision"] == decision for row in ROWS) for decision in DECISIONS}
    assert min(counts.values()) >= 8 and max(counts.values()) <= 0.25 * len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_the_handbook_answers_the_case_and_the_customer_does_not(row: dict[str, Any]) -> None:
    passage = passage_of(row)
    assert f"({row['decision']})" in passage
    assert row["told"] and all(says(passage, [key]) for key in row["told"]), "told"
    forbidden = row.get("forbidden", [])
    assert not forbidden or any(says(passage, [phrase]) for phrase in forbidden), "forbidden"
    lines = [row["situation"], row["opening"], row["again"], *(fact["say"] for fact in row.get("asked", ()))]
    assert not says(" ".join(lines), row["told"])
    spoken = [turn.said for turn in agent_turns(agent(*row["turns"]))]
    assert not any(promises(text, phrase) for text in spoken for phrase in forbidden)
    assert not any(copied_words(text, passage, 7) for text in spoken)
    assert not set(row["told"]) & set(forbidden)
    for fact in row.get("asked", ()):
        assert not any(copied_words(fact["say"], line) for line in (row["situation"], row["opening"], row["again"]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_the_author_searches_asks_for_every_fact_and_closes(row: dict[str, Any]) -> None:
    first, *middle, last = agent_turns(agent(*row["turns"]))
    assert first.query and row["passage"] in [document.id for document in look_up(row, first.query)]
    assert len(middle) == bool(row.get("asked")) and not any(turn.query or turn.decision for turn in middle)
    assert facts_given(row, middle) == list(range(len(row.get("asked", ()))))
    assert last.decision == row["decision"] and says(last.said, row["told"])
    assert len(words(last.said)) <= 45 and last.said[-1] in ".!?"


def test_to_read_the_passage_out_makes_a_false_promise_to_most_customers() -> None:
    broken = [any(promises(passage_of(row), phrase) for phrase in row.get("forbidden", ())) for row in ROWS]
    assert sum(broken) >= 0.65 * len(ROWS) and sum("forbidden" in row for row in ROWS) >= 0.9 * len(ROWS)


def test_handbooks_are_of_the_stated_size_and_no_passage_occurs_twice() -> None:
    documents = [document for name in HANDBOOKS for document in shared_index(name).documents]
    assert len(HANDBOOKS) == 6 and len(documents) == 72
    assert len({document.text for document in documents}) == len({document.id for document in documents}) == 72
    assert all(30 <= len(words(document.text)) <= 60 and document.title for document in documents)
    for one, other in itertools.combinations(documents, 2):
        assert copied_words(one.text, other.text, 8) == 0, (one.id, other.id)


def test_customers_are_different_people_with_different_words() -> None:
    for column in ("partner", "opening", "again", "closing", "manner", "situation"):
        assert len({row[column] for row in ROWS}) >= 0.97 * len(ROWS), column
    assert all(occurrences(row["opening"], row["decision"]) <= 1 for row in ROWS)


def test_an_opening_alone_often_finds_the_wrong_passages() -> None:
    found = [row["passage"] in [document.id for document in look_up(row, row["opening"])] for row in ROWS]
    assert sum(found) < len(ROWS)


@pytest.mark.models
def test_cases_fit_into_the_environment() -> None:
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    envs = gym.make_vec(ID, num_envs=1, split="all", feedback="length").unwrapped
    assert all(envs._prompt(i).words_cut == 0 for i in range(len(envs.examples)))
    assert max(len(tokenizer(text)["input_ids"]) for row in ROWS for text in row["turns"]) < TASK.max_new_tokens
    documents = [document for name in HANDBOOKS for document in shared_index(name).documents]
    sizes = sorted(len(tokenizer(f"{d.title}: {d.text}")["input_ids"]) for d in documents)
    assert sizes[-1] + sizes[-2] + 20 <= TASK.max_reply_tokens
