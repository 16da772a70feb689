"""Judges behind an endpoint, over real HTTP, served by a model and by servers that misbehave; their cache."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_server import Handler, Server, chat_ids, completion, log_probs, model_server, says, scripted, sends
from llm_gym.episode import Episode
from llm_gym.errors import LLMGymError
from llm_gym.feedback import build, judge
from llm_gym.feedback.judge import INTRO, Comparer, Pairwise, Rating, YesNo
from llm_gym.feedback.question import Question, quote
from llm_gym.feedback.remote import RemoteJudge
from llm_gym.feedback.store import Store
from llm_gym.models import endpoint
from llm_gym.models.endpoint import EndpointError
from llm_gym.models.fetch import cache_dir

RAIN = "All night rain fell on the hills, and by noon the lower road was closed."
ASKED = Question("Source: rain.\n", "Is it good?", ("Yes", "No"))
KEY = "sk-Zq81mWv7Lp3"
MODELS = cache_dir() / "models"
GOOD = says("Yes", [("Yes", math.log(0.6)), (" no", math.log(0.15)), ("Perhaps", math.log(0.2)), (" YES", -3.0)])


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, judges and waits of each test's own, and no proxy in the way."""
    monkeypatch.setenv("LLM_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    judge._remote_judge.cache_clear()


def ask(server: Server, count: int = 1, **options: Any) -> list[tuple[float, ...] | None]:
    return remote_judge(server, **options)([Question("", f"{ASKED.tail} {i}", ASKED.answers) for i in range(count)])


def remote_judge(server: Server, **options: Any) -> RemoteJudge:
    return RemoteJudge(server.url, "m", **{"timeout": 5.0, "deadline": 20.0, **options})


def episode(text: str, source: str = RAIN) -> Episode:
    return Episode({"id": "a", "document": source}, source=source, text=text)


# --- servers that answer ------------------------------------------------------------------------------------


def test_scores_over_http_are_those_of_the_model_behind_the_server(tiny_model):
    texts = ["Rain closed the road.", "No.", "Yes yes yes."]
    with model_server(tiny_model, top=10_000) as server:
        values = Rating(model=tiny_model, endpoint=server.url)([episode(t) for t in texts])
        pairs = Comparer(model=tiny_model, endpoint=server.url).orders([(RAIN, texts[0], texts[1])])
    prompts = [request["messages"][0]["content"] for request in server.requests]
    assert len(prompts) == 5 and all(prompt.startswith(INTRO + quote("source", RAIN)) for prompt in prompts)
    for text, value in zip(texts, values, strict=True):
        (prompt,) = (p for p in prompts if quote("text", text) in p)
        assert value == pytest.approx(expected(tiny_model, prompt, 5) @ np.linspace(0, 1, 5), abs=1e-4)
    (ahead,) = (p for p in prompts if quote("first", texts[0]) in p)
    (behind,) = (p for p in prompts if quote("second", texts[0]) in p)
    shares = expected(tiny_model, ahead, 2)[0], expected(tiny_model, behind, 2)[1]
    assert pairs[0] == pytest.approx(shares, abs=1e-4)


def expected(model: str, prompt: str, digits: int) -> np.ndarray:
    """Probabilities of the digits, by one plain forward over the prompt as the server encodes it."""
    from llm_gym.models.load import load_tokenizer

    told = log_probs(model, chat_ids(model, prompt)).double().exp().numpy()
    shares = np.array([told[load_tokenizer(model).convert_tokens_to_ids(str(i + 1))] for i in range(digits)])
    return shares / shares.sum()


@pytest.mark.models
def test_the_real_model_judges_alike_here_and_behind_a_server(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(MODELS)
    episodes = [episode(t) for t in ("Rain closed the lower road.", "The text describes something.", "5 5 5")]
    with model_server("smollm2-135m", top=5_000) as server:  # twenty would leave out some ratings
        there = Rating(endpoint=server.url)([*episodes])
    here = Rating()([*episodes])
    assert there == pytest.approx(here, abs=0.05)  # the parts of a prompt are encoded one by one here, as one there


def test_probabilities_come_from_all_spellings_of_the_answers_among_the_first_tokens():
    with scripted(GOOD) as server:
        judge = remote_judge(server)
        (shares,) = judge([ASKED])
    yes = 0.6 + math.exp(-3)
    assert shares == pytest.approx((yes / (yes + 0.15), 0.15 / (yes + 0.15)))
    assert (judge.usage.calls, judge.usage.prompt_tokens, judge.usage.completion_tokens) == (1, 7, 2)
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": ASKED.head + ASKED.tail}]
    assert request["temperature"] == 0 and request["logprobs"] is True and request["model"] == "m"


@pytest.mark.parametrize(("said", "shares"), [("Yes", (1, 0)), (" no.\n", (0, 1)), ("YES", (1, 0))])
def test_without_log_probabilities_the_answer_itself_counts(said, shares):
    with scripted(says(said)) as server:
        assert ask(server) == [shares]


def test_a_leading_space_token_is_skipped():
    place = [{"token": " ", "logprob": 0.0, "top_logprobs": [{"token": "No", "logprob": -9.0}]}]
    place += [{"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "Yes", "logprob": -0.1}]}]
    answer = completion("Yes")
    answer["choices"][0]["logprobs"] = {"content": place}
    with scripted(sends(answer)) as server:
        assert ask(server) == [(1, 0)]


def test_a_server_that_refuses_log_probabilities_is_asked_without_them_from_then_on():
    def strict(handler: Handler, request: dict[str, Any]) -> None:
        if "logprobs" in request:
            return handler.send({"error": {"message": "logprobs not supported"}}, 400)
        return handler.send(completion("No"))

    with scripted(strict) as server:
        judge = remote_judge(server, concurrency=1)
        assert judge([ASKED]) == [(0, 1)]
        assert judge([Question("", "Another?", ASKED.answers)]) == [(0, 1)]
    assert ["logprobs" in request for request in server.requests] == [True, False, False]


def test_questions_are_asked_side_by_side_up_to_the_limit_and_each_once():
    def slow(handler: Handler, request: dict[str, Any]) -> None:
        time.sleep(0.05)
        GOOD(handler, request)

    with scripted(slow) as server:
        judge = remote_judge(server, concurrency=3)
        questions = [Question("", f"{i}?", ASKED.answers) for i in range(12)]
        told = judge([*questions, *questions])
    assert 1 < server.most <= 3 and len(server.requests) == 12 and told[:12] == told[12:]


# --- servers that misbehave ---------------------------------------------------------------------------------


def sleeps(handler: Handler, _: dict[str, Any]) -> None:
    time.sleep(1.0)
    with contextlib.suppress(OSError):
        handler.send(completion("No"))


def trickles(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _byte in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def cuts(handler: Handler, _: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


def cuts_in_the_middle(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


@pytest.mark.parametrize(
    "failure",
    [
        *(sends({"error": {"message": "busy"}}, status) for status in (408, 429, 500, 502, 503)),
        sends(b"<html>", 504),
        sends(b"", 429, Retry_After="soon"),
        sends(b"", 429, Retry_After="-5"),
        sleeps,
        trickles,
        cuts,
        cuts_in_the_middle,
    ],
)
def test_a_passing_failure_is_tried_again(failure):
    with scripted(failure, failure, GOOD) as server:
        judge = remote_judge(server, timeout=0.4, on_failure="abstain")
        (shares,) = judge([ASKED])
    assert shares is not None and shares[0] == pytest.approx(0.812, abs=1e-3)
    assert len(server.requests) == 3
    assert (judge.usage.calls, judge.usage.retries, judge.usage.failures) == (3, 2, 0)


@pytest.mark.parametrize("asked", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_server_is_left_in_peace_for_as_long_as_it_asks(asked):
    def busy(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(b"", 429, Retry_After=asked())

    with scripted(busy, GOOD) as server:
        assert ask(server) != [None]
    assert server.times[1] - server.times[0] >= 0.95


def test_a_wait_beyond_the_deadline_is_not_begun():
    with scripted(sends(b"", 429, Retry_After="3600")) as server:
        with pytest.raises(EndpointError, match=r"gave no answer within its deadline of 20 s \(tries: 1.* HTTP 429"):
            ask(server)
    assert len(server.requests) == 1


def test_a_server_that_stays_broken_ends_with_the_deadline():
    with scripted(sends(b"", 503)) as server:
        with pytest.raises(EndpointError, match="gave no answer within its deadline of 0.3 s .* HTTP 503"):
            ask(server, deadline=0.3)
    assert len(server.requests) > 2


def test_nobody_there_ends_with_the_deadline():
    with scripted(GOOD) as server:
        pass
    with pytest.raises(EndpointError, match="the last ended with ConnectError"):
        ask(server, deadline=0.3)


def nested(handler: Handler, _: dict[str, Any]) -> None:
    handler.send(b"[" * 200_000)


BAD = {
    "bad JSON": sends(b"{nope"),
    "no text at all": sends(b""),
    "no UTF-8": sends(b"\xff\xfe\x00"),
    "HTML": sends(b"<html>It works!</html>"),
    "a list": sends([1, 2]),
    "null": sends(b"null"),
    "no choices": sends({"choices": []}),
    "content null": sends(completion("Yes") | {"choices": [{"message": {"content": None}}]}),
    "nested": nested,
    "huge": sends(json.dumps(completion("Yes" * 400_000)).encode()),
    "NaN": sends(b'{"choices": [{"message": {"content": "Yes"}, "logprobs": NaN}]}'),
    "NaN log-probability": says("Yes", [("Yes", math.nan)]),
    "infinite log-probability": says("Yes", [("Yes", -math.inf)]),
    "overflowing log-probability": sends(
        json.dumps(completion("Yes", [("Yes", -1.0)])).replace("-1.0", "1e999").encode()
    ),
    "log-probability of many digits": sends(json.dumps(completion("Yes", [("Yes", -(10**400))])).encode()),
    "positive log-probability": says("Yes", [("Yes", 3.0)]),
    "log-probability in words": says("Yes", [("Yes", "high")]),  # type: ignore[list-item]
    "another answer": says("Maybe"),
    "an answer in a sentence": says("Yes, it is good, but No would do."),
    "both": says("Yes No"),
    "a number": says("0"),
    "a refusal": says("I cannot", [("I", -1e-4), ("Sorry", -9.0), ("Yes", -11.0), ("No", -12.0)]),
    "nothing said": says(""),
    "a bad request": sends({"error": {"message": "context too long"}}, 400),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_judgement_raises_or_abstains_is_counted_and_is_never_a_number(name):
    with scripted(BAD[name]) as server:
        with pytest.raises(EndpointError) as caught:
            ask(server)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        judge = remote_judge(server, on_failure="abstain")
        assert judge([ASKED]) == [None] and judge.usage.failures == 1
        options = {"endpoint": server.url, "model": "m", "on_failure": "abstain"}
        scorer = YesNo(**options)
        assert scorer([episode("Rain."), episode("")]) == [None, 0.0]
        assert Comparer(**options)([(RAIN, "a", "b")]) == [None]
        shown = Pairwise(**options).compare([episode("Rain.")] * 2, [episode("Snow."), episode("")])
        assert math.isnan(shown[0]) and shown[1] == 0.5
        (score,) = build({"yes_no": {"weight": 1.0, **options}, "length": 1.0})([episode("Rain.")])
        assert math.isnan(score.value) and score.abstained == ("yes_no",)
    assert Store(Path(remote_cache())).get([judge._digest(ASKED)]) == {}


# --- partners that speak through an endpoint -----------------------------------------------------------------


def talk(address: str) -> list[Episode]:
    """Play two conversations with a partner behind an address; the agent writes some tokens a turn."""
    import gymnasium as gym

    from agents.best_of_n import RandomAgent
    from agents.rollout import play

    envs = gym.make_vec("Dialogue-v0", num_envs=2, tokenizer="sp-1k", feedback="length", partner=address,
                        max_new_tokens=3, autoreset_mode="Disabled").unwrapped  # fmt: skip
    return play(RandomAgent(envs), envs, envs.example_ids[:2]) or []


def test_a_partner_behind_an_endpoint_reacts_and_then_follows_its_script() -> None:
    with scripted(says("That is no help at all. Goodbye.")) as server:
        episodes = talk(f"{server.url}#m")
    for e in episodes:
        replies = [turn["text"] for turn in e.turns if turn["role"] == "partner"][1:]
        script = [goal for goal in e.example["goals"]]
        assert replies and all(text.startswith("That is no help at all. ") for text in replies)
        assert any(goal["again"] in text for goal in script for text in replies)
    asked = server.requests[0]
    assert asked["model"] == "m" and asked["temperature"] == 0
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert not any(fact in json.dumps(server.requests) for fact in episodes[0].example["briefing"])


def test_a_partner_is_asked_again_and_its_key_stays_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GYM_PARTNER_KEY", KEY)
    with scripted(sends({}, 503), says("Fine.")) as server:
        assert talk(f"{server.url}#again")
    monkeypatch.setenv("LLM_GYM_PARTNER_KEY", KEY)
    with scripted(sends({"error": {"message": f"no such key {KEY}"}}, 401)) as server:
        with pytest.raises(LLMGymError, match="the model at .* answered HTTP 401 .its words are withheld") as caught:
            talk(f"{server.url}#m2")
    assert KEY not in str(caught.value)
    with scripted(sends({"choices": []})) as server, pytest.raises(EndpointError, match="the model at .* said nothing"):
        talk(f"{server.url}#m3")
    with pytest.raises(LLMGymError, match="names no model; write it behind the address, as in"):
        talk("http://127.0.0.1:1/v1")
    refusal = sends({"choices": [{"message": {"content": None, "refusal": "No."}}]})
    with scripted(refusal) as server, pytest.raises(EndpointError, match="the model at .* said nothing"):
        talk(f"{server.url}#m4")


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{KEY}@127.0.0.1:1/v1",
        f"http://{KEY}@127.0.0.1:1/v1",
        f"http://127.0.0.1:1/v1?key={KEY}",
        f"http://127.0.0.1:99999/v1?key={KEY}",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    for use in (lambda: talk(address), lambda: talk(f"{address}#m"), lambda: YesNo(endpoint=address, model="m")):
        with pytest.raises(LLMGymError, match="must be a bare address") as caught:
            use()
        assert KEY not in str(caught.value)


def test_as_many_requests_are_under_way_as_are_allowed() -> None:
    together = threading.Barrier(130)  # 100 is what the HTTP library allows where nobody says otherwise

    def once_all_have_come(handler: Handler, _: dict[str, Any]) -> None:
        together.wait(timeout=60.0)
        handler.send(completion("Yes"))

    with scripted(once_all_have_come) as server:
        ask(server, 130, concurrency=130, timeout=90.0, deadline=90.0)
        assert server.most == 130


def remote_cache() -> str:
    from llm_gym.models.fetch import cache_dir

    return str(cache_dir() / "judgements.sqlite3")


def test_one_criterion_without_an_answer_makes_the_whole_rubric_abstain():
    def half(handler: Handler, request: dict[str, Any]) -> None:
        second = "kind" in request["messages"][0]["content"]
        handler.send(completion("Perhaps" if second else "Yes"))

    rows = [{"question": "Is it true?"}, {"question": "Is it kind?"}]
    with scripted(half) as server:
        options = {"endpoint": server.url, "model": "m", "on_failure": "abstain"}
        assert build({"rubric": {"criteria": rows[:1], **options}})([episode("Rain.")])[0].value == 1.0
        assert build({"rubric": {"criteria": rows, **options}})([episode("Rain.")])[0].abstained == ("rubric",)


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404])
def test_a_wrong_address_or_key_raises_even_where_a_judge_may_abstain_and_no_redirect_is_followed(status):
    with scripted(GOOD) as other, scripted(sends(b"", status, Location=f"{other.url}/chat/completions")) as server:
        with pytest.raises(LLMGymError, match=f"answered HTTP {status}; check") as caught:
            ask(server, on_failure="abstain")
    assert not isinstance(caught.value, EndpointError) and len(server.requests) == 1 and not other.requests


def test_what_was_answered_is_kept_when_another_question_fails():
    def picky(handler: Handler, request: dict[str, Any]) -> None:
        handler.send(completion("Hm" if "3" in request["messages"][0]["content"] else "Yes"))

    with scripted(picky) as server:
        with pytest.raises(EndpointError):
            ask(server, 4, concurrency=1)
        asked = len(server.requests)
        assert asked == 4 and ask(server, 3) == [(1, 0)] * 3 and len(server.requests) == asked


# --- keys ---------------------------------------------------------------------------------------------------


def escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}"


def echo(status: int, wrap: Any) -> Any:
    def respond(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(wrap(handler.headers["Authorization"]), status)

    return respond


@pytest.mark.parametrize(
    "respond",
    [
        echo(401, lambda header: {"error": {"message": f"Incorrect API key provided: {header}"}}),
        echo(401, lambda header: {"error": {"message": f"Incorrect API key provided: {header[:15]}***"}}),
        echo(400, lambda header: {"error": {"message": header.upper()}}),
        echo(200, lambda header: completion(header)),
        echo(200, lambda header: {"choices": header}),
        echo(200, lambda header: header.encode()),
        echo(400, lambda header: json.dumps({"error": {"message": header}}).replace("sk-", "\\u0073k-").encode()),
        echo(400, lambda header: b'{"error": {"message": "%s"}}' % "".join(map(escaped, header)).encode()),
        echo(500, lambda header: header.encode()),
    ],
)
def test_a_key_is_sent_but_is_shown_and_kept_nowhere(respond, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def watched(handler: Handler, request: dict[str, Any]) -> None:
        seen.append(handler.headers["Authorization"])
        (respond if len(seen) == 1 or "2?" in str(request) else GOOD)(handler, request)

    with scripted(watched) as server:
        options = {"endpoint": server.url, "model": "m", "key_env": "JUDGE_KEY", "deadline": 0.3}
        feedback = build({"yes_no": {"weight": 1.0, **options}})
        judge = remote_judge(server, key_env="JUDGE_KEY", deadline=0.3)
        told = []
        with pytest.raises(LLMGymError) as caught:
            judge([Question("", "2?", ASKED.answers)])
        told.append("".join(traceback.format_exception(caught.value)))
        judge([ASKED])
        feedback([episode("Rain.")])
    assert set(seen) == {f"Bearer {KEY}"}
    told += [repr(judge), str(vars(judge)), json.dumps(feedback.spec), repr(feedback), caplog.text, *capfd.readouterr()]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for text in (*told, *(file.decode("latin-1") for file in files)):
        for start in range(len(KEY) - 5):
            assert KEY[start : start + 6].lower() not in text.lower()


def test_what_a_server_says_is_shown_where_it_says_nothing_secret(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with scripted(sends({"error": {"message": "context too long"}}, 400)) as server:
        with pytest.raises(EndpointError, match=r"answered HTTP 400 \('context too long'\)"):
            ask(server, key_env="JUDGE_KEY")
    with scripted(says("Perhaps")) as server:
        with pytest.raises(EndpointError, match=r"answered none of Yes, No \('Perhaps'\)"):
            ask(server, key_env="JUDGE_KEY")


@pytest.mark.parametrize("key", [None, "", "  ", "two words", "ke\u00fd-7Hs82kdjw", "line\nbreak-8Hs2Kd"])
def test_a_key_that_is_missing_or_no_key_is_an_error_that_does_not_show_it(key, monkeypatch):
    if key is None:
        monkeypatch.delenv("JUDGE_KEY", raising=False)
    else:
        monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(LLMGymError, match="the environment variable 'JUDGE_KEY'") as caught:
        RemoteJudge("http://127.0.0.1:9/v1", "m", "JUDGE_KEY")
    assert not key or not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize("address", [f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/v1#{KEY}"])
def test_a_key_in_an_address_is_refused_without_a_word_of_it(address):
    with pytest.raises(LLMGymError) as caught:
        RemoteJudge(address, "m")
    assert KEY not in str(caught.value) and "key_env" in str(caught.value)


# --- the cache on disk --------------------------------------------------------------------------------------

RUN = """
import sys
from llm_gym.episode import Episode
from llm_gym.feedback import build
feedback = build({"rubric": {"weight": 1.0, "endpoint": sys.argv[1], "model": "m"}})
scores = feedback([Episode({"id": "a"}, source="Rain fell.", text=text) for text in ("One.", "Two.", "Three.")])
print([score.value for score in scores], feedback.scorers["rubric"].judge.usage.calls)
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_makes_no_call_and_has_the_same_scores():
    def answer(handler: Handler, request: dict[str, Any]) -> None:
        rated = "1 (very bad)" in request["messages"][0]["content"]
        handler.send(completion("", [("4" if rated else "Yes", -0.3), ("2" if rated else "No", -1.5)]))

    with scripted(answer) as server:
        first = python(RUN, server.url)
        asked = len(server.requests)
        second = python(RUN, server.url)
    assert asked == 9 and len(server.requests) == asked
    assert first.split("]")[0] == second.split("]")[0] and first.endswith(" 9\n") and second.endswith(" 0\n")


def test_another_model_server_prompt_or_set_of_answers_is_another_key():
    base = RemoteJudge("http://127.0.0.1:9/v1", "m")
    other = [RemoteJudge("http://127.0.0.1:9/v1", "n"), RemoteJudge("http://127.0.0.1:8/v1", "m")]
    questions = [
        Question("a", "b", ("Yes", "No")),
        Question("a", "c", ("Yes", "No")),
        Question("b", "b", ("Yes", "No")),
        Question("a", "b", ("No", "Yes")),
    ]
    digests = [base._digest(q) for q in questions] + [judge._digest(questions[0]) for judge in other]
    assert len(set(digests)) == 6
    assert base._digest(questions[0]) == RemoteJudge("http://127.0.0.1:9/v1/", "m")._digest(questions[0])


def test_the_first_answer_stays_and_floats_come_back_exactly(tmp_path):
    store = Store(tmp_path / "deep" / "store.sqlite3")
    assert store.get(["a"]) == {} and not store.path.exists()
    values = (1 / 3, 0.1 + 0.2, 5e-324)
    assert store.put("a", values) == values and store.put("a", (0.5, 0.5)) == values
    assert store.get(["a", "b", "a"]) == {"a": values}
    with store.held():
        for i in range(1200):
            store.put(str(i), (float(i),))
    assert store.get(map(str, range(2000))) == {str(i): (float(i),) for i in range(1200)}


WRITE = """
import sys
from pathlib import Path
from llm_gym.feedback.store import Store
store, name = Store(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
i = 0
while name == "for ever" or i < 60:
    store.put(f"{name}-{i}", (float(i),))
    store.put(f"all-{i}", (float(i), float(len(name))))
    print(i, flush=True)
    i += 1
"""


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path):
    path = tmp_path / "store.sqlite3"
    names = ["a", "bb", "ccc", "dddd"]
    running = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), name], stdout=subprocess.DEVNULL) for name in names
    ]
    assert [process.wait() for process in running] == [0] * 4
    found = Store(path).get([f"{name}-{i}" for name in (*names, "all") for i in range(60)])
    assert len(found) == 300 and all(found[f"{name}-{i}"] == (float(i),) for name in names for i in range(60))
    assert {found[f"all-{i}"][1] for i in range(60)} <= {1.0, 2.0, 3.0, 4.0}


def test_a_killed_writer_leaves_all_that_it_had_written(tmp_path):
    path = tmp_path / "store.sqlite3"
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(path), "for ever"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = -1
    while last < 20:
        line = process.stdout.readline().strip()
        last = int(line) if line.isdigit() else last
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = Store(path)
    assert len(store.get([f"for ever-{i}" for i in range(last + 1)])) == last + 1
    store.put("after", (1.0,))
    assert store.get(["after"]) == {"after": (1.0,)}


def test_a_file_that_is_no_cache_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "store.sqlite3"
    path.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    for use in (lambda: Store(path).get(["a"]), lambda: Store(path).put("a", (1.0,))):
        with pytest.raises(LLMGymError, match="the judge's cache '.*store.sqlite3' cannot be used"):
            use()


def test_a_half_made_cache_of_a_killed_process_is_made_anew(tmp_path):
    (tmp_path / "store.new").write_bytes(b"half")
    assert Store(tmp_path / "store.sqlite3").put("a", (1.0,)) == (1.0,)
