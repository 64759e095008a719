"""Texts that end an answer: found wherever pieces are cut, and nothing of them is told before."""

from hypothesis import given
from hypothesis import strategies as st

from hdraft.serve.stops import Stops

WORDS = st.text("abc", max_size=3)


@given(st.lists(WORDS, max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_it_tells_what_is_before_the_first(pieces: list[str], texts: list[str]) -> None:
    stops, told = Stops(texts), ""
    for index, piece in enumerate(pieces):
        told += stops.add(piece, last=index == len(pieces) - 1)
        if stops.found:
            break
    # what is found is found at the piece that completes it, as `generate` stops at the token that does
    whole = ""
    for piece in pieces:
        whole += piece
        places = [place for each in texts if (place := whole.find(each)) >= 0]
        if places:
            whole = whole[: min(places)]
            break
    assert told == whole
    assert stops.found == any(text in "".join(pieces) for text in texts)


@given(st.lists(WORDS, min_size=1, max_size=12), st.text("abc", min_size=1, max_size=4))
def test_it_holds_back_no_more_than_may_be_a_stop(pieces: list[str], text: str) -> None:
    stops, told, came = Stops([text]), "", ""
    for piece in pieces:
        told, came = told + stops.add(piece), came + piece
        if stops.found:
            break
        held = came[len(told) :]
        assert came.startswith(told) and text.startswith(held) and held != text
