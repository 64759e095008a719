"""`hdraft serve` as a user starts it: a process, signals, what is kept."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from templates import TURNS
from tiny_model import save_tiny_model

from hdraft.serve.listening import ServeError, check_keys, open_socket
from hdraft.serve.server import name_of_model

HDRAFT = [sys.executable, "-m", "hdraft.cli", "serve"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = save_tiny_model(tmp_path_factory.mktemp("tiny") / "Tiny-1")
    (saved / "chat_template.jinja").write_text(TURNS)
    return saved


@contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server that is ready: the process, where it is, and the lines that it writes."""
    command = [*HDRAFT, "--port", "0", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as started:
        lines: list[str] = []
        assert started.stderr is not None
        try:
            url = ""
            for line in started.stderr:
                lines.append(line)
                if found := re.search(r"ready at (http://\S+)", line):
                    url = found[1]
                    break
            assert url, lines
            stderr = started.stderr
            reader = threading.Thread(target=lambda: lines.extend(stderr))
            reader.start()
            yield started, url, lines
            reader.join(60)
        finally:
            started.kill()


def ask(url: str, key: str = "none", **options: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    options = {"max_tokens": 20, **options}
    messages: Any = [{"role": "user", "content": "def area(width"}]
    return client.chat.completions.create(model="Tiny-1", messages=messages, **options)


def test_sigterm_lets_answers_end_and_keeps_what_was_learnt(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with process("--model", folder, "--learn", "--drafter-state", state) as (server, url, lines):
        stream = ask(url, stream=True, max_tokens=1500)
        next(stream)
        waiting: list[Any] = []
        other = threading.Thread(target=lambda: waiting.append(ask(url)))
        other.start()
        metrics = f"{url}/metrics"
        while b"hdraft_held_requests 2.0" not in urllib.request.urlopen(metrics, timeout=60).read():
            pass
        server.send_signal(signal.SIGTERM)
        finishes = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices]
        assert finishes[-1] in ("length", "stop")
        other.join(120)
        assert waiting[0].usage.completion_tokens > 0
        assert server.wait(120) == 0
    answered = [line for line in lines if "POST /v1/chat/completions 200" in line]
    assert len(answered) == 2 and str(folder) not in "".join(lines) and "area" not in "".join(lines)
    assert (state / "experience.bin").exists() and (state / "learned").is_dir()
    with process("--model", folder, "--learn", "--drafter-state", state) as (server, url, _):
        held = json.loads(urllib.request.urlopen(f"{url}/info", timeout=60).read())
        assert held["databases"]["model"] >= 20
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0


def test_a_second_signal_ends_what_runs(folder: Path) -> None:
    with process("--model", folder, "--max-context", 100_000) as (server, url, _):
        stream = ask(url, stream=True, max_tokens=90_000, logit_bias={"0": -100})
        next(stream)
        server.send_signal(signal.SIGINT)
        next(stream)
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 130


def test_keys_and_the_models_name(folder: Path) -> None:
    with process("--model", folder, "--api-key", "first-key-1", "--host", "0.0.0.0") as (server, url, _):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert ask(url, "first-key-1").model == "Tiny-1"
        with pytest.raises(openai.AuthenticationError):
            ask(url, "other-key-1")
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "give --api-key KEY, or --no-key"),
        (["--host", "::"], "give --api-key KEY, or --no-key"),
        (["--api-key", "first-key-1", "--no-key"], "contradict each other"),
        (["--api-key", "short"], "at least 8 printable"),
        (["--host", "no.such.host.invalid", "--no-key"], "there is no address"),
        (["--max-context", "1"], "max-context"),
        (["--chat-template", "nonesuch"], "no chat template nonesuch"),
        (["--step", "exact"], "no exact steps, take another kind: they are for Llama"),
        (["--model-database", "nonesuch"], "nonesuch"),
    ],
)
def test_what_cannot_be_served_is_refused_on_one_line(folder: Path, arguments: list[str], message: str) -> None:
    command = [*HDRAFT, "--model", str(folder), "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_state_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x")
    command = [*HDRAFT, "--model", str(folder), "--port", "0", "--drafter-state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "holds other files" in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} of 127.0.0.1 cannot be had"):
            open_socket("127.0.0.1", port)


def test_without_the_extra_the_command_says_how_to_get_it(folder: Path) -> None:
    code = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name: None if name == "uvicorn" else find(name)
from hdraft.cli import main
main()
"""
    command = [sys.executable, "-c", code, "serve", "--model", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "pip install 'hdraft[serve]'" in done.stderr


def test_loopback_needs_no_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_keys(host, [], no_key=False)
    check_keys("0.0.0.0", [], no_key=True)


def test_a_model_is_called_by_its_folder_or_its_name_on_the_hub(folder: Path) -> None:
    assert name_of_model(str(folder)) == "Tiny-1"
    assert name_of_model(f"{folder}/../Tiny-1/") == "Tiny-1"
    assert name_of_model("org/Model") == "org/Model"
