"""Text and JSON as they come in and go out: one rule for every file, argument and stream.

In, text is UTF-8, with or without a byte order mark, its lines ended in any way, and holds no half characters (a
surrogate without its other half, which no tokenizer takes). JSON holds no NaN, no Infinity, and no number so large that
a float would be one. Out, JSON is ASCII, which every encoding holds, and holds neither of them either.
"""

import json
import math
import os
import re
from typing import Any, NoReturn


def decode_text(data: bytes) -> str:
    """The text of a file or a stream.

    Raises:
        ValueError: it is not UTF-8; to be put behind the name of the file.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def argument_text(argument: str) -> str:
    """The text of a command's argument: UTF-8 where the locale, as C does, knows no such characters.

    Raises:
        ValueError: it is no text; to be put behind the name of the argument.
    """
    try:
        check_text(argument)
    except ValueError:
        try:
            return os.fsencode(argument).decode()
        except ValueError:
            raise ValueError("not valid text: it must be UTF-8") from None
    return argument


def check_text(text: str) -> None:
    """Make sure that a tokenizer can take a text.

    Raises:
        ValueError: it holds half a character; to be put behind the name of its place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(f"not valid text (half a character, \\u{half:04x})") from None


def parse_json(data: bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: it is none, or holds what is no text or no number; to be put behind the name of its place.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    try:
        value = _DECODER.decode(text.rstrip())
        whole = json.dumps(value, ensure_ascii=False) if _HALVES.search(data) else ""
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deep)") from None
    except ValueError as error:  # of the functions below, or an integer of thousands of digits
        raise ValueError(f"not valid JSON ({str(error).partition(';')[0]})") from None
    check_text(whole)
    return value


def dump_json(value: Any, indent: int | None = None) -> str:
    """A JSON document in ASCII, ended by a line break; raises ValueError for NaN and Infinity."""
    return json.dumps(value, indent=indent, allow_nan=False) + "\n"


def one_line(text: str) -> str:
    """A name from a file as a line or a table shows it: without line breaks, nor what steers a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_number)
_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")  # escapes that may be half a character
