"""Calls of functions, as models write them: found in an answer where the convention of the chat template is known.

hermes     <tool_call>{"name": "f", "arguments": {}}</tool_call>, one after another; text may come before
           (Hermes, Qwen 2.5 and 3, SmolLM 3, and others that were trained on the same format)
mistral    [TOOL_CALLS][{"name": "f", "arguments": {}}], and nothing before
llama      {"name": "f", "parameters": {}}, the whole answer (Llama 3.1 to 3.3)
"""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from hdraft.serve.stops import Stops
from hdraft.text import parse_json

_BEGIN, _END = "<tool_call>", "</tool_call>"
_CONVENTIONS = {"hermes": _BEGIN, "mistral": "[TOOL_CALLS]", "llama": '"parameters":'}
"""What a chat template has in it where a model was trained on each."""


def convention(template: str) -> str | None:
    """The convention of a chat template that renders tools; None where it is not known."""
    return next((name for name, sign in _CONVENTIONS.items() if sign in template), None)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function: the arguments are JSON, as OpenAI's API has them."""

    name: str
    arguments: str
    id: str

    def to_dict(self) -> dict[str, Any]:
        """As the API tells it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallReader:
    """Tells the text of an answer from the calls in it, while it comes.

    Args:
        convention: see above.
        names: of the functions there are: what calls another is text.

    >>> reader = CallReader("hermes", {"f"})
    >>> reader.add("Well. <tool"), reader.add('_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    ('Well. ', '')
    >>> rest, calls = reader.end()
    >>> rest, calls[0].name, calls[0].arguments
    ('', 'f', '{"x": 1}')
    """

    def __init__(self, convention: str, names: set[str]) -> None:
        self.convention = convention
        self.names = names
        self._text = ""  # all of it
        self._shown = 0
        self._opening = Stops([_BEGIN])

    def add(self, piece: str) -> str:
        """What of the text so far is no call, as far as it has not been told yet."""
        self._text += piece
        if self.convention == "hermes":
            shown = "" if self._opening.found else self._opening.add(piece)
        else:  # the whole answer is calls or none is
            begun = self._text.lstrip()
            shown = "" if not begun or begun[0] in "[{" else self._text[self._shown :]
        self._shown += len(shown)
        return shown

    def end(self) -> tuple[str, list[Call]]:
        """The text that is left, and the calls: none where it is not as the convention has it, or of no function."""
        rest = self._text[self._shown :]
        calls = [self._call(value) for value in self._values(rest)]
        if not calls or any(call is None for call in calls):
            return rest, []
        return "", [call for call in calls if call is not None]

    def _values(self, text: str) -> list[Any]:
        if self.convention == "hermes":
            pieces = re.findall(rf"{_BEGIN}(.*?)(?:{_END}|\Z)", text, re.DOTALL)
        else:
            pieces = [text.strip().removeprefix("[TOOL_CALLS]")]
        try:
            values = [parse_json(piece.strip().encode()) for piece in pieces]
        except ValueError:
            return []
        return values[0] if self.convention == "mistral" and values and isinstance(values[0], list) else values

    def _call(self, value: Any) -> Call | None:
        if not isinstance(value, dict) or value.get("name") not in self.names:
            return None
        arguments = value.get("parameters" if self.convention == "llama" else "arguments")
        if not isinstance(arguments, dict):
            return None
        try:
            text = json.dumps(arguments, ensure_ascii=False)
        except RecursionError:
            return None
        return Call(value["name"], text, f"call_{secrets.token_hex(12)}")
