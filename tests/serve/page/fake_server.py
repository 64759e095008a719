"""A server that says what a test tells it to, as `hdraft serve` would say it: the page is tested against it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from hdraft.serve.page import security_policy

PAGE = files("hdraft").joinpath("serve", "page.html")

INFO = {
    "model": "tiny",
    "dtype": "float32",
    "device": "cpu",
    "databases": {"context": True, "model": 1000, "statistics": None},
    "budget": 32,
    "max_context": 2048,
    "version": "0",
    "learn": False,
}

ANSWER = [
    [(" Red", "target")],
    [(" and", "context"), (" blue", "model"), (" make", "target")],
    [(" a", "statistics"), (" kind", "recycled"), (" of", "reference"), (" purple", "target")],
    [(".", "target")],
    [(" That", "context"), (" is", "context"), (" all", "target")],
    [(".\n", "target")],
]
"""An answer, step for step: tokens and where they came from. Every source occurs."""

TEXT = "".join(text for step in ANSWER for text, _ in step)


def tree(step: list[tuple[str, str]], rejected: int = 2) -> dict[str, list[Any]]:
    """A tree that gives the step: its drafted tokens as a chain, with rejected nodes beside the first ones."""
    kept = [token for token in step if token[1] != "target"]
    if not kept:
        return {"texts": [], "parents": [], "sources": [], "probabilities": [], "accepted": []}
    n = len(kept)
    return {
        "texts": [text for text, _ in kept] + [f" no{i}" for i in range(rejected)],
        "parents": [*range(-1, n - 1), *((i % (n + 1)) - 1 for i in range(rejected))],
        "sources": [source for _, source in kept] + ["recycled"] * rejected,
        "probabilities": [0.9 / (i + 1) for i in range(n)] + [0.1] * rejected,
        "accepted": list(range(n)),
    }


def bushy_tree(nodes: int = 64) -> dict[str, list[Any]]:
    """As bushy as they come: three children each, long and wide words among them, nothing accepted but two."""
    return {
        "texts": [(" international", " 東京", "()", " a")[i % 4] + str(i) for i in range(nodes)],
        "parents": [(i - 3) // 3 if i > 2 else -1 for i in range(nodes)],
        "sources": [("context", "model", "statistics", "recycled")[i % 4] for i in range(nodes)],
        "probabilities": [1 / (i + 2) for i in range(nodes)],
        "accepted": [0, 3],
    }


def steps_of(answer: list[list[tuple[str, str]]]) -> Iterator[dict[str, Any]]:
    for step in answer:
        yield {"tokens": [{"text": text, "source": source} for text, source in step], "tree": tree(step)}


def ordinary(answer: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """The same text, a token a step, all the model's own."""
    return [[(text, "target")] for step in answer for text, _ in step]


class FakeServer:
    """Serves the page, and answers by the last message's text; what was asked is kept in `requests`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.info: dict[str, Any] = dict(INFO)
        self.abandoned = threading.Event()  # a client left before its answer's end
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/":
                    fake.reply(self, 200, "text/html; charset=utf-8", PAGE.read_bytes())
                elif self.path == "/info" and fake.admits(self):
                    fake.reply(self, 200, "application/json", json.dumps(fake.info).encode())
                elif self.path != "/info":
                    fake.fail(self, 404, "there is no such thing")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if fake.admits(self):
                    fake.requests.append(body)
                    fake.answer(self, body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def reply(handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        if kind.startswith("text/html"):
            handler.send_header("Content-Security-Policy", security_policy(body.decode()))
        handler.end_headers()
        handler.wfile.write(body)

    def fail(self, handler: BaseHTTPRequestHandler, status: int, message: str) -> None:
        error = {"error": {"message": message, "type": "invalid_request_error", "code": None, "param": None}}
        self.reply(handler, status, "application/json", json.dumps(error).encode())

    def admits(self, handler: BaseHTTPRequestHandler) -> bool:
        given = handler.headers.get("Authorization")
        self.keys.append(given)
        if self.key is None or given == f"Bearer {self.key}":
            return True
        self.fail(handler, 401, "Incorrect API key provided")
        return False

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        asked = body["messages"][-1]["content"]
        if asked == "too long":
            return self.fail(handler, 400, "the prompt has 5000 tokens, and this model takes 2048")
        if asked == "busy":
            return self.fail(handler, 429, "8 requests wait already")
        if asked == "broken object":
            return self.reply(handler, 500, "text/plain", b"<b>oops</b>")
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            for number, step in enumerate(self.steps(asked, body["hdraft"]["drafting"]), 1):
                told = {"step": number, "seconds": number / 50, **step}  # a step takes as long with drafts as without
                self.event(handler, {"choices": [{"delta": {}}], "hdraft": told})
            if asked == "breaks off":
                return None
            if asked == "fails":
                self.event(handler, {"error": {"message": "the model failed", "type": "server_error", "code": None}})
                return None
            self.event(handler, {"choices": [{"delta": {}, "finish_reason": "length" if asked == "cut" else "stop"}]})
            handler.wfile.write(b": working\n\n")  # a comment, as of servers that would not be thought dead
            self.event(handler, {"choices": [], "hdraft": {"seconds": 1.0, "steps": 6}, "usage": {}})
            handler.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.abandoned.set()
        return None

    def steps(self, asked: str, drafting: bool) -> Iterator[dict[str, Any]]:
        answer = ANSWER if drafting else ordinary(ANSWER)
        if asked == "endless":
            while not self.abandoned.wait(0.02):
                yield from steps_of([[(" on", "context"), (" and", "target")]])
        elif asked == "parts" and not drafting:
            yield from steps_of([*answer[:4], [(" violet", "target")]])
        elif asked == "hostile":
            evil = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e\u0000"
            yield from steps_of([[(evil, "context"), (evil, "__proto__"), ("</svg>" + evil, "target")]])
        elif asked == "bushy":
            yield from steps_of(answer[:1])
            texts = bushy_tree()["texts"]
            tokens = [(texts[0], "context"), (texts[3], "recycled"), (" end", "target")]
            yield {"tokens": [{"text": text, "source": source} for text, source in tokens], "tree": bushy_tree()}
        elif asked == "long":
            yield from steps_of(answer * 40)
        elif asked == "ends":  # with a token that has no text
            yield from steps_of([*answer, [("", "target")]])
        elif asked == "indented":
            tokens = ["def", " f():", "\n   ", " return", " 1\n"]
            yield from steps_of([[(text, "context") for text in tokens]])
        elif asked == "halves":  # a character whose bytes come in two tokens
            yield from steps_of([[("", "context"), ("é", "context"), ("!", "target")]])
        elif asked in ("breaks off", "fails"):
            yield from steps_of(answer[:2])
        else:
            yield from steps_of(answer)

    @staticmethod
    def event(handler: BaseHTTPRequestHandler, chunk: dict[str, Any]) -> None:
        handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        handler.wfile.flush()
