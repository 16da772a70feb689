"""Chat completion servers for the tests: one that runs a model, and one that does what a script says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802
        self.raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.serve(self)  # type: ignore[attr-defined]

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, data: Any, status: int = 200, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves on loopback within a `with`; remembers when each request came, and what it asked."""

    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def serve(self, handler: Handler) -> None:
        request = json.loads(handler.raw)
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            self.respond(handler, request)
        except ConnectionError:
            handler.close_connection = True
        finally:
            with self.lock:
                self.now -= 1

    def handle_error(self, *_: Any) -> None:  # a client that went away is no news
        pass

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


def completion(content: str, logprobs: list[tuple[str, float]] | None = None) -> dict[str, Any]:
    """Return a response as OpenAI words it."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    if logprobs:
        tops = [{"token": token, "logprob": value} for token, value in logprobs]
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def scripted(*steps: Respond) -> Server:
    """Return a server that does one step a request, and the last one from then on."""
    left = list(steps)
    lock = threading.Lock()

    def respond(handler: Handler, request: dict[str, Any]) -> None:
        with lock:
            step = left.pop(0) if len(left) > 1 else left[0]
        step(handler, request)

    return Server(respond)


def says(content: str, logprobs: list[tuple[str, float]] | None = None) -> Respond:
    return lambda handler, _: handler.send(completion(content, logprobs))


def sends(data: Any, status: int = 200, **headers: str) -> Respond:
    return lambda handler, _: handler.send(data, status, **headers)


def chat_ids(name: str, content: str) -> list[int]:
    """Return the ids of a user's message as a server encodes it."""
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer(name)
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def log_probs(name: str, ids: list[int]) -> Any:
    """Return the log-probabilities of the next token, by one plain forward."""
    import torch

    from llm_gym.models.load import shared_causal_lm

    with torch.no_grad():
        return shared_causal_lm(name, dtype="float32")(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def model_server(name: str, top: int = 20) -> Server:
    """Return a server that answers with the likeliest token of a real model, and the log-probabilities of `top`."""
    from llm_gym.models.load import load_tokenizer

    tokenizer = load_tokenizer(name)
    one = threading.Lock()

    def respond(handler: Handler, request: dict[str, Any]) -> None:
        if request.get("model") != name:
            return handler.send({"error": {"message": "no such model"}}, 404)
        with one:
            told = log_probs(name, chat_ids(name, request["messages"][-1]["content"]))
        best = told[: len(tokenizer)].topk(min(top, len(tokenizer)))
        ranked = [(tokenizer.decode([i]), v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return handler.send(completion(ranked[0][0], ranked if request.get("logprobs") else None))

    return Server(respond)
