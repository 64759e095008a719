"""Text and JSON from outside: what is taken, what is refused, and what is never written."""

import json
import math
from typing import Any

import pytest

from hdraft.text import argument_text, check_text, decode_text, dump_json, one_line, parse_json


@pytest.mark.parametrize("data", [b"a\nb\n", b"a\r\nb\r\n", b"\xef\xbb\xbfa\rb\n"])
def test_a_byte_order_mark_and_ways_to_end_a_line_make_no_difference(data: bytes) -> None:
    assert decode_text(data) == "a\nb\n"
    assert decode_text(b"\xef\xbb\xbf") == ""


@pytest.mark.parametrize("data", [b"\xff\xfea\0", b"caf\xe9", b"\xed\xa0\x80", b"\xc3"])
def test_other_encodings_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not UTF-8"):
        decode_text(data)
    with pytest.raises(ValueError, match="not UTF-8"):
        parse_json(b'"' + data + b'"')


def test_half_characters_are_refused_and_whole_ones_taken() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\\ud800"]') == ["\N{GRINNING FACE}", "\\ud800"]
    for data in (rb'{"a": "b\ud800"}', rb'{"\uDFFF": 1}', rb'["\ude00\ud83d"]'):
        with pytest.raises(ValueError, match="not valid text"):
            parse_json(data)
    with pytest.raises(ValueError, match=r"half a character, \\ud800"):
        check_text("a\ud800")


@pytest.mark.parametrize(
    "data", [b"NaN", b"[Infinity]", b"-Infinity", b"1e999", b"-1e999", b"1" * 5000, b"[" * 10**6, b"", b"{", b"[1,]"]
)
def test_what_is_no_json_is_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not valid JSON") as caught:
        parse_json(data)
    assert len(str(caught.value)) < 120 and "\n" not in str(caught.value)


def test_json_goes_out_as_ascii_and_finite() -> None:
    text = dump_json({"text": "日本\n", "number": 0.1})
    assert text.isascii() and json.loads(text) == {"text": "日本\n", "number": 0.1}
    wrong: Any
    for wrong in (math.nan, math.inf, [-math.inf], {"a": math.nan}):
        with pytest.raises(ValueError):
            dump_json(wrong)


def test_an_argument_is_utf8_whatever_the_locale_says() -> None:
    assert argument_text("café") == "café"
    assert argument_text("caf\udcc3\udca9") == "café"  # as the locale C hands it over
    for wrong in ("caf\udce9", "\ud800"):
        with pytest.raises(ValueError, match="not valid text"):
            argument_text(wrong)


def test_a_name_is_one_line_that_steers_no_terminal() -> None:
    assert one_line("a\n b\t\x1b[31mü\udce9") == r"a b \x1b[31mü\udce9"
