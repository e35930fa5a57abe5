"""An OpenAI-compatible server on loopback that answers as a test tells it to, well or badly."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from primekd.teachers.api.tokens import token_map

KEY = "sk-loopback-0123456789abcdef"
VARIABLE = "PRIMEKD_TEST_KEY"

Behaviour = Callable[["Handler", dict[str, Any]], None]


class Server(ThreadingHTTPServer):
    """`behave` answers every request; `requests` are their JSON bodies and `keys` their Authorization headers."""

    daemon_threads = True

    def __init__(self, behave: Behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.requests, self.keys = behave, [], []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"])
        self.server.behave(self, request)

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing on the screen of the tests."""


@contextmanager
def serving(behave: Behaviour) -> Iterator[Server]:
    """A server in a thread, until the block ends."""
    server = Server(behave)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def api_section(server: Server | str, **changes: Any) -> dict[str, Any]:
    """`teacher.api` of a profile for a server (or an address)."""
    url = server if isinstance(server, str) else server.url
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0, "max_spend_usd": 1.0}
    return {"model": "m", "base_url": url, "key_variable": VARIABLE, "concurrency": 1, "retries": 0} | prices | changes


def good_answer(model: str, request: dict[str, Any], text: str = "It is 7.") -> dict[str, Any]:
    """What OpenAI answers to a chat request: bytes for each token, the two best ones, no end of turn."""
    found = token_map(model)
    ids = found.tokenizer(text, add_special_tokens=False)["input_ids"]
    other = {"token": "!", "logprob": -3.0, "bytes": [33]}
    rows = [{"token": found.text(i), "logprob": -0.5, "bytes": list(found.bytes[i])} for i in ids]
    logprobs = {"content": [row | {"top_logprobs": [row, other]} for row in rows]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if request.get("logprobs"):
        choice["logprobs"] = logprobs
    usage = {"prompt_tokens": 50, "completion_tokens": len(ids), "total_tokens": 50 + len(ids)}
    return {"id": "1", "object": "chat.completion", "model": request["model"], "choices": [choice], "usage": usage}


def good(model: str, text: str = "It is 7.") -> Behaviour:
    """A server without fault."""
    return lambda handler, request: handler.reply(good_answer(model, request, text))
