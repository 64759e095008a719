"""The lookahead branch's window: its shape as a tree, and how it fills and moves on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.methods import LookaheadDrafter, PublishedDrafter
from hdraft.drafting.methods.lookahead_branch import LookaheadBranch

TEXT = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)


@given(window=st.integers(1, 9), ngram_size=st.integers(3, 7), extra=st.integers(0, 4))
def test_the_window_is_a_tree_of_its_columns(window: int, ngram_size: int, extra: int) -> None:
    branch = LookaheadBranch(TEXT, window, ngram_size)
    for step in range(ngram_size + extra):
        tree = branch.nodes()
        tree.check(vocab_size=10**6, budget=10**6, max_depth=branch.depth)
        assert tree.depths.max() == branch.depth
        sees = tree.ancestor_mask()
        node = 0
        row0 = branch.rows[0].tolist()
        for row, tokens in enumerate(branch.rows):
            for column in range(len(tokens)):
                along = row0[: column + 1] if row == 0 else row0[:column]
                down = [branch.rows[r][column] for r in range(1, row + 1)]
                assert tree.tokens[sees[node]].tolist() == [*along, *down]
                assert tree.depths[node] == len(along) + len(down)
                node += 1
        assert node == len(tree)
        branch.advance(np.arange(len(branch.rows[-1])) + 100 * (step + 1), last=7)


def test_it_fills_a_row_a_step_and_then_gives_every_column_as_an_ngram() -> None:
    branch = LookaheadBranch(TEXT, window=4, ngram_size=4)
    assert len(branch.rows[0]) == 5 and set(branch.rows[0].tolist()) <= set(TEXT.tolist())
    assert branch.advance([10, 11, 12, 13, 14], last=50) is None
    assert branch.advance([20, 21, 22, 23, 24], last=51) is None
    assert [len(row) for row in branch.rows] == [3, 4, 4]
    a, b, c = branch.rows[0].tolist()
    ngrams = branch.advance([30, 31, 32, 33], last=52)
    assert ngrams is not None
    assert ngrams.tolist() == [[51, 11, 21, 30], [a, 12, 22, 31], [b, 13, 23, 32], [c, 14, 24, 33]]
    assert [row.tolist() for row in branch.rows] == [[12, 13, 14], [21, 22, 23, 24], [30, 31, 32, 33]]
    ngrams = branch.advance([40, 41, 42, 43], last=53)
    assert ngrams is not None and ngrams[0].tolist() == [52, 21, 30, 40]


def test_the_same_text_gives_the_same_window_whatever_draws_elsewhere() -> None:
    np.random.seed(1)
    first = LookaheadBranch(TEXT, 7, 5).rows[0].tolist()
    np.random.seed(2)
    assert LookaheadBranch(TEXT, 7, 5).rows[0].tolist() == first
    assert len(set(first)) > 1


def test_impossible_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window of at least 1 column, and n-grams of at least 3"):
        PublishedDrafter(100, ngram_size=2, window=4)
    with pytest.raises(ValueError, match="order 'SL' does not ask"):
        PublishedDrafter(100, order="SL", window=4)
    with pytest.raises(ValueError, match="window must be at least 1"):
        LookaheadDrafter(100, window=0)


def test_lookahead_decoding_drafts_from_the_branch_alone() -> None:
    session = LookaheadDrafter(10, ngram_size=3, window=2, guess=2).session([1, 2, 3, 1, 2, 3, 1])
    assert len(session.propose(8)) == 0
    session.extend([2], np.array([[2, 5, 6], [2, 7, 8], [2, 9, 9]]))
    assert session.propose(8).tokens.tolist() == [9, 9, 7, 8], "the latest two, the latest first"
    session.extend([2], np.array([[2, 7, 8]]))
    assert session.propose(8).tokens.tolist() == [7, 8, 9, 9], "the least recently used is out first"


def test_there_is_no_branch_unless_asked_for() -> None:
    assert PublishedDrafter(10).session([1, 2]).lookahead is None
    assert PublishedDrafter(10, window=3).session([1, 2]).lookahead is not None
    assert PublishedDrafter(10, window=3).session([]).lookahead is None
