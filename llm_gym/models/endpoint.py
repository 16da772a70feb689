"""An OpenAI-compatible chat completions endpoint: several requests at a time, each until it is answered."""

from __future__ import annotations

import email.utils
import itertools
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from llm_gym.errors import LLMGymError, positive

T = TypeVar("T")
R = TypeVar("R")

MAX_BYTES = 1_000_000  # of a response; an answer needs a few thousand
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
NO_USE = (401, 403, 404, 405)  # what no other text will change


class EndpointError(LLMGymError):
    """One answer could not be had, for whatever reason."""


@dataclass
class Usage:
    """What an endpoint has cost in this process.

    Attributes:
        calls: Requests sent, retries included.
        retries: Of these, how many were repeated ones.
        failures: Of these, what stayed without an answer.
        cache_hits: What was answered from a store.
        prompt_tokens: Read, as the server counts.
        completion_tokens: Written, as the server counts.
    """

    calls: int = 0
    retries: int = 0
    failures: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint:
    """Asks a server.

    Too many requests, server errors, timeouts and cut connections are tried again, after a wait that doubles, is
    spread at random (seeded by the request) and is no shorter than the server asks for.

    Args:
        endpoint: The address that ends where `/chat/completions` begins, e.g. `http://127.0.0.1:8000/v1`.
        model: What the server calls the model.
        key_env: Name of the environment variable with the key. The key itself is kept nowhere and shown nowhere.
        concurrency: The most requests at a time.
        timeout: Seconds that one try may take.
        deadline: Seconds that a request may take, from its first try on.

    Attributes:
        usage: What was spent, a `Usage`.

    Raises:
        LLMGymError: An argument is not what it should be.
    """

    who: ClassVar[str] = "model"
    """What messages call it."""

    def __init__(
        self,
        endpoint: str,
        model: str,
        key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 30.0,
        deadline: float = 120.0,
    ) -> None:
        for name, value in (("timeout", timeout), ("deadline", deadline)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise LLMGymError(f"{name}={value!r} must be a positive number of seconds")
        self.endpoint, self.model, self.key_env = _address(endpoint), model, key_env
        self.concurrency = positive("concurrency", concurrency)
        self.timeout, self.deadline = float(timeout), float(deadline)
        self.usage = Usage()
        self._lock = threading.Lock()
        self._key()

    def each(self, function: Callable[[Any, T, threading.Event], R], items: Sequence[T]) -> list[R]:
        """Return what `function` of a client, an item and an event gives for each item, several at a time.

        The event is set when nobody waits for the answers any more.
        """
        import httpx2

        gone = threading.Event()
        # Only whole and uncompressed responses, so that their size is what was read; no redirect takes the key along.
        plain = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        with (
            httpx2.Client(
                headers={**plain, **self._authorization()},
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            ) as client,
            ThreadPoolExecutor(min(self.concurrency, len(items))) as pool,
        ):
            try:
                return list(pool.map(lambda item: function(client, item, gone), items))
            finally:
                gone.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def content(self, client: Any, body: dict[str, Any], gone: threading.Event) -> str:
        """Return what the server says to a request.

        Raises:
            EndpointError: Nothing, or nothing that can be read, within the deadline.
            LLMGymError: The server refuses the key, or does not know the address or the model.
        """
        status, raw = self._post(client, json.dumps(body), time.monotonic() + self.deadline, gone)
        self._check(status, raw)
        try:
            data = json.loads(raw)
            self._count(**tokens_used(data))
            content = data["choices"][0]["message"]["content"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            content = None
        if not isinstance(content, str):  # null where a model calls a tool or refuses
            raise EndpointError(f"the {self.who} at {self.endpoint} said nothing{self._excerpt(raw)}")
        return content

    def _check(self, status: int, raw: bytes) -> None:
        if status != 200:
            failure = LLMGymError if status in NO_USE or status < 400 else EndpointError
            raise failure(
                f"the {self.who} at {self.endpoint} answered HTTP {status}{self._excerpt(raw)}; {_remedy(status)}"
            )

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
        raise EndpointError(
            f"the {self.who} at {self.endpoint} gave no answer within its deadline of {self.deadline:g} s "
            f"(tries: {tries}, the last ended with {why}); see whether the server is well, or pass a longer deadline"
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
                    raise EndpointError(
                        f"the {self.who} at {self.endpoint} answered more than {MAX_BYTES} bytes; it is no chat server"
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
            raise LLMGymError(f"the environment variable {self.key_env!r} {state}; it must hold the {self.who}'s key")
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


def with_model(what: str, address: str, key_env: str) -> tuple[str, str]:
    """Split an address with a model behind it, such as `http://127.0.0.1:8000/v1#my-model`.

    Raises:
        LLMGymError: It names no model, or is no bare address; the message calls it `what`.
    """
    place, _, model = address.partition("#")
    _check_bare(what, place, "@?", key_env)
    if not model:
        raise LLMGymError(f"{what}={place!r} names no model; write it behind the address, as in '{place}#my-model'")
    return place, model


def _check_bare(what: str, address: str, marks: str, variable: str) -> None:
    # Before anything else is said of the address: it may hold a key, which no message must repeat.
    if any(mark in address for mark in marks):
        raise LLMGymError(
            f"the {what} must be a bare address, without any of {marks}; a key belongs into the environment variable "
            f"{variable}"
        )


def _address(endpoint: str) -> str:
    _check_bare("endpoint", str(endpoint), "@?#", "that key_env names")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except (ValueError, AttributeError, TypeError):
        usable = False
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


def tokens_used(data: dict[str, Any]) -> dict[str, int]:
    """Return what a completion has cost, as the server counts."""
    usage = data.get("usage")
    counts = {name: (usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: n for name, n in counts.items() if isinstance(n, int) and not isinstance(n, bool) and n >= 0}
