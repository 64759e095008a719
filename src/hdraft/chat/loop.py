"""Messages from standard input, answers on standard output: a pipe's, and a terminal's.

In a pipe there are the answers alone, and the first message or command that cannot be honoured ends the chat. In a
terminal there are a prompt, colours and figures, and after what cannot be honoured the chat goes on.
"""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from hdraft import files
from hdraft.chat.conversing import Chat, ChatError, Turn
from hdraft.terminal import legend, open_console, show_token
from hdraft.text import argument_text, decode_text, dump_json, one_line

HELP = r"""/reset      begin a new conversation
/stats      this conversation: tokens by source, mean accepted tokens (MAT), tokens a second
/save FILE  write this conversation to a file: a line of JSON for each message
/help       this list
/exit       end the chat, as Ctrl-D does
Ctrl-C ends an answer. A line that ends in \ goes on in the next. A space before a command makes it a message."""

_COMMAND = re.compile(r"(/\w+)(?: +(.*))?")
_HOW_TO_END = "Ctrl-D or /exit ends the chat"


def converse(chat: Chat, explain: Callable[[Exception], str]) -> None:
    """Chat until the input ends.

    Args:
        chat: nothing has been said in it yet.
        explain: an error as a line, after which the chat goes on in a terminal.

    Raises:
        ChatError, ConversationError, OSError: in a pipe, what cannot be honoured.
    """
    (TerminalLoop(chat, explain) if sys.stdin.isatty() and sys.stdout.isatty() else PipeLoop(chat)).run()


class PipeLoop:
    """Reads a message a line, and writes answers."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.console = open_console(plain=True)
        self.commands = {"/reset": self.reset, "/stats": self.stats, "/save": self.save, "/help": self.help}

    def run(self) -> None:
        """Until the input ends, or /exit."""
        while (text := self.message()) is not None and text.rstrip() != "/exit":
            self.take(text)

    def message(self) -> str | None:
        """The next message, its lines joined; None at the end of the input."""
        lines: list[str] = []
        while (line := self.line(first=not lines)) is not None:
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
        return "\n".join(lines) if lines else None

    def line(self, first: bool) -> str | None:
        """The next line; None at the end of the input."""
        data = sys.stdin.buffer.readline()
        try:
            return decode_text(data).removesuffix("\n") if data else None
        except ValueError as error:
            raise ChatError(f"standard input is {error}") from None

    def take(self, text: str) -> None:
        """Obey a command, or answer a message."""
        if (command := _COMMAND.fullmatch(text.rstrip())) is None:
            if text.strip():
                self.answer(text)
        elif command[1] in self.commands:
            self.commands[command[1]]((command[2] or "").strip())
        else:
            raise ChatError(
                f"there is no {command[1]}: /help lists the commands; with a space before it, it is a message"
            )

    def answer(self, text: str) -> None:
        """Write the answer as it comes."""
        for token in self.chat.say(text):
            show_token(self.console, token.text, token.source)
        print(flush=True)

    def reset(self, _: str) -> None:
        """/reset"""
        self.chat.reset()
        self.note("a new conversation begins")

    def stats(self, _: str) -> None:
        """/stats"""
        turns, statistics = self.chat.turns, self.chat.statistics
        if not turns:
            raise ChatError("nothing has been said yet")
        whole = Turn("", statistics.tokens, statistics.steps, seconds=sum(turn.seconds for turn in turns))
        self.console.print(f"{_count(len(turns), 'turn')}, {_figures(whole)}", soft_wrap=True)
        self.console.print(legend(self.chat.sources()), soft_wrap=True)

    def save(self, name: str) -> None:
        """/save FILE"""
        if not name:
            raise ChatError("/save needs the name of a file")
        if not self.chat.turns:
            raise ChatError("nothing has been said yet")
        path = Path(name).expanduser()
        if path.exists() and not self.may_replace(path):
            return
        with files.promised(path) as write:
            write("".join(map(dump_json, self.chat.conversation.messages)))
        self.note(f"{path}: {_count(len(self.chat.conversation.messages), 'message')}")

    def help(self, _: str) -> None:
        """/help"""
        self.console.print(HELP, soft_wrap=True)

    def may_replace(self, path: Path) -> bool:
        """Whether a file that exists may be replaced."""
        raise ChatError(f"{path} exists: give another name")

    def note(self, text: str) -> None:
        """Say something beside the conversation: nothing, in a pipe."""


class TerminalLoop(PipeLoop):
    """The same with a prompt, colours and figures; a failure or Ctrl-C ends an answer, and not the chat."""

    def __init__(self, chat: Chat, explain: Callable[[Exception], str]) -> None:
        super().__init__(chat)
        self.console = open_console()
        self.explain = explain

    def run(self) -> None:
        """Until the input ends, or /exit."""
        with suppress(ImportError):  # Windows has none
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")  # so that what is pasted is one message
        if self.chat.drafter is not None:
            self.console.print(legend(), soft_wrap=True)
        self.note(f"Ctrl-C ends an answer, {_HOW_TO_END}, /help lists the commands")
        with _on_ctrl_c(signal.default_int_handler):
            while True:
                try:
                    return super().run()
                except KeyboardInterrupt:
                    print()
                    self.note(_HOW_TO_END)
                except Exception as error:  # the conversation shall not be lost for it
                    print("hdraft:", one_line(self.explain(error)), file=sys.stderr, flush=True)

    def line(self, first: bool) -> str | None:
        """The next line, or lines that are pasted; None at the end of the input."""
        try:
            text = input("> " if first else "... ")
        except EOFError:
            print()
            return None
        try:
            return argument_text(text.rstrip("\n"))
        except ValueError as error:
            raise ChatError(f"the message is {error}") from None

    def answer(self, text: str) -> None:
        """Write the answer as it comes, then what it cost.

        Until the first token Ctrl-C is an exception, however long the prompt. Then it ends the answer between two
        tokens, as a step is short: so nothing is left half done, and what has been said is kept.
        """
        waiting, stopped = True, False

        def stop(*_: object) -> None:
            nonlocal waiting, stopped
            waiting, waited, stopped = False, waiting, True
            if waited:
                raise KeyboardInterrupt

        before = len(self.chat.turns)
        try:
            with _on_ctrl_c(stop), suppress(KeyboardInterrupt), closing(self.chat.say(text)) as answer:
                for token in answer:
                    waiting = False
                    show_token(self.console, token.text, token.source)
                    if stopped:
                        break
        finally:
            if not waiting:  # something is on this line
                print()
        if len(self.chat.turns) == before:
            self.note("stopped before the first word: the question is forgotten")
            return
        turn = self.chat.turns[-1]
        if stopped:
            self.note("stopped: the answer stays in the conversation as far as it is")
        elif turn.is_cut:
            self.note("cut: the answer has as many tokens as it may have; --max-new-tokens, or /reset, gives more room")
        self.note(f"{_figures(turn)}, first token after {turn.seconds_to_first:.2f} s")

    def may_replace(self, path: Path) -> bool:
        """Ask whether a file that exists may be replaced."""
        try:
            return input(f"{path} exists: replace it? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            print()
            return False

    def note(self, text: str) -> None:
        """Say something beside the conversation."""
        self.console.print(Text(one_line(text), "dim"), soft_wrap=True)


def _figures(turn: Turn) -> str:
    rate = turn.tokens / turn.seconds if turn.seconds else 0.0
    mat = turn.tokens / turn.steps if turn.steps else 0.0
    return f"{_count(turn.tokens, 'token')}, {rate:.1f} tokens/s, MAT {mat:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def _on_ctrl_c(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
