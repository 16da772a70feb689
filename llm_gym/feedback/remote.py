"""A judge behind an OpenAI-compatible chat completions endpoint."""

from __future__ import annotations

import email.utils
import hashlib
import itertools
import json
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from llm_gym.errors import LLMGymError, positive
from llm_gym.feedback.question import Question
from llm_gym.feedback.store import Store

MAX_BYTES = 1_000_000  # of a response; a judgement needs a few thousand
MAX_ANSWER_TOKENS = 8
TOP = 20  # the most log-probabilities that common servers give
MIN_MASS = 1e-3  # with less probability on all answers together, the judge did not answer the question
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
WITHOUT_LOGPROBS = (400, 422)  # what servers say to a request for log-probabilities that they do not give
NO_USE = (401, 403, 404, 405)  # what no other text will change


class JudgementError(LLMGymError):
    """One judgement could not be had, for whatever reason."""


@dataclass
class Usage:
    """What a remote judge has cost in this process.

    Attributes:
        calls: Requests sent, retries included.
        retries: Of these, how many were repeated ones.
        failures: Questions that stayed without an answer.
        cache_hits: Questions that were answered from the store.
        prompt_tokens: Read, as the server counts.
        completion_tokens: Written, as the server counts.
    """

    calls: int = 0
    retries: int = 0
    failures: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RemoteJudge:
    """Asks a server: several questions at a time, each until it is answered or its deadline has passed.

    Too many requests, server errors, timeouts and cut connections are tried again, after a wait that doubles, is
    spread at random (seeded by the question) and is no shorter than the server asks for. Answers are kept on disk.

    Args:
        endpoint: The address that ends where `/chat/completions` begins, e.g. `http://127.0.0.1:8000/v1`.
        model: What the server calls the model.
        key_env: Name of the environment variable with the key. The key itself is kept nowhere and shown nowhere.
        on_failure: `raise`, or `abstain` to answer None. A wrong address, model or key always raises.
        concurrency: The most requests at a time.
        timeout: Seconds that one try may take.
        deadline: Seconds that a question may take, from its first try on.

    Attributes:
        usage: What was spent, a `Usage`.

    Raises:
        LLMGymError: An argument is not what it should be.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        key_env: str | None = None,
        on_failure: str = "raise",
        concurrency: int = 8,
        timeout: float = 30.0,
        deadline: float = 120.0,
    ) -> None:
        if on_failure not in ("raise", "abstain"):
            raise LLMGymError(f"on_failure={on_failure!r} is unknown; expected 'raise' or 'abstain'")
        for name, value in (("timeout", timeout), ("deadline", deadline)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise LLMGymError(f"{name}={value!r} must be a positive number of seconds")
        self.endpoint, self.model, self.key_env = _address(endpoint), model, key_env
        self.on_failure, self.concurrency = on_failure, positive("concurrency", concurrency)
        self.timeout, self.deadline = float(timeout), float(deadline)
        self.usage = Usage()
        self._lock = threading.Lock()
        self._logprobs = True
        self._key()

    def __call__(self, questions: Sequence[Question]) -> list[tuple[float, ...] | None]:
        """Return for each question the probabilities of its answers, which sum to 1; None where the judge abstains.

        Without log-probabilities from the server the answer given has probability 1.

        Raises:
            JudgementError: A question stayed without an answer, under `on_failure="raise"`. What other questions
                were answered is kept.
            LLMGymError: The server refuses the key, or does not know the address or the model.
        """
        from llm_gym.models.fetch import cache_dir

        store = Store(cache_dir() / "judgements.sqlite3")
        digests = {question: self._digest(question) for question in questions}
        known: dict[str, tuple[float, ...] | None] = {**store.get(digests.values())}
        missing = [question for question, digest in digests.items() if digest not in known]
        self._count(cache_hits=len(digests) - len(missing))
        if missing:
            known |= zip((digests[q] for q in missing), self._ask_all(missing, store), strict=True)
        return [known[digests[question]] for question in questions]

    def _digest(self, question: Question) -> str:
        facts = [1, self.endpoint, self.model, TOP, question.head + question.tail, question.answers]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _ask_all(self, questions: list[Question], store: Store) -> list[tuple[float, ...] | None]:
        import httpx2

        gone = threading.Event()  # set when nobody waits for the answers any more
        # Only whole and uncompressed responses, so that their size is what was read; no redirect takes the key along.
        plain = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        with (
            store.held(),
            httpx2.Client(headers={**plain, **self._authorization()}, follow_redirects=False) as client,
            ThreadPoolExecutor(min(self.concurrency, len(questions))) as pool,
        ):
            try:
                return list(pool.map(lambda question: self._judge(client, question, store, gone), questions))
            finally:
                gone.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, client: Any, question: Question, store: Store, gone: threading.Event) -> tuple[float, ...] | None:
        try:
            answer = self._ask(client, question, gone)
        except JudgementError:
            self._count(failures=1)
            if self.on_failure == "raise":
                raise
            return None
        return store.put(self._digest(question), answer)

    def _ask(self, client: Any, question: Question, gone: threading.Event) -> tuple[float, ...]:
        until = time.monotonic() + self.deadline
        logprobs = self._logprobs
        status, raw = self._post(client, self._body(question, logprobs), until, gone)
        if logprobs and status in WITHOUT_LOGPROBS:
            status, raw = self._post(client, self._body(question, logprobs=False), until, gone)
            if status == 200:
                self._logprobs = False
        if status != 200:
            failure = LLMGymError if status in NO_USE or status < 400 else JudgementError
            raise failure(f"the judge at {self.endpoint} answered HTTP {status}{self._excerpt(raw)}; {_remedy(status)}")
        try:
            data = json.loads(raw, parse_constant=_refuse)
            self._count(**_tokens(data))
            return _read(data["choices"][0], question.answers)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError):
            raise JudgementError(
                f"the judge at {self.endpoint} answered none of {', '.join(question.answers)}{self._excerpt(raw)}; "
                "choose a judge that keeps to the answers, or on_failure='abstain'"
            ) from None

    def _body(self, question: Question, logprobs: bool) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question.head + question.tail}],
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
            **({"logprobs": True, "top_logprobs": TOP} if logprobs else {}),
        }
        return json.dumps(body)

    def _post(self, client: Any, body: str, until: float, gone: threading.Event) -> tuple[int, bytes]:
        """Return status and content of the first response that is no reason to try again."""
        import httpx2

        dice = random.Random(body)
        for tries in itertools.count(1):
            self._count(calls=1, retries=int(tries > 1))
            asked = 0.0
            try:
                status, headers, raw = self._try(client, body, until)
                if status not in (408, 425, 429) and status < 500:
                    return status, raw
                why, asked = f"HTTP {status}", _retry_after(headers.get("retry-after"))
            except httpx2.TransportError as error:
                why = type(error).__name__
            wait = max(asked, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 16)) * dice.uniform(0.5, 1.0))
            if time.monotonic() + wait >= until or gone.wait(wait):
                break
        raise JudgementError(
            f"the judge at {self.endpoint} gave no answer within its deadline of {self.deadline:g} s (tries: {tries}, "
            f"the last ended with {why}); see whether the server is well, or pass a longer deadline"
        )

    def _try(self, client: Any, body: str, until: float) -> tuple[int, Any, bytes]:
        import httpx2

        left = max(0.001, min(self.timeout, until - time.monotonic()))
        end = time.monotonic() + left
        raw = bytearray()
        with client.stream("POST", f"{self.endpoint}/chat/completions", content=body, timeout=left) as response:
            for chunk in response.iter_raw():
                raw += chunk
                if len(raw) > MAX_BYTES:
                    raise JudgementError(
                        f"the judge at {self.endpoint} answered more than {MAX_BYTES} bytes; it is no chat server"
                    )
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the response trickles in")
            return response.status_code, response.headers, bytes(raw)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        # The HTTP library would quote a key that no header can hold.
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            state = "is not set" if not key else "holds no key: a key has no spaces and no special characters"
            raise LLMGymError(f"the environment variable {self.key_env!r} {state}; it must hold the judge's key")
        return key

    def _authorization(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _excerpt(self, raw: bytes) -> str:
        """Return the beginning of what a server said, for a message; nothing if any piece of the key may be in it."""
        said = raw.decode("utf-8", "replace")
        try:
            data = json.loads(raw)
            told = data["error"]["message"] if "error" in data else data["choices"][0]["message"]["content"]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            told = said
        key = (self._key() or "").lower()
        pieces = {key[i : i + 6] for i in range(max(1, len(key) - 5))} if key else set()
        if any(piece in f"{said} {told}".lower() for piece in pieces):  # told has no escapes any more
            return " (its words are withheld, since they repeat the key)"
        return f" ({str(told)[:100]!r})" if told else ""

    def _count(self, **more: int) -> None:
        with self._lock:
            self.usage = replace(self.usage, **{name: getattr(self.usage, name) + n for name, n in more.items()})


def _address(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, AttributeError, TypeError):
        parts, usable = urlsplit(""), False
    if parts.username or parts.password or parts.query or parts.fragment:
        raise LLMGymError(
            "the endpoint must be a bare address; a key belongs into an environment variable, see key_env"
        )
    if not usable:
        raise LLMGymError(f"endpoint={endpoint!r} must be an address such as 'http://127.0.0.1:8000/v1'")
    return endpoint.rstrip("/").removesuffix("/chat/completions")


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check the key in the variable that key_env names"
    return "check endpoint and model" if status in (404, 405) or 300 <= status < 400 else "see what the server says"


def _retry_after(value: str | None) -> float:
    """Return the seconds that a server asks to wait, given as a number or as a date; 0 if it asks for nothing."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _tokens(data: dict[str, Any]) -> dict[str, int]:
    usage = data.get("usage")
    counts = {name: (usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: n for name, n in counts.items() if isinstance(n, int) and not isinstance(n, bool) and n >= 0}


def _read(choice: dict[str, Any], answers: tuple[str, ...]) -> tuple[float, ...]:
    """Return the answers' probabilities from a completion: by its log-probabilities, else by its very words.

    Raises:
        ValueError: It gives none of the answers, or what are no log-probabilities.
    """
    wanted = {answer.casefold(): i for i, answer in enumerate(answers)}
    masses = [0.0] * len(answers)
    for token, logprob in _first_token(choice):
        if not isinstance(logprob, int | float) or isinstance(logprob, bool) or not -math.inf < logprob < 0.01:
            raise ValueError("no log-probability")
        if (i := wanted.get(token.strip().casefold())) is not None:
            masses[i] += math.exp(logprob)
    if (mass := sum(masses)) >= MIN_MASS:
        return tuple(value / mass for value in masses)
    said = wanted[choice["message"]["content"].strip().rstrip(".").casefold()]
    return tuple(float(i == said) for i in range(len(answers)))


def _first_token(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """Return what the first token that is no white space could have been, with natural log-probabilities."""
    for place in (choice.get("logprobs") or {}).get("content") or []:
        if place["token"].strip():
            return [(entry["token"], entry["logprob"]) for entry in place.get("top_logprobs") or [place]]
    return []
