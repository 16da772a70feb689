"""A judge behind an OpenAI-compatible chat completions endpoint."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from llm_gym.errors import LLMGymError
from llm_gym.feedback.question import Question
from llm_gym.feedback.store import Store
from llm_gym.models.endpoint import Endpoint, EndpointError, tokens_used

MAX_ANSWER_TOKENS = 8
TOP = 20  # the most log-probabilities that common servers give
MIN_MASS = 1e-3  # with less probability on all answers together, the judge did not answer the question
WITHOUT_LOGPROBS = (400, 422)  # what servers say to a request for log-probabilities that they do not give


class RemoteJudge(Endpoint):
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

    who = "judge"

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
        super().__init__(endpoint, model, key_env, concurrency, timeout, deadline)
        self.on_failure = on_failure
        self._logprobs = True

    def __call__(self, questions: Sequence[Question]) -> list[tuple[float, ...] | None]:
        """Return for each question the probabilities of its answers, which sum to 1; None where the judge abstains.

        Without log-probabilities from the server the answer given has probability 1.

        Raises:
            EndpointError: A question stayed without an answer, under `on_failure="raise"`. What other questions
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
        with store.held():
            return self.each(lambda client, question, gone: self._judge(client, question, store, gone), questions)

    def _judge(self, client: Any, question: Question, store: Store, gone: threading.Event) -> tuple[float, ...] | None:
        try:
            answer = self._ask(client, question, gone)
        except EndpointError:
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
        self._check(status, raw)
        try:
            data = json.loads(raw, parse_constant=_refuse)
            self._count(**tokens_used(data))
            return _read(data["choices"][0], question.answers)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError):
            raise EndpointError(
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


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


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
