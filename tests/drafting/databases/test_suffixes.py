import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hdraft.drafting.databases.sorting import build
from hdraft.drafting.databases.suffixes import SuffixArray, narrow, occurrences, token_at

documents = st.lists(st.lists(st.integers(1, 3), max_size=20), max_size=6)


def joined(texts: list[list[int]]) -> list[int]:
    return [token for text in texts for token in (*text, 0)]


@given(documents, st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_narrowing_finds_every_occurrence_of_a_context(texts: list[list[int]], context: list[int]) -> None:
    tokens = joined(texts)
    array = build(np.array(tokens, np.uint16), 4, 0)
    low, high = occurrences(array, context[0])
    for length in range(1, len(context)):
        low, high = narrow(array, low, high, length, context[length])
    found = sorted(int(array.suffixes[rank]) for rank in range(low, high))
    assert found == [i for i in range(len(tokens)) if tokens[i : i + len(context)] == context]


@given(documents)
def test_what_followed_a_context_is_in_ascending_order(texts: list[list[int]]) -> None:
    array = build(np.array(joined(texts), np.uint16), 4, 0)
    for token in range(1, 4):
        low, high = occurrences(array, token)
        following = [token_at(array, rank, 1) for rank in range(low, high)]
        assert following == sorted(following)


def test_tokens_outside_the_vocabulary_occur_nowhere() -> None:
    array = build(np.array([1, 2, 0], np.uint16), 4, 0)
    for token in (-1, 3, 4, 5, 2**31):
        low, high = occurrences(array, token)
        assert low == high


@given(st.integers(0, 2**31))
def test_corrupt_indices_never_read_outside_the_arrays(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 4, 50).astype(np.uint16)
    arrays = (tokens, random.integers(0, 2**32, 50, np.uint32), random.integers(0, 2**32, 6, np.uint32))
    for values in arrays:
        values.flags.writeable = False
    array = SuffixArray(*arrays)
    low, high = occurrences(array, int(random.integers(0, 4)))
    assert 0 <= low <= high <= 50
    low, high = narrow(array, 0, 50, 1, int(random.integers(0, 4)))
    assert 0 <= low <= high <= 50
    assert all(-1 <= token_at(array, rank, 3) < 4 for rank in range(50))
