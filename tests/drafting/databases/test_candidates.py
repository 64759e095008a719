"""The table of candidates, against a plain dictionary."""

import math
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.databases import candidates
from hdraft.drafting.databases.candidates import MISSING, WIDTH, allocate, find, key_of, probability_of, put, put_again

contexts = st.tuples(st.integers(-1, 6), st.integers(0, 6))
rows = st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=WIDTH + 3)


def keep(table: candidates.CandidateTable, context: tuple[int, int], scores: list[float], now: int = 0) -> int:
    tokens = np.arange(len(scores), dtype=np.int32) + 10
    return put(table, key_of(*context), tokens, np.array(scores, np.float32), now)


@given(st.lists(st.tuples(contexts, rows), max_size=40))
def test_a_context_has_the_newest_row_that_was_kept_of_it(kept: list[tuple[tuple[int, int], list[float]]]) -> None:
    table = allocate(1024)
    newest: dict[tuple[int, int], tuple[int, list[float]]] = {}
    for now, (context, scores) in enumerate(kept):
        keep(table, context, scores, now)
        newest[context] = now, scores[:WIDTH]
    for before in range(-1, 7):
        for last in range(7):
            slot = find(table, key_of(before, last))
            if (before, last) not in newest:
                assert slot == MISSING
                continue
            now, scores = newest[before, last]
            assert table.seen[slot] == now
            assert table.token[slot, : len(scores)].tolist() == list(range(10, 10 + len(scores)))
            assert np.all(table.token[slot, len(scores) :] == -1)
            assert table.probability[slot, : len(scores)] == pytest.approx(np.exp(scores), rel=1e-5)
            assert not table.probability[slot, len(scores) :].any()


@given(st.lists(contexts, max_size=60))
def test_where_there_is_no_room_the_rows_kept_longest_ago_make_way(kept: list[tuple[int, int]]) -> None:
    table = allocate(4)  # one set
    expected: OrderedDict[tuple[int, int], None] = OrderedDict()
    for now, context in enumerate(kept):
        keep(table, context, [-1.0], now)
        expected.pop(context, None)
        expected[context] = None
        if len(expected) > 4:
            expected.popitem(last=False)
    for before in range(-1, 7):
        for last in range(7):
            assert (find(table, key_of(before, last)) != MISSING) == ((before, last) in expected)


@given(st.lists(st.tuples(contexts, contexts, rows), max_size=40), st.sampled_from((4, 8, 256)))
def test_a_row_kept_for_a_second_context_is_as_one_put_there(
    kept: list[tuple[tuple[int, int], tuple[int, int], list[float]]], slots: int
) -> None:
    twice, again = allocate(slots), allocate(slots)
    for now, (context, second, scores) in enumerate(kept):
        keep(twice, context, scores, now // 3)
        keep(twice, second, scores, now // 3)
        put_again(again, key_of(*second), keep(again, context, scores, now // 3), now // 3)
    np.testing.assert_equal(again._asdict(), twice._asdict())


def test_a_context_of_one_token_is_another_than_any_of_two() -> None:
    assert len({key_of(before, last) for before in range(-1, 50) for last in range(50)}) == 51 * 50
    assert key_of(2**31 - 2, 2**31 - 1) > 0


def test_what_is_no_number_is_no_probability() -> None:
    assert probability_of(math.nan) == 0.0
    assert probability_of(-math.inf) == 0.0
    assert probability_of(1e-3) == 1.0
    assert probability_of(math.log(0.25)) == pytest.approx(0.25)
