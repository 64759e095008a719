"""Many clients: in turn, apart from each other, and gone without a trace."""

import asyncio
import gc
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Running, Serve, wait_until
from templates import TURNS, told

from hdraft.serve import server as serve_process
from hdraft.serve.answering import Figures
from hdraft.serve.errors import ApiError
from hdraft.serve.metrics import Metrics
from hdraft.serve.turns import Turns

QUESTION = "return the name of the class"
ENDLESS = 2000  # tokens: far more than are written before anyone has left


def value(server: Running, name: str, **labels: str) -> float:
    found = server.service.metrics.registry.get_sample_value(f"hdraft_{name}", labels)
    return found or 0.0


def idle(server: Running) -> bool:
    return server.service.turns.held == 0


def test_requests_beyond_the_queue_are_told_to_come_again(serve: Serve) -> None:
    server = serve(queue=1)
    first = server.ask(QUESTION, stream=True, max_tokens=ENDLESS)
    next(first)
    waiting = threading.Thread(target=server.ask, args=(QUESTION,))
    waiting.start()
    wait_until(lambda: server.service.turns.held == 2)
    with pytest.raises(openai.RateLimitError) as told_so:
        server.ask(QUESTION)
    assert told_so.value.response.headers["retry-after"] == "1"
    first.close()
    waiting.join(120)
    wait_until(lambda: idle(server))
    assert server.ask(QUESTION).usage.completion_tokens == 24


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(serve: Serve, stream: bool) -> None:
    server = serve()
    if stream:
        chunks = server.ask(QUESTION, stream=True, max_tokens=ENDLESS)
        next(chunks)
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            server.ask("x " * 9, client=server.client().with_options(timeout=0.05), max_tokens=ENDLESS)
    wait_until(lambda: idle(server))
    expected = told(server.model, server.tokenizer, TURNS, [{"role": "user", "content": QUESTION}], max_new_tokens=24)
    assert server.ask(QUESTION).choices[0].message.content == expected
    assert value(server, "completion_tokens_total") < ENDLESS
    assert value(server, "requests_total", route="/v1/chat/completions", status="499") == 1


def test_a_client_that_leaves_while_it_waits_gives_its_place_back(serve: Serve) -> None:
    server = serve(queue=1)
    first = server.ask(QUESTION, stream=True, max_tokens=ENDLESS)
    next(first)
    with pytest.raises(openai.APITimeoutError):
        server.ask(QUESTION, client=server.client().with_options(timeout=0.2))
    wait_until(lambda: server.service.turns.held == 1)
    first.close()
    wait_until(lambda: idle(server))


def test_a_client_that_takes_nothing_of_its_answer_is_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_process, "_STALL_SECONDS", 0.2)
    connection_made = serve_process._Protocol.connection_made

    def small(self: Any, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(self, transport)

    monkeypatch.setattr(serve_process._Protocol, "connection_made", small)
    server = serve()
    asked = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": ENDLESS}
    body = json.dumps(asked | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: value(server, "requests_total", route="/v1/chat/completions", status="499") == 1)
    assert idle(server) and not server.connections
    assert value(server, "completion_tokens_total") < ENDLESS


async def one_of_many(server: Running, number: int) -> tuple[str, int, str]:
    """A client that asks, reads as much as it likes, and is gone: what it asked, the status, and what it read."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    question = f"return {number} of the class"
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24 if number % 3 else ENDLESS,
            "stream": number % 2 == 0,
        }
    ).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        whole = head.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
        writer.write(whole[: len(whole) if number % 5 else number % len(whole)])
        await writer.drain()
        if number % 5 == 0:
            return question, 0, ""
        if number % 6 == 3:  # endless, and not streamed
            await asyncio.sleep(0.05)
            return question, 0, ""
        line = (await reader.readline()).split()
        status = int(line[1]) if line else 0
        if number % 3 == 0:  # the endless ones
            await reader.read(100)
            return question, status, ""
        return question, status, (await reader.read()).decode()
    finally:
        writer.transport.abort()


def said(text: str) -> str:
    """What the answer of `one_of_many` says."""
    if "data: " in text:
        events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        choices = [json.loads(event)["choices"] for event in events]
        return "".join(each[0]["delta"].get("content", "") for each in choices if each)
    return str(json.loads(text.partition("\r\n\r\n")[2])["choices"][0]["message"]["content"])


def test_five_hundred_clients_that_come_talk_and_break_off(serve: Serve) -> None:
    server = serve(queue=40, cache_bytes=2_000_000)
    server.ask(QUESTION)

    async def all_of_them() -> list[tuple[str, int, str]]:
        at_once = asyncio.Semaphore(200)  # each is two of the files that this process may open

        async def one(number: int) -> tuple[str, int, str]:
            async with at_once:
                return await one_of_many(server, number)

        return await asyncio.gather(*map(one, range(500)))

    found = asyncio.run(all_of_them())
    assert {status for _, status, _ in found} <= {0, 200, 429}
    wait_until(lambda: idle(server) and not server.connections)
    answers = [(question, said(text)) for question, status, text in found if status == 200 and text]
    assert len(answers) >= 10
    for question, text in answers:  # nothing crossed
        turns = [{"role": "user", "content": question}]
        assert text == told(server.model, server.tokenizer, TURNS, turns, max_new_tokens=24)
    assert 0 < server.service.answerer.conversations.nbytes <= 2_000_000
    gc.collect()
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]
    assert len(tasks) <= 3  # the server's own
    assert server.ask(QUESTION).usage.completion_tokens == 24


def drafted(server: Running, client: openai.OpenAI, question: str = QUESTION) -> int:
    """How many tokens of an answer were drafted from D_m."""
    chunks = list(
        server.ask(question, client=client, stream=True, max_tokens=60, extra_body={"hdraft": {"steps": True}})
    )
    return int(chunks[-1].hdraft["accepted"]["model"])


def test_tenants_learn_apart(serve: Serve, tmp_path: Path) -> None:
    server = serve(keys=("first-key-1", "second-key-2"), learn=True)
    first, second = server.client("first-key-1"), server.client("second-key-2")
    assert drafted(server, first) == 0
    assert drafted(server, first) > 0
    assert drafted(server, second) == 0
    subdivided = server.client("first-key-1", **{"X-Hdraft-Tenant": "team"})
    assert drafted(server, subdivided) == 0
    assert drafted(server, subdivided) > 0
    assert drafted(server, server.client("second-key-2", **{"X-Hdraft-Tenant": "team"})) == 0


def test_tenants_share_no_cache(serve: Serve) -> None:
    server = serve(keys=("first-key-1", "second-key-2"))

    def cached(key: str) -> int:
        usage = server.ask(QUESTION, client=server.client(key)).usage
        return int(usage.prompt_tokens_details.cached_tokens)

    assert [cached("first-key-1"), cached("second-key-2")] == [0, 0]
    assert cached("first-key-1") > 0


def test_without_learning_no_text_is_drafted_for_another(serve: Serve) -> None:
    server = serve()
    assert [drafted(server, server.client()) for _ in range(3)] == [0, 0, 0]


def test_the_log_has_a_line_for_each_request_and_no_text(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "hdraft")
    server = serve(keys=("first-key-1",))
    caplog.clear()
    server.ask("return the secret", client=server.client("first-key-1"))
    with pytest.raises(openai.AuthenticationError):
        server.ask("return the secret", client=server.client("wrong-key-1"))
    with pytest.raises(openai.NotFoundError):
        server.client("first-key-1").models.retrieve("secret")
    wait_until(lambda: len(caplog.records) >= 3)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("hdraft")]
    assert len(lines) == 3
    assert lines[0].startswith("POST /v1/chat/completions 200 ") and "tokens=24" in lines[0]
    assert lines[1].startswith("POST /v1/chat/completions 401 ") and lines[2].startswith("GET - 404 ")
    for word in ("secret", "first-key", "wrong-key"):
        assert word not in caplog.text


def test_what_prometheus_reads(serve: Serve) -> None:
    server = serve()
    server.ask(QUESTION)
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    assert "hdraft_completion_tokens_total 24.0" in text
    assert 'hdraft_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    for name in ("steps_total", "drafted_tokens_total", "queue_seconds_count", "answer_seconds_sum", "held_requests"):
        assert f"\nhdraft_{name} " in text
    for source in ("context", "model", "statistics", "recycled", "reference"):
        assert f'hdraft_accepted_tokens_total{{source="{source}"}}' in text


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_has_an_answer_finds_it_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    server, add = serve(), Metrics.add

    def add_late(metrics: Metrics, figures: Figures) -> None:
        time.sleep(0.2)  # in which a client that had the answer would look
        add(metrics, figures)

    monkeypatch.setattr(Metrics, "add", add_late)
    answer = server.ask(QUESTION, stream=stream)
    if stream:
        list(answer)
    assert value(server, "completion_tokens_total") == 24


def test_info(serve: Serve) -> None:
    server = serve(learn=True, max_context=100, budget=7)
    server.ask(QUESTION)
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/info", timeout=120) as answer:
        told_so: dict[str, Any] = json.loads(answer.read())
    assert told_so["model"] == "tiny" and told_so["dtype"] == "float32" and told_so["device"] == "cpu"
    assert told_so["budget"] == 7 and told_so["max_context"] == 100
    assert told_so["databases"]["context"] is True and told_so["databases"]["statistics"] is None
    assert told_so["databases"]["model"] >= 24


def test_a_turn_that_fails_is_the_only_one() -> None:
    def fails(stopped: threading.Event) -> Any:
        yield 1
        raise ApiError(400, "no")

    async def both() -> list[Any]:
        turns = Turns(2)
        seen: list[Any] = []
        try:
            async for item in turns.run(fails):
                seen.append(item)
        except ApiError as error:
            seen.append(error.status)
        async for item in turns.run(lambda stopped: iter((2, 3))):
            seen.append(item)
        turns.close()
        return seen

    assert asyncio.run(both()) == [1, 400, 2, 3]
