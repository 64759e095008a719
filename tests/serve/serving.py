"""A server in this process, at a port of its own, with a small random model that writes text for ever."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from templates import TURNS
from transformers import PreTrainedModel

from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.serve import server
from hdraft.serve.app import Service
from hdraft.serve.listening import open_socket
from hdraft.serve.tenants import Tenants

PATIENCE = 120  # seconds, on a busy machine


@dataclass
class Running:
    """A server that answers.

    Attributes:
        url: where.
        service: what answers; `connections` are those that are open.
    """

    url: str
    service: Service
    model: PreTrainedModel
    tokenizer: Any
    connections: set[Any]

    def client(self, key: str = "none", **headers: str) -> openai.OpenAI:
        """The official client, which tries nothing twice."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE, default_headers=headers
        )

    def ask(self, *messages: Any, client: openai.OpenAI | None = None, **options: Any) -> Any:
        """A chat completion; messages are of the user and the assistant in turn, unless they are whole."""
        turns = [
            each if isinstance(each, dict) else {"role": ("user", "assistant")[place % 2], "content": each}
            for place, each in enumerate(messages)
        ]
        options = {"max_tokens": 24, **options}
        return (client or self.client()).chat.completions.create(model="tiny", messages=turns, **options)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what is to happen soon."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def running(
    model: PreTrainedModel,
    tokenizer: Any,
    template: str | None = TURNS,
    *,
    learn: bool = False,
    keys: tuple[str, ...] = (),
    folder: Path | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server of this model; `options` are those of `make_service`."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tenants = Tenants(HierarchyDrafter.for_model(model, tokenizer, learn=learn), keys, folder)
    service = server.make_service("tiny", model, tokenizer, tenants, keys=keys, **options)
    with open_socket("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        uvicorn = server.make_server(service)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: uvicorn.started)
            yield Running(url, service, model, tokenizer, uvicorn.server_state.connections)
        finally:
            uvicorn.should_exit = True
            thread.join(PATIENCE)
            service.close()
            assert not thread.is_alive()


Serve = Callable[..., Running]
"""Starts a server, as the fixture `serve` does."""
