"""Calls of functions in what models write, cut into pieces anywhere."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.serve.tools import CallReader, convention

ONE = '{"name": "f", "arguments": {"x": [1, "}"]}}'
ANSWERS = {
    "hermes": [
        (f"<tool_call>\n{ONE}\n</tool_call>", "", 1),
        (f"So:\n<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>", "So:\n", 2),
        (f"<tool_call>{ONE}", "", 1),  # it ends without the end
        ("no call < here <tool_", "no call < here <tool_", 0),
        ("<tool_call>{not JSON}</tool_call>", "<tool_call>{not JSON}</tool_call>", 0),
        ('<tool_call>{"name": "g", "arguments": {}}</tool_call>', None, 0),
    ],
    "mistral": [
        (f"[TOOL_CALLS][{ONE}, {ONE}]", "", 2),
        (f" [{ONE}]", "", 1),
        ("[1, 2] is a list", "[1, 2] is a list", 0),
        ("plain", "plain", 0),
    ],
    "llama": [
        ('{"name": "f", "parameters": {"x": [1, "}"]}}', "", 1),
        (' {"name": "f"}', ' {"name": "f"}', 0),
        ("{", "{", 0),
        ("", "", 0),
    ],
}
CASES = [(name, *answer) for name, answers in ANSWERS.items() for answer in answers]


@pytest.mark.parametrize(("name", "text", "content", "count"), CASES)
@given(cuts=st.lists(st.integers(0, 99), max_size=9))
def test_calls_are_read_and_the_rest_is_text(
    name: str, text: str, content: str | None, count: int, cuts: list[int]
) -> None:
    reader, told = CallReader(name, {"f"}), ""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in pairwise(places):
        told += reader.add(text[begin:end])
        assert text.startswith(told)
    rest, calls = reader.end()
    assert told + rest == (text if content is None else content)
    assert len(calls) == count and len({call.id for call in calls}) == count
    assert all(call.name == "f" and json.loads(call.arguments) == {"x": [1, "}"]} for call in calls)


def test_conventions_are_known_by_the_template() -> None:
    assert convention("… within <tool_call></tool_call> tags …") == "hermes"
    assert convention("{{ '[TOOL_CALLS]' }}") == "mistral"
    assert convention('Respond in the format {"name": function name, "parameters": dictionary}') == "llama"
    assert convention("{{ tools }}") is None
