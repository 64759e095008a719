"""The routes of the server, and what happens around each request: who may ask, how much, one line in the log."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from threading import Event
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hdraft
from hdraft.serve.answering import Answerer, Figures, Piece
from hdraft.serve.asking import Asked, parse_chat, parse_completion
from hdraft.serve.errors import ApiError, busy
from hdraft.serve.guard import Guard
from hdraft.serve.metrics import CONTENT_TYPE, Metrics
from hdraft.serve.page import PAGE, security_policy
from hdraft.serve.preparing import Job, Preparation
from hdraft.serve.replies import Reply
from hdraft.serve.turns import Turns
from hdraft.text import parse_json

LARGEST_BODY = 8 << 20
"""Bytes of a request."""

LARGEST_BODIES = 64 << 20
"""Bytes of all requests that are being sent."""

BODY_SECONDS = 30.0
"""How long a client may take to send them."""

_SIGN_SECONDS = 15.0
_CLIENT_LEFT = 499  # in the log; nobody is told it
_PATHS = frozenset(("/", "/health", "/info", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"))
_NO_STORE = (b"cache-control", b"no-store")

_log = logging.getLogger(__name__)

Parse = Callable[[Any, str, int], Asked]


class Service:
    """One model, and what is needed to answer requests with it.

    Args:
        name: the model's, as clients know it.
        preparation, answerer, turns, guard: see there.
    """

    def __init__(self, name: str, preparation: Preparation, answerer: Answerer, turns: Turns, guard: Guard) -> None:
        self.name = name
        self.preparation = preparation
        self.answerer = answerer
        self.turns = turns
        self.guard = guard
        self.metrics = Metrics(
            lambda: turns.held, lambda: answerer.conversations.nbytes, lambda: len(preparation.tenants)
        )
        self._reading = 0  # bytes of bodies
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="hdraft-prepare")

    def app(self) -> ASGIApp:
        """The application, behind the guard."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/info", self.info),
            Route("/metrics", self.prometheus),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", _Endpoint(partial(self.answer, parse_chat)), methods=["POST"]),
            Route("/v1/completions", _Endpoint(partial(self.answer, parse_completion)), methods=["POST"]),
        ]
        return _Watched(Router(routes, redirect_slashes=False), self)

    def close(self) -> None:
        """Stop what runs."""
        self.turns.close()
        self._preparing.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------------------------------ small routes

    async def page(self, request: Request) -> Response:
        """The page."""
        html = PAGE.read_text(encoding="utf-8")
        headers = {
            "content-security-policy": security_policy(html),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return Response(html, media_type="text/html", headers=headers)

    async def health(self, request: Request) -> Response:
        """That the server is there."""
        return JSONResponse({"status": "ok"})

    async def info(self, request: Request) -> Response:
        """What the page shows of the server."""
        model = self.answerer.model
        drafter = await self._beside(self.preparation.tenants.drafter_of, request.scope["hdraft"]["tenant"])
        stored, learned = drafter.model_database.snapshot()
        general = drafter.statistics_database
        known = len(stored.tokens) + len(learned.tokens)
        return JSONResponse(
            {
                "model": self.name,
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": str(model.device),
                "databases": {
                    "context": True,
                    "model": known if known or drafter.learn else None,
                    "statistics": None if general is None else len(general.tokens),
                },
                "budget": self.answerer.budget,
                "max_context": self.preparation.max_context,
                "learn": drafter.learn,
                "version": hdraft.__version__,
            }
        )

    async def prometheus(self, request: Request) -> Response:
        """What Prometheus reads."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """The model, as a list."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model, by its name."""
        if (name := request.path_params["name"]) != self.name:
            raise ApiError(404, f"The model '{name[:80]}' does not exist.", param="model", code="model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "hdraft"}

    # ---------------------------------------------------------------------------------------------- answers

    async def answer(self, parse: Parse, request: Request, send: Send) -> None:
        """A completion, of a chat or of a text."""
        asked = parse(await self._read_json(request), self.name, self.preparation.vocab_size)
        noted = request.scope["hdraft"]
        with self.turns.place():
            await _while_there(request.receive, self._answer(asked, noted, send))

    async def _read_json(self, request: Request) -> Any:
        """The body.

        Raises:
            ApiError: it is none of JSON, or too large, or does not come; or there are too many others.
        """
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
        body, size, came = bytearray(), 0, False
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > LARGEST_BODY:
                        continue  # it is read all the same: a client hears of nothing while it sends
                    if self._reading + len(chunk) > LARGEST_BODIES:
                        raise busy("too many requests are being sent")
                    body += chunk
                    self._reading += len(chunk)
                came = True
        except TimeoutError:
            pass
        finally:
            self._reading -= len(body)
        if size > LARGEST_BODY:
            raise ApiError(413, f"The body is larger than {LARGEST_BODY} bytes.", code="request_too_large")
        if not came:
            raise ApiError(408, f"The body did not come within {BODY_SECONDS:.0f} s.", code="request_timeout")
        try:
            return parse_json(bytes(body))
        except ValueError as error:
            raise ApiError(400, f"The body is {error}.", code="invalid_json") from None

    async def _answer(self, asked: Asked, noted: dict[str, Any], send: Send) -> None:
        job = await self._beside(self.preparation.prepare, asked, noted["tenant"])
        figures = noted["figures"] = Figures(prompt_tokens=len(job.ids))
        reply = Reply(asked, self.name, self.answerer.texts, job.calls, figures)
        async with aclosing(self._run(job, figures)) as pieces:
            if asked.streams:
                await _send_stream(send, reply, pieces)
            else:
                answer = reply.whole([piece async for piece in pieces])
                await _send_json(send, answer)

    async def _run(self, job: Job, figures: Figures) -> AsyncGenerator[Piece, None]:
        arrived = perf_counter()

        def work(stopped: Event) -> Any:
            figures.seconds_queued = perf_counter() - arrived
            return self.answerer.answer(job, figures, stopped)

        try:
            async with aclosing(self.turns.run(work)) as pieces:
                async for piece in pieces:
                    yield piece
        except ApiError:
            raise
        except Exception as error:
            raise _explained(error) from error
        finally:
            self.metrics.add(figures)  # so that whoever has the whole answer finds it counted

    async def _beside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it in the thread for what takes a while and is not the model's."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)


class _Endpoint:
    """A route that sends its answer itself."""

    def __init__(self, run: Callable[[Request, Send], Awaitable[None]]) -> None:
        self.run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.run(Request(scope, receive), send)


class _Watched:
    """An application behind the guard, with a line in the log for every request, and an answer to every failure."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = perf_counter(), 0
        noted: dict[str, Any] = {"tenant": "", "figures": None}
        scope["hdraft"] = noted
        scope["app"] = self  # so that what routes refuse is raised

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        try:
            noted["tenant"] = self.service.guard.check(scope["path"], request.headers)
            await self.app(scope, receive, watch)
        except ApiError as error:
            await _send_error(watch, error)
        except HTTPException as error:
            what = {404: "There is no such URL here.", 405: "This URL does not take that method."}
            message = what.get(error.status_code, error.detail)
            await _send_error(watch, ApiError(error.status_code, message, code="unknown_url"))
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception as error:
            explained = _explained(error)
            if status:  # of an answer that has begun
                raise explained from None
            await _send_error(watch, explained)
        finally:
            self._note(scope, noted, status or _CLIENT_LEFT, perf_counter() - started)

    def _note(self, scope: Scope, noted: dict[str, Any], status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in _PATHS else "-"  # what else was asked for may hold anything
        self.service.metrics.requests.labels(path, str(status)).inc()
        words = [
            scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "-",
            path,
            str(status),
            f"{seconds:.3f}s",
        ]
        figures: Figures | None = noted["figures"]
        if figures is not None:
            statistics = figures.statistics
            words += [
                f"queued={figures.seconds_queued:.3f}s",
                f"prompt={figures.prompt_tokens}",
                f"cached={figures.cached_tokens}",
                f"tokens={figures.completion_tokens}",
                f"steps={statistics.steps}",
                f"finish={figures.finish or '-'}",
            ]
        words.append(f"tenant={noted['tenant'] or '-'}")
        _log.info(" ".join(words))


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do it as long as the client is there.

    Raises:
        ClientDisconnect: it has left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        raise ClientDisconnect
    task.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_stream(send: Send, reply: Reply, pieces: AsyncGenerator[Piece, None]) -> None:
    """Server-sent events; what fails in the middle is the last of them."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), _NO_STORE, (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(*events: Any) -> None:
        data = b"".join(b"data: " + _dump(event) + b"\n\n" for event in events if event is not None)
        await send({"type": "http.response.body", "body": data, "more_body": True})

    await write(reply.first())
    signs = asyncio.ensure_future(_give_signs(send))
    try:
        async for piece in pieces:
            await write(*reply.chunks(piece))
        await write(reply.last())
        end = b"data: [DONE]\n\n"
    except ApiError as error:
        end = b"data: " + _dump(error.body()) + b"\n\n"
    finally:
        signs.cancel()
    await send({"type": "http.response.body", "body": end})


async def _give_signs(send: Send) -> None:
    """Comments now and then, which keep what is between server and client from giving up while nothing else comes."""
    while True:
        await asyncio.sleep(_SIGN_SECONDS)
        await send({"type": "http.response.body", "body": b": working\n\n", "more_body": True})


async def _send_json(send: Send, value: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    data = _dump(value)
    told = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), _NO_STORE, *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": data})


async def _send_error(send: Send, error: ApiError) -> None:
    headers = [(b"connection", b"close")] if error.status == 408 else []
    if error.status == 429:
        headers.append((b"retry-after", b"1"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await _send_json(send, error.body(), error.status, tuple(headers))


def _explained(error: Exception) -> ApiError:
    """What a client is told of a failure: what hdraft refuses, and of all else only that it was."""
    if isinstance(error, ApiError):
        return error
    if type(error).__module__.startswith("hdraft.decoding."):  # a refusal, which says what to do
        return ApiError(400, str(error), code="unsupported")
    _log.error(
        "a request failed: %s", type(error).__name__, exc_info=error if _log.isEnabledFor(logging.DEBUG) else None
    )
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return ApiError(503, "The server is out of memory: send a shorter prompt, or try again.", code="out_of_memory")
    return ApiError(
        500, "The server failed at this request; its log says where with HDRAFT_DEBUG=1.", code="internal_error"
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
