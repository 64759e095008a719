"""The server's process: a socket, uvicorn, signals, what is kept from one run to the next."""

import asyncio
import logging
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from uvicorn.protocols.http.h11_impl import H11Protocol

from hdraft.decoding import StepKind
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.target import Target
from hdraft.drafting.databases.storage import DatabaseError
from hdraft.serve.answering import Answerer
from hdraft.serve.app import Service
from hdraft.serve.guard import Guard
from hdraft.serve.preparing import Preparation
from hdraft.serve.tenants import Tenants
from hdraft.serve.turns import Turns

SAVE_SECONDS = 60.0
"""How often what was learnt is kept, if there is anything new."""

_REQUEST_SECONDS = 30.0  # for a request's first line and headers
_STALL_SECONDS = 30.0  # until a client that takes nothing of its answer is let go
_CONNECTIONS = 900  # of the 1024 files that a process may usually open

_log = logging.getLogger(__name__)


def name_of_model(model: str) -> str:
    """What clients call a model: its name on the Hub, or that of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def make_service(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tenants: Tenants,
    *,
    host: str = "127.0.0.1",
    keys: Sequence[str] = (),
    chat_template: str = "auto",
    budget: int = 64,
    step: StepKind | None = None,
    max_context: int | None = None,
    queue: int = 16,
    cache_bytes: int = 1_000_000_000,
) -> Service:
    """A service for a model that is loaded; the drafter's kernels are compiled, where they are not yet.

    Args:
        name: as clients know it.
        model, tokenizer: the target.
        tenants: their drafters, for this model.
        host, keys: see `Guard`.
        chat_template, max_context: see `Preparation`.
        budget, step, cache_bytes: see `Answerer`.
        queue: how many requests may wait.

    Raises:
        ConversationError, ValueError: as `Preparation` does; the model cannot have exact steps.
    """
    if step == "exact":
        Target(model, draft_shape(model), step=step)  # refuses here what it would refuse to every request
    preparation = Preparation(model, tokenizer, tenants, chat_template, max_context)
    answerer = Answerer(model, tokenizer, budget=budget, step=step, cache_bytes=cache_bytes)
    tenants.drafter.warm_up()
    return Service(name, preparation, answerer, Turns(queue), Guard(host, keys))


def log_requests(debugging: bool = False) -> None:
    """Write a line for every request to standard error; of what fails, also where, if `debugging`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("hdraft")
    ours.addHandler(handler)
    ours.propagate = False
    logging.getLogger("hdraft.serve").setLevel(logging.DEBUG if debugging else logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # which would say the same, with file names


def make_server(service: Service) -> uvicorn.Server:
    """uvicorn with this service, its limits, and nothing that is not needed; `run` runs it."""
    config = uvicorn.Config(
        service.app(),
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=30,
    )
    return _Server(config, service.preparation.tenants)


def run(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: then no more connections are taken, and the requests that there are, answered.

    A second signal ends them too. What was learnt is kept in either case.
    """
    server = make_server(service)
    before = signal.signal(signal.SIGTERM, _ignore)  # uvicorn raises it again once it has ended
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
        service.preparation.tenants.save()
        signal.signal(signal.SIGTERM, before)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


class _Server(uvicorn.Server):
    """uvicorn's, which says where it is once it is ready, and keeps what was learnt now and then."""

    def __init__(self, config: uvicorn.Config, tenants: Tenants) -> None:
        super().__init__(config)
        self.tenants = tenants

    async def main_loop(self) -> None:
        """Until a signal."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        _log.info("ready at http://%s:%d", f"[{host}]" if ":" in host else host, port)
        saving = asyncio.ensure_future(self._save())
        try:
            await super().main_loop()
        finally:
            saving.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers end; the second ends them."""
        if self.should_exit:
            self.force_exit = True
            loop = self.servers[0].get_loop()
            for connection in list(self.server_state.connections):  # which asyncio waits for, from Python 3.12 on
                loop.call_soon_threadsafe(connection.transport.abort)
        super().handle_exit(sig, frame)

    async def _save(self) -> None:
        requests = 0
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            if self.server_state.total_requests == requests:
                continue
            requests = self.server_state.total_requests
            try:
                await asyncio.get_running_loop().run_in_executor(None, self.tenants.save)
            except DatabaseError as error:  # the disk is full, say: it may have room later
                _log.error("what was learnt cannot be kept (%s)", type(error.__cause__ or error).__name__)


class _Protocol(H11Protocol):
    """uvicorn's, which lets go of clients that send no request, or take no answer."""

    _waiting: TimerHandle | None = None
    _stalled: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client is there: a request is to follow."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(_REQUEST_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or several."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting = _cancelled(self._waiting)
        elif self._waiting is None:
            self._waiting = self.loop.call_later(_REQUEST_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The client takes more slowly than it is sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._stalled = _cancelled(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._waiting, self._stalled = _cancelled(self._waiting), _cancelled(self._stalled)
        super().connection_lost(exc)


def _cancelled(timer: TimerHandle | None) -> TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
