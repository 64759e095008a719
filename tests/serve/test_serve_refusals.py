"""What cannot be answered: OpenAI's error objects, never a traceback, never a server that is gone."""

import json
import random
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Running, Serve, wait_until

from hdraft.serve import app, server

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "return it"}], "max_tokens": 4}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "return it", "max_tokens": 4}


def post(url: str, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and object of an answer."""
    import urllib.error
    import urllib.request

    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url + path, body, sent)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def refused(answer: tuple[int, dict[str, Any]], status: int = 400) -> dict[str, Any]:
    """The error of an answer that is one as OpenAI's API has them."""
    code, body = answer
    assert code == status, body
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"] and "Traceback" not in body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "age": 5}]}, "messages[0].age"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{not JSON"}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "4"}, "max_completion_tokens"),
        ({"n": 2}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "code"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),  # the template has none
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": "text"}, "prediction"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"best_of": 1}, "best_of"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"something": 1}, "something"),
        ({"hdraft": {"budget": 257}}, "hdraft.budget"),
        ({"hdraft": {"steps": True}}, "hdraft.steps"),
        ({"hdraft": {"speed": 9}}, "hdraft.speed"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_fields_that_are_wrong_are_named(tiny: Running, change: dict[str, Any], param: str) -> None:
    error = refused(post(tiny.url, json.dumps(CHAT | change).encode()))
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert error["code"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["one", "two"]}, "prompt"),
        ({"prompt": [1, "two"]}, "prompt"),
        ({"prompt": [1, 320]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_so_are_those_of_completions(tiny: Running, change: dict[str, Any], param: str) -> None:
    assert refused(post(tiny.url, json.dumps(COMPLETION | change).encode(), "/v1/completions"))["param"] == param


def test_fields_that_change_no_answer_are_taken(tiny: Running) -> None:
    plain = post(tiny.url, json.dumps(CHAT).encode())[1]["choices"]
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "n": 1, "logit_bias": {}}
    nothing = {"stop": None, "functions": None, "top_logprobs": None, "response_format": {"type": "text"}}
    status, answer = post(tiny.url, json.dumps(CHAT | harmless | nothing).encode())
    assert status == 200 and answer["choices"] == plain
    own = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    messages = [*CHAT["messages"], own, {"role": "user", "content": "and?", "name": "me"}]
    assert post(tiny.url, json.dumps(CHAT | {"messages": messages}).encode())[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_bodies_that_are_no_json(tiny: Running, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        refused(post(tiny.url, body, path))


def test_models_and_urls_that_do_not_exist(tiny: Running) -> None:
    assert refused(post(tiny.url, json.dumps(CHAT | {"model": "gpt-4"}).encode()), 404)["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        tiny.client().models.retrieve("gpt-4")
    refused(post(tiny.url, b"{}", "/v1/embeddings"), 404)
    refused(post(tiny.url, b"{}", "/v1/models"), 405)
    refused(post(tiny.url, b"{}", "/../../etc/passwd"), 404)


def test_other_kinds_of_bodies(tiny: Running) -> None:
    refused(post(tiny.url, json.dumps(CHAT).encode(), Content_Type="text/plain"), 415)
    refused(post(tiny.url, b" " * (app.LARGEST_BODY + 1)), 413)


def test_a_body_in_pieces_that_is_too_large(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LARGEST_BODY", 1000)
    with connect(tiny) as client:
        client.sendall(head("Transfer-Encoding: chunked"))
        client.sendall(b"3e9\r\n" + b" " * 1001 + b"\r\n0\r\n\r\n")
        assert b" 413 " in client.recv(4096)


def test_more_bodies_than_there_is_room_for(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LARGEST_BODIES", 5000)
    with connect(tiny) as first, connect(tiny) as second:
        first.sendall(head("Content-Length: 4000") + b" " * 3900)
        wait_until(lambda: tiny.service._reading == 3900)
        second.sendall(head("Content-Length: 4000") + b" " * 4000)
        assert b" 429 " in second.recv(4096)
        first.sendall(b" " * 100)
        assert b" 400 " in first.recv(4096)
    assert tiny.service._reading == 0


def test_a_body_that_does_not_come(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.2)
    with connect(tiny) as client:
        client.sendall(head("Content-Length: 100") + b"{")
        assert b" 408 " in receive(client)  # and the connection is closed


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"POST / HTTP/1.1\r\nHost: localhost\r\nA: "])
def test_a_request_that_does_not_come(tiny: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.2)
    with connect(tiny) as client:
        client.sendall(sent)
        with suppress(ConnectionResetError):
            assert receive(client) == b""


def test_what_is_no_http(tiny: Running) -> None:
    with connect(tiny) as client:
        client.sendall(b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" * 20 + b"\r\n\r\n")
        assert b" 400 " in receive(client)


def test_prompts_that_are_too_long(serve: Serve) -> None:
    running = serve(max_context=32)
    long = json.dumps(CHAT | {"messages": [{"role": "user", "content": "return it " * 99}]}).encode()
    assert refused(post(running.url, long))["code"] == "context_length_exceeded"
    long = json.dumps(COMPLETION | {"prompt": list(range(32))}).encode()
    assert refused(post(running.url, long, "/v1/completions"))["code"] == "context_length_exceeded"
    assert post(running.url, json.dumps(COMPLETION | {"prompt": list(range(31))}).encode(), "/v1/completions")[0] == 200


def test_a_model_without_a_chat_template(serve: Serve) -> None:
    running = serve(template=None)
    assert refused(post(running.url, json.dumps(CHAT).encode()))["code"] == "no_chat_template"
    assert post(running.url, json.dumps(COMPLETION).encode(), "/v1/completions")[0] == 200


def test_what_a_template_does_not_take(serve: Serve) -> None:
    running = serve(template="{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}x")
    both = {"messages": [*CHAT["messages"], *CHAT["messages"]]}
    assert "one turn only" in refused(post(running.url, json.dumps(CHAT | both).encode()))["message"]


def test_schemas_that_cannot_be_had(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(schema: dict[str, Any]) -> bytes:
        return json.dumps(
            CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        ).encode()

    from hdraft.serve import grammars

    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    monkeypatch.setattr(tiny.service.preparation.grammars, "_compile", None)
    assert "pip install xgrammar" in refused(post(tiny.url, wanted({"type": "object"})))["message"]
    monkeypatch.undo()
    pytest.importorskip("xgrammar", reason="xgrammar is not installed")
    assert refused(post(tiny.url, wanted({"type": "nonsense"})))["param"] == "response_format"
    assert refused(post(tiny.url, wanted({"enum": ["x" * 70_000]})))["param"] == "response_format"
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    for schema in (deep, {"type": "string", "pattern": "("}, {"$ref": "#/nowhere"}, {"enum": []}):
        status, answer = post(tiny.url, wanted(schema))
        assert status == 200 or refused((status, answer))["param"] == "response_format"


def test_a_failure_is_told_and_not_shown(
    tiny: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret: return it, from a folder of somebody")

    monkeypatch.setattr(tiny.service.answerer.model, "forward", fail)
    error = refused(post(tiny.url, json.dumps(CHAT).encode()), 500)
    with pytest.raises(openai.APIError, match="server failed"):
        list(tiny.ask("return it", stream=True))
    assert "secret" not in error["message"] + caplog.text
    monkeypatch.undo()
    assert tiny.ask("return it").usage.completion_tokens == 24


def test_only_who_has_a_key_is_answered(serve: Serve) -> None:
    running = serve(keys=("first-key-1", "second-key-2"))
    for key in ("first-key-1", "second-key-2"):
        assert running.ask("return it", client=running.client(key)).usage.completion_tokens == 24
    for key in ("first-key-2", "first-key-11", "x", "ä"):
        headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
        assert refused(post(running.url, json.dumps(CHAT).encode(), **headers), 401)["code"] == "invalid_api_key"
    refused(post(running.url, json.dumps(CHAT).encode()), 401)
    for path, status in (("/health", 200), ("/info", 401), ("/metrics", 401), ("/v1/models", 401)):
        assert get(running, path)[0] == status


def get(running: Running, path: str, *headers: str) -> tuple[int, bytes]:
    """Status and body, with these headers."""
    port = int(running.url.rpartition(":")[2])
    if not any(header.lower().startswith("host:") for header in headers):
        headers = (f"Host: 127.0.0.1:{port}", *headers)
    with connect(running) as client:
        client.sendall("\r\n".join((f"GET {path} HTTP/1.1", "Connection: close", *headers, "", "")).encode())
        answer = receive(client)
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("app.localhost", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example.", 403),
        ("[evil", 403),
        ("", 403),
    ],
)
def test_names_that_are_not_the_servers(tiny: Running, host: str, status: int) -> None:
    assert get(tiny, "/v1/models", f"Host: {host}")[0] == status


def test_any_name_will_do_where_a_key_is_asked_for(serve: Serve) -> None:
    running = serve(keys=("first-key-1",))
    shown = "Authorization: Bearer first-key-1"
    assert get(running, "/v1/models", "Host: hdraft.example", shown)[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "x", ""])
def test_web_pages_of_other_sites(tiny: Running, origin: str) -> None:
    assert get(tiny, "/v1/models", f"Origin: {origin}")[0] == 403
    assert refused(post(tiny.url, json.dumps(CHAT).encode(), Origin=origin), 403)["code"] == "origin_not_allowed"


def test_its_own_page_is_let_in_and_nobody_is_told_of_others(tiny: Running) -> None:
    assert get(tiny, "/v1/models", f"Origin: {tiny.url}")[0] == 200
    with connect(tiny) as client:
        host = tiny.url.removeprefix("http://")
        client.sendall(
            f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nOrigin: {tiny.url}\r\nConnection: close\r\n\r\n".encode()
        )
        assert b"access-control" not in receive(client).lower()


def test_a_browser_may_run_what_is_in_the_page_and_no_more(
    tiny: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("<style>p {}</style><p>é</p><script type=module>go('é')</script>", "utf-8")
    monkeypatch.setattr(app, "PAGE", tmp_path / "page.html")
    with connect(tiny) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = receive(client).decode()
    (policy,) = re.findall(r"(?i)content-security-policy: (.*)\r\n", answer)
    allowed = dict(each.split(" ", 1) for each in policy.split("; "))
    for text, name in (("go('é')", "script-src"), ("p {}", "style-src")):
        assert allowed[name] == f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
    assert allowed["default-src"] == allowed["frame-ancestors"] == "'none'" and allowed["connect-src"] == "'self'"
    assert "access-control" not in answer.lower() and "text/html; charset=utf-8" in answer


def connect(running: Running) -> socket.socket:
    host, _, port = running.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=120)


def head(*headers: str) -> bytes:
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode()


def receive(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def mangled(rng: random.Random) -> Iterator[bytes]:
    """Bodies that are nearly right."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1.5,
        1e300,
        2**80,
        "",
        "x" * 3000,
        [],
        {},
        [[]],
        {"type": "text"},
        "\u0000",
        "🐈",
    ]
    full = CHAT | {
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x"],
        "seed": 1,
        "stream": False,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "text"},
        "prediction": {"type": "content", "content": "return"},
        "logit_bias": {"3": 1},
        "hdraft": {"budget": 3},
    }
    while True:
        body = json.loads(json.dumps(rng.choice((full, COMPLETION))))
        for _ in range(rng.randrange(1, 4)):
            place = body
            while True:
                names = list(place) if isinstance(place, dict) else range(len(place))
                if not names:
                    break
                name = rng.choice(list(names))
                if isinstance(place[name], dict | list) and rng.random() < 0.7:
                    place = place[name]
                    continue
                if rng.random() < 0.2:
                    del place[name]
                else:
                    place[name] = rng.choice(odd)
                break
        data = json.dumps(body).encode()
        if rng.random() < 0.2:
            data = data[: rng.randrange(len(data))]
        if rng.random() < 0.1:
            data = data.replace(b'"', bytes([rng.randrange(256)]), 1)
        yield data


def test_bodies_that_are_nearly_right_are_answered_or_refused(serve: Serve) -> None:
    running = serve(max_context=80)
    bodies = mangled(random.Random(21))
    seen = set()
    for _ in range(300):
        body = next(bodies)
        path = "/v1/completions" if b'"prompt"' in body else "/v1/chat/completions"
        status, answer = post(running.url, body, path)
        seen.add(status)
        if status == 200:
            assert answer["choices"][0]["finish_reason"] in ("length", "stop"), body
        else:
            assert status in (400, 404), (body, answer)
            refused((status, answer), status)
    assert seen == {200, 400, 404}
    assert running.ask("return it").usage.completion_tokens == 24
