"""The chat in a terminal: a real one, and what happens there at moments that no keyboard can be timed for."""

import builtins
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from architectures import build, build_tokenizer
from templates import TURNS, told

from hdraft.chat import Chat
from hdraft.chat.loop import TerminalLoop
from hdraft.conversation import Conversation
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter

COMMAND = (  # in a session of its own, with the terminal whose keys make its signals
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);from hdraft.cli import main; main()"
)
PATIENCE = 240  # seconds, on a machine however busy


class Screen:
    """A pseudo-terminal with `hdraft chat` in it."""

    def __init__(self, *arguments: object) -> None:
        import pty

        self.keys, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "chat", *map(str, arguments)],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
        )
        os.close(inside)
        self.raw = b""
        self.seen = 0

    def type(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def wait(self, pattern: str) -> re.Match[str]:
        """Until the screen shows this, behind what was waited for before."""
        until = time.monotonic() + PATIENCE
        while not (found := re.compile(pattern, re.DOTALL).search(self.text(), self.seen)):
            assert self.read() and time.monotonic() < until, f"no {pattern!r} in {self.text()[self.seen :][:2000]!r}"
        self.seen = found.end()
        return found

    def read(self) -> bool:
        """Whether there was more to read, before the chat's end."""
        ready, _, _ = select.select([self.keys], [], [], PATIENCE)
        assert ready, f"nothing comes behind {self.text()[-500:]!r}"
        try:
            data = os.read(self.keys, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.raw += data
        return bool(data)

    def text(self) -> str:
        """All that was written, without colours and the like."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.raw.decode(errors="replace"))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a text, all of whose tokens can be read."""
    folder = tmp_path_factory.mktemp("endless")
    build("llama-text").save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TURNS)
    return folder


@pytest.fixture
def screen(endless: Path) -> Iterator[Screen]:
    pytest.importorskip("pty")
    screen = Screen("--model", endless, "--max-new-tokens", 1_000_000)
    yield screen
    screen.process.kill()
    screen.process.wait()
    os.close(screen.keys)


def test_a_conversation_in_a_terminal(screen: Screen, tmp_path: Path) -> None:
    saved = tmp_path / "said.jsonl"
    screen.wait(r"D_c this text so far +D_m .* model the model itself\n.*/help lists the commands\n> ")
    screen.type("/stats\n")
    screen.wait(r"hdraft: nothing has been said yet\n> ")
    screen.type("unfinished")
    screen.wait("unfinished")
    screen.type("\x03\n")  # a signal between two reads of a line is seen at its end
    screen.wait(r"Ctrl-D or /exit ends the chat\n> ")

    screen.type("return the name\n")
    screen.wait(r"return the name\n.{40}")
    screen.type("\x03")
    screen.wait(r"\nstopped: the answer stays in the conversation as far as it is\n")
    screen.wait(r"\d+ tokens?, [\d.,]+ tokens/s, MAT [\d.]+, first token after [\d.]+ s\n> ")

    screen.type("and of\\\n")
    screen.wait(r"\.\.\. ")
    screen.type("the module\n")
    screen.wait(r"the module\n.{40}")
    screen.type("\x03")
    screen.wait(r"\nstopped: .*first token after [\d.]+ s\n> ")

    screen.type("/stats\n")
    screen.wait(r"2 turns, [\d,]+ tokens, .*MAT .*\nD_c this text so far: [\d,]+ .*\n> ")
    screen.type(f"/save {saved}\n")
    screen.wait(r"said.jsonl: 4 messages\n> ")
    before = saved.read_bytes()
    screen.type(f"/reset\n/save {saved}\n")
    screen.wait(r"a new conversation begins\n.*nothing has been said yet\n> ")
    screen.type("once more\n")
    screen.wait(r"once more\n.{40}")
    screen.type("\x03")
    screen.wait(r"first token after [\d.]+ s\n> ")
    for reply, kept in (("\n", True), ("\x03\n", True), ("y\n", False)):
        screen.type(f"/save {saved}\n")
        screen.wait(r"said.jsonl exists: replace it\? \[y/N\] ")
        screen.type(reply)
        screen.wait(r"\n> ")
        assert (saved.read_bytes() == before) == kept
    assert [json.loads(line)["role"] for line in saved.read_text().splitlines()] == ["user", "assistant"]
    assert [json.loads(line)["content"] for line in before.splitlines()][::2] == [
        "return the name",
        "and of\nthe module",
    ]

    screen.type("\x04")
    with suppress(OSError):
        while screen.read():
            pass
    assert screen.process.wait(PATIENCE) == 0
    assert "Traceback" not in screen.text()
    assert b"\x1b[36m" in screen.raw  # the colour of D_c
    messages = [json.loads(line) for line in before.splitlines()]
    for place in (1, 3):
        expected = told(build("llama-text"), build_tokenizer(), TURNS, messages[:place], max_new_tokens=30)
        assert messages[place]["content"].startswith(expected[:30])


@pytest.mark.skipif(not hasattr(signal, "raise_signal") or os.name == "nt", reason="signals")
class TestTypedLines:
    """With lines in the place of a keyboard, and signals at a chosen place."""

    @pytest.fixture
    def chat(self, tmp_path: Path) -> Chat:
        template = "{% if 'boom' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}" + TURNS
        (tmp_path / "template").write_text(template)
        model = build("llama-text")
        conversation = Conversation(build_tokenizer(), str(tmp_path / "template"))
        return Chat(model, conversation, HierarchyDrafter.for_model(model), max_new_tokens=12)

    @pytest.fixture
    def run(self, chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
        def run(*lines: str) -> tuple[str, str]:
            typed = iter(lines)

            def type_next(prompt: str) -> str:
                line = next(typed, None)
                if line is None:
                    raise EOFError
                if line == "\x03":
                    signal.raise_signal(signal.SIGINT)
                return line

            monkeypatch.setattr(builtins, "input", type_next)
            before = signal.getsignal(signal.SIGINT)
            TerminalLoop(chat, str).run()
            assert signal.getsignal(signal.SIGINT) is before
            return capsys.readouterr()

        return run

    def test_what_cannot_be_done_is_a_line_and_the_chat_goes_on(self, chat: Chat, run: Any) -> None:
        out, err = run("boom", "/nothing", "a\udce9", "a\ud800", "\x03", "return")
        assert [line.partition(" ")[0] for line in err.splitlines()] == ["hdraft:"] * 4
        assert "the chat template fails (no)" in err and "there is no /nothing" in err
        assert out.count("Ctrl-D or /exit ends the chat") == 2
        assert [message["content"] for message in chat.conversation.messages][:1] == ["return"]
        assert "cut: the answer has as many tokens as it may have" in out

    def test_ctrl_c_while_the_prompt_is_read(self, chat: Chat, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, calls = chat.model.model.layers[1], [0]
        forward = layer.forward

        def interrupted(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == 1:
                signal.raise_signal(signal.SIGINT)
            return forward(*arguments, **options)

        monkeypatch.setattr(layer, "forward", interrupted)
        out, err = run("return", "return it")
        assert "stopped before the first word: the question is forgotten" in out and not err
        messages = chat.conversation.messages
        assert [message["content"] for message in messages[::2]] == ["return it"]
        monkeypatch.undo()
        assert messages[1]["content"] == told(chat.model, build_tokenizer(), TURNS, messages[:1], max_new_tokens=12)

    def test_ctrl_c_in_a_later_pass_ends_the_answer_after_it(
        self, chat: Chat, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, calls = chat.model.model.layers[1], [0]
        forward = layer.forward

        def interrupted(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == 3:
                signal.raise_signal(signal.SIGINT)
            return forward(*arguments, **options)

        monkeypatch.setattr(layer, "forward", interrupted)
        out, err = run("return", "return it")
        assert out.count("stopped: the answer stays in the conversation as far as it is") == 1 and not err
        assert calls[0] > 3
        messages = chat.conversation.messages
        monkeypatch.undo()
        expected = told(chat.model, build_tokenizer(), TURNS, messages[:1], max_new_tokens=12)
        assert (
            messages[1]["content"]
            and expected.startswith(messages[1]["content"])
            and expected != messages[1]["content"]
        )
        assert messages[3]["content"] == told(chat.model, build_tokenizer(), TURNS, messages[:3], max_new_tokens=12)

    def test_what_a_token_could_do_to_the_terminal_is_shown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from hdraft.terminal import open_console, show_token

        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        console = open_console()
        assert console.is_terminal
        show_token(console, "a\x1b[2Jb\x9b\tc\nd", None)
        assert r"a\x1b[2Jb\x9b" in capsys.readouterr().out
